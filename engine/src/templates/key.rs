//! What a template is known by: everything that it depends on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_image::Digest;
use serde::{Deserialize, Serialize};

use crate::artifacts::Artifact;
use crate::error::{Error, cannot};
use crate::record::Machine;
use crate::vm::{CMDLINE, SPARE_SLOTS};

/// Counted up when templates are made in another way.
pub const FORMAT: u32 = 3;
/// Hexadecimal digits of a key: short enough for a name, and no two alike.
const DIGITS: usize = 32;

/// What a template is made of. Another one of anything makes another template.
#[derive(Debug, Clone, Serialize)]
pub struct Ingredients {
    format: u32,
    kernel: Identity,
    agent: Identity,
    vmm: Identity,
    machine: Machine,
    cmdline: String,
    spare_slots: usize,
    host: Host,
}

impl Ingredients {
    /// Those of a machine of this shape, here and now.
    pub fn of(machine: Machine) -> Result<Self, Error> {
        Ok(Ingredients {
            format: FORMAT,
            kernel: Identity::of_artifact(Artifact::Kernel)?,
            agent: Identity::of_artifact(Artifact::AgentImage)?,
            vmm: Identity::of_artifact(Artifact::Vmm)?,
            machine,
            cmdline: CMDLINE.to_owned(),
            spare_slots: SPARE_SLOTS,
            host: Host::this(),
        })
    }

    /// The key: a name for a folder.
    pub fn key(&self) -> Result<String, Error> {
        let text = serde_json::to_vec(self).map_err(cannot("name a template"))?;
        let mut key = Digest::of(&text).hex();
        key.truncate(DIGITS);
        Ok(key)
    }
}

/// Whether `name` is a key.
pub fn is_key(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file as it is now: one that was written to, or replaced, is another. To read it all would cost a start more
/// than it saves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// That of a part of Bulkhead, where it is found now.
    pub fn of_artifact(artifact: Artifact) -> Result<Self, Error> {
        let path = artifact.find()?;
        Identity::of(&path).map_err(cannot(format!("look at {}", path.display())))
    }

    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// What of the host a guest has seen while it booted: its processor, and the kernel whose KVM it is. Of another boot of
/// the host all memory would be compared with its checksums at each start, which in time takes longer than to make another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Host {
    processor: Vec<String>,
    release: String,
    boot: String,
}

impl Host {
    fn this() -> Self {
        let table = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let uname = rustix::system::uname();
        Host {
            processor: processor(&table),
            release: uname.release().to_string_lossy().into_owned(),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        }
    }
}

/// Which processor the first in a `/proc/cpuinfo` is. Microcode is left out: it is loaded again at every boot, and
/// what it changes of the features is for the VMM to see.
fn processor(table: &str) -> Vec<String> {
    const FIELDS: [&str; 4] = ["vendor_id", "cpu family", "model", "stepping"];
    let first = table.lines().take_while(|line| !line.is_empty());
    first
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            FIELDS
                .contains(&name.trim())
                .then(|| value.trim().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingredients() -> Ingredients {
        let identity = Identity {
            device: 1,
            inode: 2,
            bytes: 3,
            modified: (4, 5),
            changed: (6, 7),
        };
        Ingredients {
            format: 1,
            kernel: identity.clone(),
            agent: identity.clone(),
            vmm: identity,
            machine: Machine {
                cpus: 1,
                memory_mib: 512,
            },
            cmdline: "quiet".into(),
            spare_slots: 8,
            host: Host {
                processor: vec!["AuthenticAMD".into(), "25".into()],
                release: "6.12".into(),
                boot: "0123".into(),
            },
        }
    }

    #[test]
    fn key_when_anything_changes_is_another() {
        let changes: [fn(&mut Ingredients); 17] = [
            |_| {},
            |i| i.format = 2,
            |i| i.kernel.device = 9,
            |i| i.kernel.inode = 9,
            |i| i.kernel.bytes = 9,
            |i| i.kernel.modified.0 = 9,
            |i| i.kernel.modified.1 = 9,
            |i| i.kernel.changed.1 = 9,
            |i| i.agent.inode = 9,
            |i| i.vmm.inode = 9,
            |i| i.machine.cpus = 2,
            |i| i.machine.memory_mib = 256,
            |i| i.cmdline.push('x'),
            |i| i.spare_slots = 9,
            |i| i.host.processor[1] = "26".into(),
            |i| i.host.release.push('1'),
            |i| i.host.boot.push('4'),
        ];
        let keys: std::collections::BTreeSet<String> = changes
            .iter()
            .map(|change| {
                let mut ingredients = ingredients();
                change(&mut ingredients);
                ingredients.key().expect("key")
            })
            .collect();
        assert_eq!(keys.len(), changes.len());
        assert!(keys.iter().all(|key| is_key(key)));
        assert!(keys.contains(&ingredients().key().expect("key")));
    }

    #[test]
    fn name_when_it_is_no_key_is_told() {
        let key = "0123456789abcdef0123456789abcdef";
        assert!(is_key(key));
        for name in ["", &key[1..], "..", &key.replace('0', "g"), ".making.0.1"] {
            assert!(!is_key(name), "{name}");
        }
    }

    #[test]
    fn file_when_it_is_replaced_by_the_same_bytes_is_another() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("vmlinux");
        fs::write(&path, "kernel").expect("write");
        let first = Identity::of(&path).expect("stat");
        assert_eq!(first, Identity::of(&path).expect("stat"));
        let new = dir.path().join("new");
        fs::write(&new, "kernel").expect("write");
        fs::rename(&new, &path).expect("rename");
        assert_ne!(first, Identity::of(&path).expect("stat"));
    }

    #[test]
    fn processor_is_the_first_one_of_the_table() {
        let table = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n\
            model name\t: X: y\nstepping\t: 8\nmicrocode\t: 0x1\n\nprocessor\t: 1\nmodel\t: 1\n";
        assert_eq!(processor(table), ["GenuineIntel", "6", "143", "8"]);
    }
}
