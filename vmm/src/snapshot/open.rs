//! Opens a snapshot: all of a VM that goes on from it but KVM's side.

use std::path::Path;
use std::sync::Arc;

use bulkhead_devices::GuestMemory;

use super::document::State;
use super::working_set::WorkingSet;
use super::{SnapshotError, memory};
use crate::assist::HostKind;
use crate::attach::Devices;
use crate::config::{RestoreConfig, Verify, VmConfig};
use crate::exit::ExitSlot;
use crate::machine::MachineError;
use crate::memory::Backing;
use crate::timing::{self, StartTimes};

/// A VM that goes on from a snapshot, without KVM's side.
pub struct Opened {
    /// What was saved.
    pub state: State,
    /// What it is made from.
    pub config: VmConfig,
    /// What is added to it.
    pub added: RestoreConfig,
    /// The host's kind, if the host has not booted since.
    pub kind: Option<HostKind>,
    /// Its memory, as it was.
    pub memory: Arc<GuestMemory>,
    /// Whether it had at once what it will need of that.
    pub prefetched: bool,
    /// Its devices, as they were.
    pub devices: Devices,
}

impl Opened {
    /// Opens the snapshot in `folder`, for a VM as `wanted`.
    pub fn of(
        folder: &Path,
        wanted: RestoreConfig,
        exit: &Arc<ExitSlot>,
        times: &mut StartTimes,
    ) -> Result<Self, MachineError> {
        let state = State::load(folder)?;
        let (config, added) = state.restored_config(wanted)?;
        let kind = state.host.known_kind();
        times.host_ns = timing::now();

        let backing = match added.shares.is_empty() {
            true => Backing::Memfd,
            false => Backing::Shared,
        };
        let mib = config.memory_mib;
        let verify = added.verify == Verify::Always || kind.is_none();
        let memory = memory::restore(folder, mib, &state.memory, verify, backing)?;
        // Memory that is shared was copied, and is all there.
        let prefetched = backing == Backing::Shared || prefetch(folder, &memory);
        let memory = Arc::new(memory);
        times.memory_ns = timing::now();

        let devices = Devices::open(&config, Some(&added), &memory, exit)?;
        for (device, state) in devices.virtio.iter().zip(&state.devices) {
            device.restore(state).map_err(SnapshotError::from)?;
        }
        if let (Some(serial), Some(state)) = (&devices.serial, &state.serial) {
            serial.restore(state).map_err(SnapshotError::from)?;
        }
        devices.i8042.restore(&state.i8042);
        times.kernel_ns = timing::now();
        Ok(Opened {
            state,
            config,
            added,
            kind,
            memory,
            prefetched,
            devices,
        })
    }
}

/// Whether there is a working set, which this process then has.
fn prefetch(folder: &Path, memory: &GuestMemory) -> bool {
    match WorkingSet::read(folder, memory) {
        Ok(Some(set)) => {
            set.prefetch(memory);
            true
        }
        Ok(None) => false,
        Err(e) => {
            log::info!("going on without the snapshot's working set: {e}");
            false
        }
    }
}
