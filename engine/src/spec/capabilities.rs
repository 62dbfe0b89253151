//! Which capabilities a container's programs have.

use bulkhead_container::capabilities::{self as names, DOCKER_DEFAULT};
use bulkhead_container::defaults;
use bulkhead_container::spec::Capabilities;

use crate::error::Error;
use crate::record::Isolation;

/// The name that stands for every capability.
const ALL: &str = "ALL";

/// What nobody needs but who makes device files. In a guest they are the guest's devices; on a host they would be the host's,
/// and then the container's control group has to deny them.
pub const MAKE_DEVICES: &str = "CAP_MKNOD";

/// What mounts a filesystem of devices.
pub const MOUNT: &str = "CAP_SYS_ADMIN";

/// The default set with `add` and without `drop`; names with or without `CAP_`, in any case.
pub fn capabilities(
    add: &[String],
    drop: &[String],
    is_root: bool,
    isolation: Isolation,
) -> Result<Capabilities, Error> {
    let (add, drop) = (full_names(add)?, full_names(drop)?);
    let adds_all = add.contains(&ALL);
    let mut set: Vec<&str> = match (adds_all, drop.contains(&ALL)) {
        (true, _) => names::all().to_vec(),
        (false, true) => Vec::new(),
        (false, false) => DOCKER_DEFAULT.to_vec(),
    };
    if isolation == Isolation::Container && !adds_all {
        set.retain(|&name| name != MAKE_DEVICES);
    }
    set.retain(|name| !drop.contains(name));
    for name in add {
        if name != ALL && !set.contains(&name) {
            set.push(name);
        }
    }
    let set = defaults::with_capabilities(&set);
    if is_root {
        return Ok(set);
    }
    // Another user has none of them until it executes a program that gives it some.
    Ok(Capabilities {
        bounding: set.bounding,
        ..Capabilities::default()
    })
}

fn full_names(given: &[String]) -> Result<Vec<&'static str>, Error> {
    let full_name = |name: &String| {
        if name.eq_ignore_ascii_case(ALL) {
            return Ok(ALL);
        }
        names::by_name(name).ok_or_else(|| {
            Error::Invalid(format!(
                "there is no capability {name}: capabilities(7) lists them"
            ))
        })
    };
    given.iter().map(full_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounding(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        capabilities(&own(add), &own(drop), true, Isolation::Vm)
            .expect("set")
            .bounding
    }

    #[test]
    fn set_on_a_host_makes_devices_only_when_that_was_asked_for() {
        let has = |add: &[String]| {
            let set = capabilities(add, &[], true, Isolation::Container).expect("set");
            set.bounding.contains(&MAKE_DEVICES.to_owned())
        };
        assert!(!has(&[]));
        assert!(has(&["mknod".to_owned()]) && has(&["ALL".to_owned()]));
    }

    #[test]
    fn set_when_added_to_and_dropped_from_is_as_dockers() {
        assert_eq!(bounding(&[], &[]).len(), 14);
        assert_eq!(bounding(&["ALL"], &[]).len(), 41);
        assert_eq!(bounding(&[], &["all"]).len(), 0);
        assert_eq!(bounding(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(bounding(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert!(!bounding(&[], &["CAP_KILL"]).contains(&"CAP_KILL".to_owned()));
    }

    #[test]
    fn set_of_another_user_is_only_what_it_may_gain() {
        let set = capabilities(&[], &[], false, Isolation::Vm).expect("set");
        assert!(set.effective.is_empty() && set.permitted.is_empty());
        assert_eq!(set.bounding.len(), 14);
        assert!(capabilities(&["FLY".into()], &[], true, Isolation::Vm).is_err());
    }
}
