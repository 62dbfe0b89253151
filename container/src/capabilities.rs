//! The kernel's capabilities(7) by name.

use rustix::io::Errno;

use crate::error::Error;
use crate::spec::Capabilities;

/// In the kernel's order: the place in the list is the number.
const NAMES: [&str; 41] = [
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

/// What Docker gives a container unless it is told otherwise.
pub const DOCKER_DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The number of `CAP_SYS_ADMIN`.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;
/// That of `CAP_SYS_PTRACE`.
const SYS_PTRACE: u64 = 1 << 19;
/// All that a kernel may have.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// All names that the kernel knows, for `--privileged` and `--cap-add ALL`.
pub fn all() -> &'static [&'static str] {
    &NAMES
}

/// A capability as a person writes it (`net_admin`, `NET_ADMIN`, `CAP_NET_ADMIN`), by its full name.
pub fn by_name(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .into_iter()
        .find(|full| full.strip_prefix("CAP_") == Some(short))
}

/// Bit n is capability n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Sets {
    /// Whether a process with these, or what it executes, may look into processes that are undumpable.
    pub fn may_trace(&self) -> bool {
        (self.bounding | self.permitted) & SYS_PTRACE != 0
    }
}

/// Reads the sets, and takes out of them what is not available: a runtime that has not a capability itself cannot give it.
pub(crate) fn sets(capabilities: Option<&Capabilities>, available: u64) -> Result<Sets, Error> {
    let Some(capabilities) = capabilities else {
        return Ok(Sets::default());
    };
    let set = |name: &str, list: &[String]| {
        let mut bits = 0;
        for (i, capability) in list.iter().enumerate() {
            let number = NAMES.iter().position(|n| n == capability).ok_or_else(|| {
                let field = format!("process.capabilities.{name}[{i}]");
                Error::invalid(field, format!("there is no capability {capability:?}"))
            })?;
            bits |= 1 << number;
        }
        Ok(bits & available)
    };
    let mut sets = Sets {
        bounding: set("bounding", &capabilities.bounding)?,
        effective: set("effective", &capabilities.effective)?,
        permitted: set("permitted", &capabilities.permitted)?,
        inheritable: set("inheritable", &capabilities.inheritable)?,
        ambient: set("ambient", &capabilities.ambient)?,
    };
    if sets.effective & !sets.permitted != 0 {
        let problem = "it has a capability that process.capabilities.permitted lacks";
        return Err(Error::invalid("process.capabilities.effective", problem));
    }
    if sets.inheritable & !sets.bounding != 0 {
        // The kernel would say so only when the program is about to run.
        return Err(Error::step(
            "give the program",
            "process.capabilities.inheritable, which process.capabilities.bounding has not all of",
            Errno::PERM,
        ));
    }
    // The kernel takes only these, and Docker's older configurations have more.
    sets.ambient &= sets.permitted & sets.inheritable;
    Ok(sets)
}

/// Those of a configuration that are not available, each said once: who cannot give them is to tell (runtime-spec
/// config.md#linux-process).
pub(crate) fn unavailable(capabilities: &Capabilities, available: u64) -> Vec<Error> {
    let lists = [
        ("bounding", &capabilities.bounding),
        ("effective", &capabilities.effective),
        ("permitted", &capabilities.permitted),
        ("inheritable", &capabilities.inheritable),
        ("ambient", &capabilities.ambient),
    ];
    let mut told = available;
    let mut errors = Vec::new();
    for (set, list) in lists {
        for (i, capability) in list.iter().enumerate() {
            let number = NAMES.iter().position(|name| name == capability);
            let bit = number.map_or(0, |number| 1 << number);
            if bit & !told != 0 {
                told |= bit;
                let field = format!("process.capabilities.{set}[{i}]");
                let problem =
                    format!("this process lacks {capability} itself, and goes on without");
                errors.push(Error::invalid(field, problem));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn names_when_numbered_then_as_the_kernel_does() {
        let number = |name| NAMES.iter().position(|&n| n == name);
        assert_eq!(number("CAP_SYS_ADMIN").map(|n| 1 << n), Some(SYS_ADMIN));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(by_name("net_admin"), Some("CAP_NET_ADMIN"));
        assert_eq!(by_name("cap_Bpf"), Some("CAP_BPF"));
        assert_eq!(by_name("ADMIN"), None);
    }

    #[test]
    fn sets_when_read_then_only_what_is_available() {
        let capabilities = Capabilities {
            permitted: list(&["CAP_CHOWN", "CAP_BPF"]),
            effective: list(&["CAP_CHOWN"]),
            ambient: list(&["CAP_CHOWN"]),
            ..Capabilities::default()
        };
        let read = sets(Some(&capabilities), 1).expect("valid");
        assert_eq!((read.permitted, read.effective, read.ambient), (1, 1, 0));
    }

    #[test]
    fn sets_when_more_is_inheritable_than_bounding_then_refused_as_the_kernel_would() {
        let capabilities = Capabilities {
            bounding: list(&["CAP_BPF"]),
            inheritable: list(&["CAP_CHOWN"]),
            ..Capabilities::default()
        };
        let error = sets(Some(&capabilities), ALL)
            .expect_err("more")
            .to_string();
        assert!(
            error.contains("bounding") && error.contains("not permitted"),
            "{error}"
        );
    }

    #[test]
    fn capabilities_when_unavailable_then_each_is_said_once() {
        let wanted = Capabilities {
            bounding: list(&["CAP_CHOWN", "CAP_BPF"]),
            permitted: list(&["CAP_BPF"]),
            ..Capabilities::default()
        };
        let said = unavailable(&wanted, 1);
        assert_eq!(said.len(), 1, "{said:?}");
        let said = said.first().map(ToString::to_string).unwrap_or_default();
        assert!(said.starts_with("process.capabilities.bounding[1]: this process lacks CAP_BPF"));
        assert!(unavailable(&wanted, ALL).is_empty());
    }

    #[test]
    fn sets_when_wrong_then_the_member_is_named() {
        let unknown = Capabilities {
            bounding: list(&["CAP_CHOWN", "CHOWN"]),
            ..Capabilities::default()
        };
        let error = sets(Some(&unknown), ALL)
            .expect_err("no prefix")
            .to_string();
        assert_eq!(
            error,
            "process.capabilities.bounding[1]: there is no capability \"CHOWN\""
        );
        let more = Capabilities {
            effective: list(&["CAP_CHOWN"]),
            ..Capabilities::default()
        };
        assert!(sets(Some(&more), ALL).is_err());
    }
}
