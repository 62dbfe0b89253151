//! Kernel parameters. Only those that belong to a namespace of the container's own: any other would be the host's.

use super::c_string;
use super::layout::Layout;
use crate::error::Error;
use crate::namespaces::Namespaces;
use crate::plan::{Operation as O, Place, Slot};
use crate::spec::{Linux, NamespaceKind, Spec};

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Sets all of them.
pub fn set(
    spec: &Spec,
    linux: &Linux,
    namespaces: &Namespaces,
    layout: &Layout,
    operations: &mut Vec<O>,
) -> Result<(), Error> {
    for (name, value) in &linux.sysctl {
        let field = format!("linux.sysctl[{name:?}]");
        let path = path(name)
            .ok_or_else(|| Error::invalid(&*field, "it is no name of a kernel parameter"))?;
        let Some(namespace) = owner(&path) else {
            return Err(Error::invalid(
                field,
                "it belongs to no namespace, so that it would be the host's",
            ));
        };
        if !namespaces.has(namespace) {
            let problem = format!(
                "without a {} namespace it would be the host's",
                namespace.name()
            );
            return Err(Error::invalid(field, problem));
        }
        let other = match name.replace('/', ".").as_str() {
            "kernel.hostname" => Some("hostname"),
            "kernel.domainname" if spec.domainname.as_ref().is_some_and(|d| d != value) => {
                Some("domainname")
            }
            _ => None,
        };
        if let Some(other) = other {
            let problem = format!("the member {other:?} is for that");
            return Err(Error::invalid(field, problem));
        }
        if !layout.proc {
            return Err(Error::invalid(
                field,
                "it is set through /proc, which is not mounted",
            ));
        }
        if value.is_empty() || value.len() > 4096 {
            return Err(Error::invalid(field, "a value has 1 to 4096 bytes"));
        }
        let path = c_string(&field, &format!("sys/{path}"))?;
        let place = Place {
            slot: Some(Slot::Proc),
            path,
        };
        operations.push(O::Sysctl {
            place,
            value: value.clone().into_bytes(),
        });
    }
    Ok(())
}

/// Below /proc/sys. Between names are dots, or slashes where names hold dots.
fn path(name: &str) -> Option<String> {
    let path = match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => name.to_owned(),
        _ => name
            .replace(['.', '/'], "\0")
            .chars()
            .zip(name.chars())
            .map(swap)
            .collect(),
    };
    let valid =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    (path.len() < 512 && path.split('/').count() > 1 && path.split('/').all(valid)).then_some(path)
}

/// `net.ipv4.conf.eth0/1.mtu` is `net/ipv4/conf/eth0.1/mtu`.
fn swap((marked, original): (char, char)) -> char {
    match (marked, original) {
        ('\0', '.') => '/',
        ('\0', '/') => '.',
        (_, original) => original,
    }
}

fn owner(path: &str) -> Option<NamespaceKind> {
    let name = path.replace('/', ".");
    match name.as_str() {
        "kernel.hostname" | "kernel.domainname" => Some(NamespaceKind::Uts),
        name if IPC.contains(&name) || name.starts_with("fs.mqueue.") => Some(NamespaceKind::Ipc),
        name if name.starts_with("net.") => Some(NamespaceKind::Network),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_when_with_dots_or_slashes_then_the_same_path() {
        for name in ["net.ipv4.conf.eth0/1.mtu", "net/ipv4/conf/eth0.1/mtu"] {
            assert_eq!(path(name).as_deref(), Some("net/ipv4/conf/eth0.1/mtu"));
        }
    }

    #[test]
    fn name_when_it_leads_elsewhere_then_none() {
        for name in [
            "",
            "net",
            "net..a",
            "net/../kernel",
            "/net/a",
            "net.a.",
            "net.\0",
            "net/./a",
        ] {
            assert_eq!(path(name), None, "{name:?}");
        }
    }

    #[test]
    fn owner_when_of_no_namespace_then_none() {
        assert_eq!(owner("net/core/somaxconn"), Some(NamespaceKind::Network));
        assert_eq!(owner("kernel/core_pattern"), None);
        assert_eq!(owner("vm/swappiness"), None);
    }
}
