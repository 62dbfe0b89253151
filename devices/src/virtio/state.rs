//! What a device is like between two moments of its life: what a snapshot keeps of it.
//!
//! A state comes from a file, so nothing of it is believed: whatever restores a device checks it
//! against the device and against guest memory, and what a hostile one can do is no more than what a
//! hostile driver can.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ActivateError;

/// One queue as the driver configured it, and how far the device got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Descriptors, as many as the driver chose.
    pub size: u16,
    /// Whether the driver uses it.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub available_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// The available ring's index that the device takes next.
    pub next_available: u16,
    /// The used ring's index that the device fills next.
    pub next_used: u16,
    /// The used ring's index up to which the driver was told.
    pub signalled: u16,
}

/// One device behind its transport.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// From [`super::device_id`].
    pub device_type: u32,
    /// The `Status` register, without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// The feature bits the driver has written.
    pub driver_features: u64,
    /// The `DeviceFeaturesSel` register.
    pub device_features_select: u32,
    /// The `DriverFeaturesSel` register.
    pub driver_features_select: u32,
    /// The `QueueSel` register.
    pub queue_select: u32,
    /// The `InterruptStatus` register.
    pub interrupt_status: u32,
    /// The `ConfigGeneration` register.
    pub config_generation: u32,
    /// Whether the device has asked for a reset and waits for it.
    pub needs_reset: bool,
    /// All of the device's queues, in order.
    pub queues: Vec<QueueState>,
    /// The device's own, which only a device of its kind can read.
    pub device: serde_json::Value,
}

/// Why a device cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no saving a device of this kind.
    #[error("{device} cannot be saved: {why}")]
    NotSupported {
        /// The device's word for logs.
        device: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The device at hand is not the one that was saved.
    #[error("{device} is not as it was saved: {what}")]
    Mismatch {
        /// The device's word for logs.
        device: String,
        /// What differs.
        what: String,
    },
    /// No device of ours was ever in such a state.
    #[error("the saved state of {device} is damaged: {what}")]
    Malformed {
        /// The device's word for logs.
        device: String,
        /// What is wrong.
        what: String,
    },
    /// A queue of the state is not in guest memory, or not as guest memory has it.
    #[error("the saved state of {device} is damaged: queue {queue} {why}")]
    BadQueue {
        /// The device's word for logs.
        device: String,
        /// The queue's index.
        queue: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A device is restored once, before anything else is done with it.
    #[error("{device} is in use already and cannot be restored")]
    InUse {
        /// The device's word for logs.
        device: String,
    },
    /// A resource of the host that the device needs could not be had.
    #[error("{device} cannot go on: {what}: {source}")]
    Host {
        /// The device's word for logs.
        device: String,
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
}

impl StateError {
    /// A device cannot start with what its state says.
    pub fn activating(device: &str, error: ActivateError) -> Self {
        let device = device.to_owned();
        let (queue, why) = match error {
            ActivateError::MissingQueue(queue) => (queue, "is missing"),
            ActivateError::BadQueue(queue) => (queue, "is not in guest memory"),
            ActivateError::Host(what, source) => {
                return StateError::Host {
                    device,
                    what,
                    source,
                };
            }
        };
        StateError::BadQueue { device, queue, why }
    }
}

/// How far a device got with a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueuePosition {
    /// The available ring's index that the device takes next.
    pub next_available: u16,
    /// The used ring's index that the device fills next.
    pub next_used: u16,
    /// The used ring's index up to which the driver was told.
    pub signalled: u16,
}

impl QueuePosition {
    /// The same with the `count` chains last popped put back, for whoever goes on from here to pop
    /// again.
    #[must_use]
    pub fn put_back(self, count: u16) -> Self {
        QueuePosition {
            next_available: self.next_available.wrapping_sub(count),
            ..self
        }
    }
}

/// What a device says of itself; the rest its transport knows.
#[derive(Debug, Clone, Default)]
pub struct SavedDevice {
    /// How far it got, by queue index. `None`, or left out: with a queue that it does not work on.
    pub queues: Vec<Option<QueuePosition>>,
    /// What the same kind of device needs to go on from there.
    pub own: serde_json::Value,
}

impl SavedDevice {
    /// Puts `own` into words.
    pub fn new<T: Serialize>(
        device: &str,
        queues: Vec<Option<QueuePosition>>,
        own: &T,
    ) -> Result<Self, StateError> {
        let own = serde_json::to_value(own).map_err(|e| malformed(device, &e))?;
        Ok(SavedDevice { queues, own })
    }
}

/// Reads a device's own state.
pub(super) fn read_own<T: DeserializeOwned>(
    device: &str,
    own: &serde_json::Value,
) -> Result<T, StateError> {
    T::deserialize(own).map_err(|e| malformed(device, &e))
}

fn malformed(device: &str, error: &serde_json::Error) -> StateError {
    StateError::Malformed {
        device: device.to_owned(),
        what: error.to_string(),
    }
}
