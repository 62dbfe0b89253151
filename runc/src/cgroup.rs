//! Where a container's control group is.

use std::path::Path;

use bulkhead_container::cgroup::{Hierarchies, Location};
use bulkhead_container::spec::Spec;

use crate::Globals;
use crate::failure::Outcome;

/// As the configuration says, or by the container's name; none where the host has no control groups.
pub fn of(globals: &Globals, spec: &Spec, id: &str) -> Outcome<Option<Location>> {
    if globals.systemd {
        let problem = "control groups cannot be asked of systemd; use the manager cgroupfs \
                       (podman --cgroup-manager=cgroupfs, Docker's native.cgroupdriver=cgroupfs)";
        return Err(problem.to_owned().into());
    }
    let Ok(host) = Hierarchies::of_this_host() else {
        return Ok(None);
    };
    let wanted = spec.linux.as_ref().and_then(|l| l.cgroups_path.as_deref());
    let location = match wanted.filter(|path| !path.is_empty()) {
        Some(path) => host.at(Path::new("/").join(path)),
        // Another root may have a container of that name.
        None => host.at(format!("/bulkhead-runc-{id}-{}", std::process::id())),
    };
    Ok(Some(location.everywhere()))
}
