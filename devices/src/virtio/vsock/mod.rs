//! The socket device (virtio 1.2 §5.10): stream sockets between the guest and Unix sockets of the
//! host, in both directions.
//!
//! The convention is Firecracker's. The device listens at a Unix socket; a client on the host connects
//! to it, says `CONNECT <port>\n`, reads `OK <its port>\n`, and is connected to whoever listens at that
//! port in the guest. Further sockets may lead to one port each, with nothing said before the stream
//! begins, for clients that know nothing of this convention. A connection of the guest to port P of the host (CID 2) arrives at the Unix
//! socket `<path>_P`.
//!
//! Nothing is buffered that need not be. Payload for the guest stays in the Unix socket until there
//! are a buffer and credit for it, and is then read straight into guest memory; payload for the host is
//! written from guest memory, and only what a full socket does not take is copied, up to what the
//! guest was given credit for.

mod backlog;
mod connection;
mod credit;
mod door;
mod events;
mod handshake;
mod limits;
mod listener;
mod muxer;
mod packet;
mod receive;
mod slots;
mod socket;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::interrupt::Interrupt;
use super::queue::QueueError;
use super::state::{SavedDevice, StateError, read_own};
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id, read_config_bytes};
use door::Door;
use events::Events;
use listener::{HostPorts, Listener};
use muxer::Muxer;
use receive::Receive;
use transmit::Transmit;

pub use limits::Limits;

/// Index of the queue with buffers to receive into.
pub const RECEIVE_QUEUE: usize = 0;
/// Index of the queue with packets from the guest.
pub const TRANSMIT_QUEUE: usize = 1;
/// Index of the queue with buffers for events.
pub const EVENT_QUEUE: usize = 2;

/// With Linux's receive buffers of a page each, 256 hold 1 MiB: four times what it gives one
/// connection credit for, so that one that is not read does not starve the next. The event queue
/// could be smaller; Linux fills all of it with 8-byte buffers whatever its size.
const QUEUE_SIZES: [u16; 3] = [256, 256, 256];

/// The lowest CID a guest may have; those below have meanings of their own (§5.10.4).
const FIRST_GUEST_CID: u64 = 3;

/// What a socket device is made of.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// A word for logs and metrics.
    pub name: String,
    /// The guest's context ID: from 3 to 2^32 - 2.
    pub guest_cid: u64,
    /// Where host clients connect, and what the sockets for the guest's connections begin with.
    pub uds_path: PathBuf,
    /// Sockets that lead straight to one port of the guest each. At most [`MAX_DIRECT`].
    pub direct: Vec<DirectSocket>,
}

/// A Unix socket that leads straight to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectSocket {
    /// The port.
    pub port: u32,
    /// Where host clients connect.
    pub path: PathBuf,
}

/// The most sockets that lead straight to a port.
pub const MAX_DIRECT: usize = 64;

/// Why a socket device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context ID is one with a meaning of its own, or has more than 32 bits.
    #[error("{0} cannot be the context ID of a guest: it must be from 3 to 4294967294")]
    BadCid(u64),
    /// The path does not fit into the address of a Unix socket, or not with a port behind it.
    #[error("the socket path {path} is too long: it may have {max} bytes")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Bytes it may have.
        max: usize,
    },
    /// More direct sockets than [`MAX_DIRECT`].
    #[error("{0} sockets for single ports are too many: there may be {MAX_DIRECT}")]
    TooManyDirect(usize),
    /// Another process listens there.
    #[error("somebody else listens at the socket {0}: stop them, or choose another path")]
    InUse(PathBuf),
    /// What is there is not a socket, so it is not ours to replace.
    #[error("{0} exists and is not a socket: remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen at the socket {path}: {source}")]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host did not give what the device needs to wait for its sockets.
    #[error("cannot set up what the socket device waits with: {0}")]
    Host(io::Error),
}

/// The socket device.
pub struct Vsock {
    name: String,
    /// The configuration space: the guest's CID (§5.10.4).
    config: [u8; 8],
    muxer: Muxer,
    interrupt: Option<Arc<Interrupt>>,
    active: Option<Active>,
}

/// What there is between `DRIVER_OK` and the next reset.
struct Active {
    receive: Receive,
    transmit: Transmit,
    events: Option<Events>,
}

/// What a snapshot keeps. The connections are not in it: their other ends are programs of the host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnState {
    /// The context ID the guest knows. It reads its own again when it is told of the reset.
    guest_cid: u64,
}

impl Vsock {
    /// Makes a device that listens at `config.uds_path` from now on. Clients that come before the
    /// guest's driver is up wait.
    pub fn new(config: VsockConfig) -> Result<Vsock, VsockError> {
        Self::with_limits(config, Limits::default())
    }

    /// The same, with other bounds than the default ones.
    pub fn with_limits(config: VsockConfig, limits: Limits) -> Result<Vsock, VsockError> {
        let cid = config.guest_cid;
        check_cid(cid)?;
        if config.direct.len() > MAX_DIRECT {
            return Err(VsockError::TooManyDirect(config.direct.len()));
        }
        let mut doors = vec![Door::new(Listener::bind(&config.uds_path, true)?, None)];
        for DirectSocket { port, path } in &config.direct {
            doors.push(Door::new(Listener::bind(path, false)?, Some(*port)));
        }
        let host = HostPorts::new(config.uds_path);
        let muxer =
            Muxer::new(config.name.clone(), cid, limits, host, doors).map_err(VsockError::Host)?;
        Ok(Vsock {
            name: config.name,
            config: cid.to_le_bytes(),
            muxer,
            interrupt: None,
            active: None,
        })
    }

    /// Does all there is to do, within the bounds of one turn on the event loop.
    fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Err(e) = active.serve(&mut self.muxer) {
            self.stopped(&e);
        }
    }

    fn stopped(&mut self, error: &QueueError) {
        log::warn!("{}: stopped: {error}", self.name);
        self.reset();
        if let Some(interrupt) = &self.interrupt {
            interrupt.signal_needs_reset();
        }
    }
}

fn check_cid(cid: u64) -> Result<(), VsockError> {
    if (FIRST_GUEST_CID..u64::from(u32::MAX)).contains(&cid) {
        Ok(())
    } else {
        Err(VsockError::BadCid(cid))
    }
}

impl Active {
    fn serve(&mut self, muxer: &mut Muxer) -> Result<(), QueueError> {
        if let Some(events) = &mut self.events {
            muxer.hold_back(events.is_reset_under_way()?);
        }
        muxer.accept();
        self.transmit.serve(muxer)?;
        let more_to_receive = self.receive.serve(muxer)?;
        if more_to_receive || self.transmit.has_work(muxer) {
            muxer.ring();
        }
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        device_id::VSOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None: stream sockets are implied where no kind is offered (§5.10.3), and there are no others.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active {
            receive: Receive::new(activation.take_queue(RECEIVE_QUEUE)?),
            transmit: Transmit::new(activation.take_queue(TRANSMIT_QUEUE)?),
            events: activation.take_queue(EVENT_QUEUE).ok().map(Events::new),
        });
        // Clients may be waiting, and the event loop is where they are served.
        self.muxer.ring();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.muxer.clear();
    }

    fn save(&mut self) -> Result<SavedDevice, StateError> {
        let own = OwnState {
            guest_cid: u64::from_le_bytes(self.config),
        };
        let mut queues = Vec::new();
        if let Some(active) = &self.active {
            queues.push(Some(active.receive.position()));
            queues.push(Some(active.transmit.position()));
            queues.push(active.events.as_ref().map(Events::position));
        }
        SavedDevice::new(&self.name, queues, &own)
    }

    /// The guest gets the context ID this device was made with.
    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        let own: OwnState = read_own(&self.name, own)?;
        check_cid(own.guest_cid).map_err(|e| StateError::Malformed {
            device: self.name.clone(),
            what: e.to_string(),
        })?;
        let Some(activation) = activation else {
            return Ok(());
        };
        self.activate(activation)
            .map_err(|e| StateError::activating(&self.name, e))?;
        if let Some(active) = &mut self.active
            && let Some(events) = &mut active.events
        {
            events.owe_reset();
        }
        Ok(())
    }

    fn restart(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Some(events) = &mut active.events
            && let Err(e) = events.tell()
        {
            self.stopped(&e);
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource {
            fd: self.muxer.epoll_fd(),
            token: 0,
            edge: false,
            writable: false,
        }]
    }

    fn process_queue(&mut self, index: usize) {
        if index == TRANSMIT_QUEUE
            && let Some(active) = &mut self.active
        {
            active.transmit.notified();
        }
        self.serve();
    }

    fn process_event(&mut self, _token: u32) {
        self.muxer.poll();
        self.serve();
    }

    fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let counters = self.muxer.counters();
        report("connections", self.muxer.len() as u64);
        report("connections_from_host", counters.from_host);
        report("connections_from_guest", counters.from_guest);
        report("connections_refused", counters.refused);
        report("to_guest_bytes", counters.to_guest_bytes);
        report("to_host_bytes", counters.to_host_bytes);
        report("backlog_bytes", self.muxer.backlog() as u64);
        report("resets", counters.resets);
        report("packets_dropped", counters.dropped);
    }
}
