//! The control group of a container on the host.

use bulkhead_container::cgroup::{Cgroup, Hierarchies, Location};

use crate::layout::short;

/// Where a container's group is or is to be. `None` on a host without any.
pub fn of_sandbox(id: &str) -> Option<Location> {
    let hierarchies = Hierarchies::of_this_host().ok()?;
    Some(hierarchies.at(format!("/bulkhead/{}", short(id))))
}

/// Ends what is left of a sandbox's group, and removes it. One that is not there is no error.
pub fn remove(id: &str) {
    let group = of_sandbox(id).map(|location| Cgroup::open(&location));
    if let Some(Ok(group)) = group {
        // What cannot be removed is tried again by the next command.
        let _ = group.remove();
    }
}
