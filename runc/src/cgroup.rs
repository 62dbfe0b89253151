//! Where a container's control group is.

use std::path::Path;

use bulkhead_container::cgroup::{Hierarchies, Location, Version};
use bulkhead_container::spec::Spec;

use crate::Globals;
use crate::failure::Outcome;
use crate::systemd::{self, Held};

/// A place for a group, which systemd may have made.
#[derive(Default)]
pub struct Group {
    /// None where the host has no control groups.
    pub location: Option<Location>,
    /// To be kept until the container's first process is in the group.
    pub held: Option<Held>,
}

/// As the configuration says, or by the container's name.
pub fn of(globals: &Globals, spec: &Spec, id: &str) -> Outcome<Group> {
    let linux = spec.linux.as_ref();
    let wanted = linux.and_then(|linux| linux.cgroups_path.as_deref());
    let host = Hierarchies::of_this_host();
    if globals.systemd {
        let host = host?;
        let resources = linux.and_then(|linux| linux.resources.as_ref());
        let held = systemd::start(wanted, id, resources)?;
        let location = host.at(&held.group).everywhere();
        if location.version() == Version::One {
            held.enter(&location.directories())?;
        }
        return Ok(Group {
            location: Some(location.held()),
            held: Some(held),
        });
    }
    let Ok(host) = host else {
        return Ok(Group::default());
    };
    let location = match wanted.filter(|path| !path.is_empty()) {
        Some(path) => host.at(Path::new("/").join(path)),
        // Another root may have a container of that name.
        None => host.at(format!("/bulkhead-runc-{id}-{}", std::process::id())),
    };
    Ok(Group {
        location: Some(location.everywhere()),
        held: None,
    })
}
