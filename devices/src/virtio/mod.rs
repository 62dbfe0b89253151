//! Virtio devices (virtio 1.2) and the one transport they sit behind, virtio-mmio.
//!
//! The pieces, from the guest inwards:
//! - [`mmio::MmioTransport`] answers the registers and negotiates;
//! - [`queue::VirtQueue`] takes descriptor chains off a ring and puts used ones back;
//! - [`chain::DescriptorChain`] is one request, validated whole before any of it is used;
//! - a [`VirtioDevice`] gives them meaning.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
#[cfg(any(test, feature = "test-driver"))]
pub mod driver;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod placeholder;
pub mod queue;
pub mod rng;
pub mod state;
pub mod vsock;
pub mod wakeup;

use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use interrupt::Interrupt;
use queue::VirtQueue;
use state::{SavedDevice, StateError};

/// Device types (virtio 1.2 §5).
pub mod device_id {
    /// Network card.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const RNG: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Socket device.
    pub const VSOCK: u32 = 19;
    /// File system.
    pub const FS: u32 = 26;
}

/// What the driver and the transport hand to a device when the driver sets `DRIVER_OK`.
pub struct Activation {
    /// The guest's memory, for as long as the device is active.
    pub memory: Arc<GuestMemory>,
    /// One entry for each queue of [`VirtioDevice::queue_sizes`], in order. `None` where the driver
    /// left the queue unused, as it may for an optional one.
    pub queues: Vec<Option<VirtQueue>>,
    /// The feature bits both sides agreed on.
    pub features: u64,
}

impl Activation {
    /// Takes queue `index`, which this device cannot do without.
    pub fn take_queue(&mut self, index: usize) -> Result<VirtQueue, ActivateError> {
        self.queues
            .get_mut(index)
            .and_then(Option::take)
            .ok_or(ActivateError::MissingQueue(index))
    }
}

/// Why a device could not start with what the driver had set up. The guest sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue the device needs was not made ready.
    #[error("queue {0} was not set up by the driver")]
    MissingQueue(usize),
    /// A queue's rings are not in guest memory, or its size or alignment is wrong.
    #[error("queue {0} was set up outside guest memory or with a bad size")]
    BadQueue(usize),
    /// A resource of the host that the device needs could not be had.
    #[error("{0}: {1}")]
    Host(&'static str, std::io::Error),
}

/// A file descriptor a device wants watched, and the token it wants to be called with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSource {
    /// The descriptor. The device owns it and keeps it open as long as the device lives.
    pub fd: RawFd,
    /// Handed back to [`VirtioDevice::process_event`]; unique within the device.
    pub token: u32,
    /// Watch for `EPOLLET` edges. A device that may leave input unread (no buffers, rate limited)
    /// asks for edges, or the loop would spin on it.
    pub edge: bool,
    /// Also watch for writability (edge-triggered sources only).
    pub writable: bool,
}

/// A virtio device behind a transport.
///
/// All methods are called with the transport's lock held, so one at a time: `activate`, `reset` and
/// the configuration space from vCPU threads, the two `process` methods from the event loop.
pub trait VirtioDevice: Send {
    /// The device type, from [`device_id`].
    fn device_type(&self) -> u32;

    /// A word for logs and metrics, like `block0`.
    fn name(&self) -> &str;

    /// The largest size of each queue, in descriptors: powers of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The device-specific feature bits offered. The transport adds `VERSION_1`, `EVENT_IDX` and
    /// `INDIRECT_DESC`.
    fn features(&self) -> u64;

    /// Reads the configuration space. Bytes beyond its end are left as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Receives the interrupt line, once, before anything else.
    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>);

    /// Offers the eventfds that the driver's notifications arrive at, one for each queue, once. A
    /// device whose queues another process serves takes copies and says so with `true`: then the event
    /// loop leaves them alone, and [`Self::process_queue`] is never called.
    fn take_notifiers(&mut self, _notifiers: &[EventFd]) -> std::io::Result<bool> {
        Ok(false)
    }

    /// The driver is ready: start.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver reset the device: stop, forget the queues, and wait for or cancel what is in
    /// flight, so that nothing touches guest memory once this returns.
    fn reset(&mut self);

    /// Says what the device is like, so that another of its kind can go on in its place. Whatever is
    /// in flight is completed, or counted as not taken yet; nothing new is begun. The device itself
    /// goes on afterwards.
    fn save(&mut self) -> Result<SavedDevice, StateError>;

    /// Takes the place of a device of the same kind, whose [`Self::save`] said `own`. Called at most
    /// once, before anything else but [`Self::set_interrupt`]. With `activation`, whose queues stand
    /// where the other device got to, if that was active; then this one is.
    ///
    /// Nothing of `own` is to be believed.
    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError>;

    /// Called once after [`Self::restore`] with an activation, just before the guest goes on. Every
    /// queue in use is processed right after it.
    fn restart(&mut self) {}

    /// What the event loop should watch for this device besides its queue notifications. Asked once.
    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    /// The driver put something on queue `index`. Called only while active.
    fn process_queue(&mut self, index: usize);

    /// The source with `token` is ready. May be called while inactive: then drain or ignore it.
    fn process_event(&mut self, _token: u32) {}

    /// Reports counters by name, for the metrics endpoint.
    fn metrics(&self, _report: &mut dyn FnMut(&'static str, u64)) {}
}

/// Copies the part of a configuration space that lies in `[offset, offset + data.len())`; what lies
/// beyond its end stays as it is.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    if let Some(source) = config.get(offset..) {
        let n = source.len().min(data.len());
        data[..n].copy_from_slice(&source[..n]);
    }
}
