//! `state.json`: two lines, each a JSON document. The first says what the second is, with its checksum, so
//! that a file of another version is told from a damaged one.

use std::fs;
use std::io::Read;
use std::path::Path;

use bulkhead_devices::legacy::i8042::I8042State;
use bulkhead_devices::legacy::serial::SerialState;
use bulkhead_devices::virtio::state::DeviceState;
use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bytes::{encode, list, plain};
use super::host::HostState;
use super::memory::Extent;
use super::{STATE_FILE, SnapshotError};
use crate::config::{RestoreConfig, VmConfig};
use crate::cpu::state::VcpuState;

/// The only version that is read and written.
pub const FORMAT: u64 = 1;
/// Thirty-two vCPUs and a guest of a terabyte in pieces fit several times.
const MAX_SIZE: u64 = 256 << 20;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// [`FORMAT`].
    bulkhead_snapshot: u64,
    /// Of the second line without its end, in hexadecimal.
    #[serde(default)]
    sha256: String,
}

/// The second line: everything but memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The VM, as it was made. What was added to it when it was itself restored is in `added`.
    pub config: VmConfig,
    /// Devices in spare windows.
    pub added: RestoreConfig,
    /// The command line that its kernel was given.
    pub cmdline: String,
    /// Where it ran.
    pub host: HostState,
    /// Its processors, in their order.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer, clock.
    pub vm: VmState,
    /// The virtio devices, in the order of their windows.
    pub devices: Vec<DeviceState>,
    /// The serial port, if there is one.
    pub serial: Option<SerialState>,
    /// The keyboard controller, by which a PC is reset.
    pub i8042: I8042State,
    /// What of memory is not zero, in ascending order.
    pub memory: Vec<Extent>,
}

/// What KVM knows of the VM beside its vCPUs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// Both PICs and the I/O APIC.
    #[serde(with = "list")]
    pub irqchips: Vec<kvm_irqchip>,
    /// The interval timer.
    #[serde(with = "plain")]
    pub pit: kvm_pit_state2,
    /// kvmclock.
    #[serde(with = "plain")]
    pub clock: kvm_clock_data,
    /// The host's `CLOCK_REALTIME` at that moment, in nanoseconds since 1970.
    pub unix_ns: u64,
}

impl State {
    /// The file's text.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let body = serde_json::to_string(self)?;
        let header = serde_json::to_string(&Header {
            bulkhead_snapshot: FORMAT,
            sha256: encode(&Sha256::digest(&body)),
        })?;
        Ok(format!("{header}\n{body}\n"))
    }

    /// Reads and checks the file in `folder`.
    pub fn load(folder: &Path) -> Result<Self, SnapshotError> {
        let path = folder.join(STATE_FILE);
        let mut text = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text))
            .map_err(|source| SnapshotError::File {
                what: "read the snapshot",
                path: path.clone(),
                source,
            })?;
        Self::parse(&text, &path)
    }

    /// Reads the text of a file that is called `path`.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, SnapshotError> {
        let damaged = |why: String| SnapshotError::Damaged {
            path: path.to_owned(),
            why,
        };
        let end = text.iter().position(|byte| *byte == b'\n');
        let (header, body) = match end.and_then(|end| text.split_at_checked(end)) {
            Some((header, rest)) => (header, rest.get(1..).unwrap_or_default()),
            None => (text, &[][..]),
        };
        let header: Header = serde_json::from_slice(header)
            .map_err(|e| damaged(format!("its first line is no header: {e}")))?;
        if header.bulkhead_snapshot != FORMAT {
            return Err(SnapshotError::Format {
                path: path.to_owned(),
                found: header.bulkhead_snapshot,
            });
        }
        let Some(body) = body.strip_suffix(b"\n") else {
            return Err(damaged("its end is missing".to_owned()));
        };
        if encode(&Sha256::digest(body)) != header.sha256 {
            return Err(damaged("its checksum is wrong".to_owned()));
        }
        let state: State = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        state.check().map_err(damaged)?;
        Ok(state)
    }

    /// What must hold before any of it is used: whoever can write a checksum can write anything else.
    fn check(&self) -> Result<(), String> {
        self.config.validate().map_err(|e| e.to_string())?;
        let counts = [
            ("vCPUs", self.vcpus.len(), self.config.cpus as usize),
            (
                "devices",
                self.devices.len(),
                self.config.virtio_devices() + self.added.virtio_devices(),
            ),
            ("interrupt controllers", self.vm.irqchips.len(), 3),
        ];
        for (what, found, wanted) in counts {
            if found != wanted {
                return Err(format!("it has {found} {what} where {wanted} belong"));
            }
        }
        if self.added.virtio_devices() > self.config.spare_slots {
            return Err("it has more devices than windows".to_owned());
        }
        if self.serial.is_some() != self.config.serial {
            return Err("it does not say what the serial port was like".to_owned());
        }
        Extent::check(&self.memory, self.config.memory_mib << 20)
    }

    /// The VM that is made from it, with the addresses and sockets that `wanted` gives it; and the devices in
    /// its spare windows: those that it had there, or those that are wanted.
    pub fn restored_config(
        &self,
        mut wanted: RestoreConfig,
    ) -> Result<(VmConfig, RestoreConfig), SnapshotError> {
        let refused = |why: String| Err(SnapshotError::Request(why));
        if let Err(e) = wanted.validate() {
            return refused(e.to_string());
        }
        let mut config = self.config.clone();
        config.control_socket = None;
        match (&mut config.vsock, &wanted.vsock) {
            (Some(ours), Some(theirs)) => *ours = theirs.clone(),
            (None, None) => {}
            (Some(_), None) => {
                return refused("its socket device needs an address and a socket".to_owned());
            }
            (None, Some(_)) => return refused("it has no socket device".to_owned()),
        }
        let mut added_disks = self.added.disks.clone();
        // Those of the next snapshot are where they are now.
        let replaced = std::mem::take(&mut wanted.replaced_disks).into_iter();
        let emptied = std::mem::take(&mut wanted.emptied_disks).into_iter();
        let replaced = replaced.map(|(index, path)| (index, Some(path)));
        for (index, path) in replaced.chain(emptied.map(|index| (index, None))) {
            let mut disks = config.disks.iter_mut().chain(&mut added_disks);
            match disks.nth(index) {
                Some(disk) => disk.path = path,
                None => {
                    let count = config.disks.len() + added_disks.len();
                    return refused(format!("it has no disk {index}, only {count} from 0 on"));
                }
            }
        }
        let (asked, spare) = (wanted.virtio_devices(), self.config.spare_slots);
        if self.added.virtio_devices() > 0 {
            if asked > 0 {
                return refused("its spare windows have devices already".to_owned());
            }
            let added = RestoreConfig {
                disks: added_disks,
                nets: self.added.nets.clone(),
                shares: self.added.shares.clone(),
                ..wanted
            };
            return Ok((config, added));
        }
        if asked > spare {
            return refused(format!(
                "{asked} more devices do not fit in the {spare} spare windows it has"
            ));
        }
        Ok((config, wanted))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::assist::HostKind;
    use crate::config::DiskConfig;

    fn disk(path: &str) -> DiskConfig {
        DiskConfig {
            path: Some(path.into()),
            read_only: false,
            serial: None,
            rate_limit: None,
        }
    }

    /// A state with these disks of its own and these in spare windows.
    fn state(own: &[&str], added: &[&str]) -> State {
        let document = r#"{"kernel": {"path": "vmlinux"}, "spare_slots": 4}"#;
        let mut config: VmConfig = serde_json::from_str(document).expect("config");
        config.disks = own.iter().map(|path| disk(path)).collect();
        State {
            config,
            added: RestoreConfig {
                disks: added.iter().map(|path| disk(path)).collect(),
                ..RestoreConfig::default()
            },
            cmdline: String::new(),
            host: HostState::this(HostKind::Hardware),
            vcpus: Vec::new(),
            vm: VmState {
                irqchips: Vec::new(),
                pit: kvm_pit_state2::default(),
                clock: kvm_clock_data::default(),
                unix_ns: 0,
            },
            devices: Vec::new(),
            serial: None,
            i8042: bulkhead_devices::legacy::i8042::I8042::new(std::sync::Arc::new(
                bulkhead_devices::legacy::exit_signal::ExitSignal::new().expect("eventfd"),
            ))
            .save(),
            memory: Vec::new(),
        }
    }

    fn wanted(replaced: &[(usize, &str)]) -> RestoreConfig {
        let replaced = replaced.iter().map(|(index, path)| (*index, path.into()));
        RestoreConfig {
            replaced_disks: replaced.collect::<BTreeMap<usize, PathBuf>>(),
            ..RestoreConfig::default()
        }
    }

    fn paths(disks: &[DiskConfig]) -> Vec<&str> {
        let paths = disks.iter().filter_map(|disk| disk.path.as_ref()?.to_str());
        paths.collect()
    }

    #[test]
    fn disks_when_replaced_are_the_own_ones_and_then_the_added_ones() {
        let state = state(&["a", "b"], &["c"]);
        let restored = state.restored_config(wanted(&[(1, "B"), (2, "C")]));
        let (config, added) = restored.expect("restored");
        assert_eq!(paths(&config.disks), ["a", "B"]);
        assert_eq!(paths(&added.disks), ["C"]);
        assert!(added.replaced_disks.is_empty());
    }

    #[test]
    fn disk_when_there_is_none_to_replace_is_refused() {
        let state = state(&["a"], &[]);
        let refused = state.restored_config(wanted(&[(1, "B")]));
        let refused = refused.expect_err("there is no such disk").to_string();
        assert!(refused.contains("no disk 1, only 1"), "{refused}");
        // What is added now is named as it is wanted.
        let mut both = wanted(&[(1, "B")]);
        both.disks = vec![disk("new")];
        state
            .restored_config(both)
            .expect_err("it is not of the snapshot");
    }

    #[test]
    fn disk_when_it_is_taken_out_leaves_an_empty_drive() {
        let state = state(&["a", "b"], &[]);
        let emptied = |index| RestoreConfig {
            emptied_disks: vec![index],
            ..RestoreConfig::default()
        };
        let (config, added) = state.restored_config(emptied(1)).expect("restored");
        assert_eq!(config.disks.len(), 2);
        assert_eq!(paths(&config.disks), ["a"]);
        assert!(added.emptied_disks.is_empty());
        let refused = state.restored_config(emptied(2)).expect_err("no such disk");
        assert!(refused.to_string().contains("no disk 2"), "{refused}");
    }

    #[test]
    fn document_of_replaced_disks_is_read_as_it_is_written() {
        let text = r#"{"replaced_disks": {"3": "/there"}}"#;
        let config: RestoreConfig = serde_json::from_str(text).expect("read");
        assert_eq!(config, wanted(&[(3, "/there")]));
        let again = serde_json::to_string(&config).expect("write");
        assert_eq!(
            serde_json::from_str::<RestoreConfig>(&again).expect("read"),
            config
        );
    }
}
