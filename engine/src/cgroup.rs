//! The control group of a container on the host.

use bulkhead_container::cgroup::{Cgroup, Hierarchies, Location};

use crate::layout::short;

/// Where a container's group is or is to be. `None` on a host without any.
pub fn of_sandbox(id: &str) -> Option<Location> {
    let hierarchies = Hierarchies::of_this_host().ok()?;
    Some(hierarchies.at(format!("/bulkhead/{}", short(id))))
}

/// Ends all processes of a sandbox's group. One that is not there is no error.
pub fn end(id: &str) {
    if let Some(group) = open(id) {
        // Whoever wants them ended looks whether they have.
        let _ = group.kill();
    }
}

/// Ends what is left of a sandbox's group, and removes it. One that is not there is no error.
pub fn remove(id: &str) {
    if let Some(group) = open(id) {
        // It has waited for as long as a process takes that can be ended at all.
        let _ = group.remove();
    }
}

fn open(id: &str) -> Option<Cgroup> {
    Cgroup::open(&of_sandbox(id)?).ok()
}
