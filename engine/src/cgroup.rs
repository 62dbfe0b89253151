//! The control group of a container on the host.
//!
//! Root's are all in one place. Of who is not root it is where the host has given one away, if it has: that depends on the
//! group that the monitor is in, and so it is written down for those who look for it from elsewhere.

use bulkhead_container::cgroup::{Cgroup, Hierarchies, Location};
use rustix::process::geteuid;

use crate::error::{Error, cannot};
use crate::layout::short;
use crate::record::Files;

/// Where a container's group is to be. `None` on a host without any, or without one for this user.
pub fn of_new(files: &Files, id: &str, is_rootless: bool) -> Result<Option<Location>, Error> {
    if !is_rootless {
        return Ok(of_root(short(id)));
    }
    let hierarchies = Hierarchies::of_this_host().ok();
    let name = format!("bulkhead/{}", short(id));
    let place = hierarchies.and_then(|hierarchies| hierarchies.delegated(&name));
    if let Some(place) = &place {
        let written = files.write_cgroup(place);
        written.map_err(cannot("record the container's control group"))?;
    }
    Ok(place)
}

/// Ends all processes of a sandbox's group. One that is not there is no error.
pub fn end(files: &Files) {
    if let Some(group) = open(files) {
        // Whoever wants them ended looks whether they have.
        let _ = group.kill();
    }
}

/// Ends what is left of a sandbox's group, and removes it. One that is not there is no error.
pub fn remove(files: &Files) {
    if let Some(group) = open(files) {
        // It has waited for as long as a process takes that can be ended at all.
        let _ = group.remove();
    }
}

fn open(files: &Files) -> Option<Cgroup> {
    let place = match geteuid().is_root() {
        // Sandboxes have short IDs for names.
        true => of_root(files.sandbox.file_name()?.to_str()?)?,
        false => files.read_cgroup().ok()?,
    };
    Cgroup::open(&place).ok()
}

fn of_root(id: &str) -> Option<Location> {
    let hierarchies = Hierarchies::of_this_host().ok()?;
    Some(hierarchies.at(format!("/bulkhead/{id}")))
}
