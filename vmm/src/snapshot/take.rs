//! Takes a snapshot of a VM.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_devices::GuestMemory;
use bulkhead_devices::legacy::i8042::I8042;
use bulkhead_devices::legacy::serial::Serial;
use bulkhead_devices::virtio::mmio::MmioTransport;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::document::{State, VmState};
use super::host::HostState;
use super::{STATE_FILE, SnapshotError, kvm_cannot, memory};
use crate::assist::HostKind;
use crate::config::{RestoreConfig, VmConfig};
use crate::vcpu::RunControl;

/// The parts of a VM that are saved.
pub struct Parts<'a> {
    /// What it was made from.
    pub config: &'a VmConfig,
    /// What was added to it when it was restored.
    pub added: &'a RestoreConfig,
    /// The command line that its kernel was given.
    pub cmdline: &'a str,
    /// The host's kind.
    pub host: HostKind,
    /// Pauses it.
    pub run: &'a RunControl,
    /// KVM's side of it.
    pub vm: &'a VmFd,
    /// Its memory.
    pub memory: &'a GuestMemory,
    /// Its virtio devices.
    pub devices: &'a [Arc<MmioTransport>],
    /// Its serial port.
    pub serial: Option<&'a Serial>,
    /// Its keyboard controller.
    pub i8042: &'a I8042,
}

/// Takes a snapshot into `folder`, which must not be there yet and is only left there whole. Called on the
/// event loop, so that no device works meanwhile. A VM that runs is paused for it and then runs on.
pub fn take(parts: &Parts<'_>, folder: &Path) -> Result<(), SnapshotError> {
    let failed = |what| {
        move |source| SnapshotError::File {
            what,
            path: folder.to_owned(),
            source,
        }
    };
    DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(failed("make the snapshot's folder"))?;
    let was_paused = parts.run.is_paused();
    parts.run.pause();
    let saved = save(parts, folder);
    if !was_paused {
        parts.run.resume();
    }
    if saved.is_err() {
        // What is left of it harms nobody but by its size.
        let _ = fs::remove_dir_all(folder);
    }
    saved
}

fn save(parts: &Parts<'_>, folder: &Path) -> Result<(), SnapshotError> {
    // Devices first: what they finish now may still interrupt a vCPU.
    let devices = parts
        .devices
        .iter()
        .map(|device| device.save())
        .collect::<Result<_, _>>()?;
    let vcpus = parts.run.save().ok_or(SnapshotError::Ended)?;
    let state = State {
        config: parts.config.clone(),
        added: parts.added.clone(),
        cmdline: parts.cmdline.to_owned(),
        host: HostState::this(parts.host),
        vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
        vm: save_vm(parts.vm)?,
        devices,
        serial: parts.serial.map(Serial::save),
        i8042: parts.i8042.save(),
        memory: memory::write(parts.memory, folder)?,
    };
    let path = folder.join(STATE_FILE);
    let written = state
        .to_text()
        .map_err(std::io::Error::other)
        .and_then(|text| {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(text.as_bytes())
        });
    written.map_err(|source| SnapshotError::File {
        what: "write the snapshot",
        path,
        source,
    })
}

fn save_vm(vm: &VmFd) -> Result<VmState, SnapshotError> {
    let chips = [
        KVM_IRQCHIP_PIC_MASTER,
        KVM_IRQCHIP_PIC_SLAVE,
        KVM_IRQCHIP_IOAPIC,
    ];
    let irqchips = chips
        .into_iter()
        .map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).map(|()| chip)
        })
        .collect::<Result<_, _>>()
        .map_err(kvm_cannot("read the interrupt controllers"))?;
    let pit = vm.get_pit2().map_err(kvm_cannot("read the timer"))?;
    // These two together: they are how long the guest will have slept.
    let clock = vm.get_clock().map_err(kvm_cannot("read the clock"))?;
    Ok(VmState {
        irqchips,
        pit,
        clock,
        unix_ns: unix_ns(),
    })
}

/// Puts back what is not the clock.
pub fn restore_vm(vm: &VmFd, state: &VmState) -> Result<(), SnapshotError> {
    for chip in &state.irqchips {
        vm.set_irqchip(chip)
            .map_err(kvm_cannot("set the interrupt controllers"))?;
    }
    vm.set_pit2(&state.pit).map_err(kvm_cannot("set the timer"))
}

/// Puts the clock back, and says how long the guest has slept, in nanoseconds of the host's `CLOCK_REALTIME`.
pub fn restore_clock(vm: &VmFd, state: &VmState) -> Result<u64, SnapshotError> {
    let clock = kvm_bindings::kvm_clock_data {
        clock: state.clock.clock,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(kvm_cannot("set the clock"))?;
    // A host whose clock was set back meanwhile does not set guests back.
    Ok(unix_ns().saturating_sub(state.unix_ns))
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
