//! Which capabilities a container's programs have.

use bulkhead_container::spec::Capabilities;

use crate::error::Error;

/// Docker's default set.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All there are (capabilities(7)), in the order of their numbers.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The default set with `add` and without `drop`; names with or without `CAP_`, in any case.
pub fn capabilities(add: &[String], drop: &[String], is_root: bool) -> Result<Capabilities, Error> {
    let (add, drop) = (canonical(add)?, canonical(drop)?);
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let kept = |name: &&str| !all(&drop) && !drop.iter().any(|dropped| dropped == name);
    let mut set: Vec<String> = if all(&add) {
        ALL.iter()
            .filter(|name| !drop.iter().any(|dropped| dropped == *name))
            .map(|&name| name.to_owned())
            .collect()
    } else {
        DEFAULT
            .iter()
            .filter(|name| kept(name))
            .map(|&name| name.to_owned())
            .collect()
    };
    for name in add {
        if name != "ALL" && !set.contains(&name) {
            set.push(name);
        }
    }
    // Another user than root has none of them until it executes a program that gives it some.
    let own = if is_root { set.clone() } else { Vec::new() };
    Ok(Capabilities {
        bounding: set,
        effective: own.clone(),
        permitted: own,
        ..Capabilities::default()
    })
}

fn canonical(names: &[String]) -> Result<Vec<String>, Error> {
    let canonical = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || ALL.contains(&&*upper) {
            return Ok(upper);
        }
        let with_prefix = format!("CAP_{upper}");
        if ALL.contains(&&*with_prefix) {
            return Ok(with_prefix);
        }
        Err(Error::Invalid(format!(
            "there is no capability {name}: capabilities(7) lists them"
        )))
    };
    names.iter().map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounding(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        capabilities(&own(add), &own(drop), true)
            .expect("set")
            .bounding
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
        let set = capabilities(&[], &[], false).expect("set");
        assert!(set.effective.is_empty() && set.permitted.is_empty());
        assert_eq!(set.bounding.len(), 14);
        assert!(capabilities(&["FLY".into()], &[], true).is_err());
    }
}
