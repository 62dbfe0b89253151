//! A VM's moment, kept in a folder, and VMs that go on from it.
//!
//! - [`document`] is `state.json`: what is in it, its version and its checksum;
//! - [`memory`] is `memory`: the guest's memory, a sparse file;
//! - [`working_set`] is `working-set`: what of it a VM needs at once;
//! - [`bytes`] writes KVM's structures as text;
//! - [`open`] makes all of a VM out of these but KVM's side;
//! - [`host`] tells whether this host can go on with what another has begun;
//! - [`take`] makes a snapshot of a VM that is paused.
//!
//! [`crate::machine::Machine::restore`] is the way back.

pub(crate) mod bytes;
pub mod document;
pub mod host;
pub mod memory;
pub mod open;
pub mod take;
pub mod working_set;

use std::io;
use std::path::PathBuf;

use bulkhead_devices::legacy::serial::SerialStateError;
use bulkhead_devices::virtio::state::StateError;

use crate::cpu::state::VcpuStateError;

/// The folder's file with everything but memory.
pub const STATE_FILE: &str = "state.json";
/// The folder's file with the guest's memory.
pub const MEMORY_FILE: &str = "memory";
/// The folder's file that says which memory is needed at once. The first VM that goes on from it writes it.
pub const WORKING_SET_FILE: &str = "working-set";

/// Why a snapshot could not be taken or used. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file of it.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was being done.
        what: &'static str,
        /// To which.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is not one, or not whole.
    #[error("{path} is not a whole snapshot: {why}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// It was written by another version of Bulkhead.
    #[error(
        "the snapshot {path} has format {found}, and this Bulkhead reads {}: take it again with this one",
        document::FORMAT
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: u64,
    },
    /// It was taken where guests see another processor.
    #[error(
        "the snapshot was taken on {then}, and its guest cannot go on here, on {now} ({difference}): take it again on this host"
    )]
    Processor {
        /// That host's processor.
        then: String,
        /// This host's.
        now: String,
        /// What is different.
        difference: String,
    },
    /// What is asked for does not fit to it.
    #[error("the snapshot cannot be restored so: {0}")]
    Request(String),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// A device.
    #[error(transparent)]
    Device(#[from] StateError),
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] SerialStateError),
    /// KVM refused a step.
    #[error("KVM cannot {what}: {source}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// The VM ended.
    #[error("the VM ended while it was being saved")]
    Ended,
}

impl SnapshotError {
    /// Whether another snapshot would do. Files that cannot be opened or read are for the snapshot, unless the host
    /// lacks something.
    pub fn is_for_the_snapshot(&self) -> bool {
        match self {
            SnapshotError::Request(_) | SnapshotError::Ended => false,
            SnapshotError::File { source, .. } => {
                const LACKS: [i32; 4] = [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN];
                source.raw_os_error().is_some_and(|e| !LACKS.contains(&e))
            }
            _ => true,
        }
    }
}

pub(crate) fn kvm_cannot(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SnapshotError {
    move |source| SnapshotError::Kvm { what, source }
}
