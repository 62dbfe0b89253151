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
        wanted: RestoreConfig,
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
        let (asked, spare) = (wanted.virtio_devices(), self.config.spare_slots);
        if self.added.virtio_devices() > 0 {
            if asked > 0 {
                return refused("its spare windows have devices already".to_owned());
            }
            let added = RestoreConfig {
                disks: self.added.disks.clone(),
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
