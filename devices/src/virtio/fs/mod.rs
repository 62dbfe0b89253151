//! The file system device (virtio 1.2 §5.11), as the front end of a file server.
//!
//! A server such as `virtiofsd` does all the work: it maps guest memory, takes requests off the queues
//! and calls the driver itself. Here is only what sets that up, by the vhost-user protocol. The
//! driver's notifications and the server's interrupts go past this process.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use super::queue::VirtQueue;
use super::state::{SavedDevice, StateError};
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id, read_config_bytes};
use crate::GuestMemory;

/// Bytes in the longest tag.
pub const MAX_TAG: usize = 36;

/// Requests that must not wait for others, and the others. A megabyte in pages of 4 KiB, which is the
/// longest read or write, takes 256 descriptors and some.
const QUEUE_SIZES: [u16; 2] = [64, 512];
/// Queues that are not for requests that must not wait.
const REQUEST_QUEUES: u32 = 1;

/// What every server must know because the transport offers it.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// How long a server may take to answer. It answers at once, unless it is stopped or out of its mind,
/// and then a guest's processor must not wait for ever.
const PATIENCE: Duration = Duration::from_secs(30);

const SERVER: u32 = 0;

/// What a file system device is made of.
pub struct FsConfig {
    /// A word for logs and metrics.
    pub name: String,
    /// The name under which the guest mounts it, at most [`MAX_TAG`] bytes.
    pub tag: String,
    /// The socket that the server listens on.
    pub socket: PathBuf,
    /// Called once if the server goes, with a sentence.
    pub lost: Box<dyn FnOnce(String) + Send>,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Nobody listens.
    #[error("cannot connect to the file server at {socket}: {source}")]
    Connect {
        /// Where it should be.
        socket: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is no file server, or not one of these days.
    #[error("the file server at {socket} does not do its part: {what}")]
    Server {
        /// Where it is.
        socket: PathBuf,
        /// What it should have done.
        what: String,
    },
}

/// The file system device.
pub struct Fs {
    name: String,
    config: [u8; MAX_TAG + 4],
    server: Frontend,
    server_features: u64,
    notifiers: Vec<EventFd>,
    interrupt: Option<Arc<Interrupt>>,
    /// Whether the server works on the queues.
    active: bool,
    lost: Option<Box<dyn FnOnce(String) + Send>>,
}

impl Fs {
    /// Makes the acquaintance of a server.
    pub fn connect(config: FsConfig) -> Result<Self, FsError> {
        let FsConfig {
            name,
            tag,
            socket,
            lost,
        } = config;
        let stream = connect(&socket).map_err(|source| FsError::Connect {
            socket: socket.clone(),
            source,
        })?;
        let mut server = Frontend::from_stream(stream, QUEUE_SIZES.len() as u64);
        let server_features =
            greet(&mut server).map_err(|what| FsError::Server { socket, what })?;
        let mut space = [0; MAX_TAG + 4];
        let tag = &tag.as_bytes()[..tag.len().min(MAX_TAG)];
        space[..tag.len()].copy_from_slice(tag);
        space[MAX_TAG..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        Ok(Fs {
            name,
            config: space,
            server,
            server_features,
            notifiers: Vec::new(),
            interrupt: None,
            active: false,
            lost: Some(lost),
        })
    }

    /// Tells the server all it needs to work on the queues.
    fn hand_over(
        &mut self,
        activation: &Activation,
        queues: &[VirtQueue],
    ) -> Result<(), vhost::Error> {
        let Some(interrupt) = self.interrupt.clone() else {
            return Err(vhost::Error::InvalidOperation);
        };
        let line = interrupt
            .share_line()
            .map_err(|e| vhost::Error::from(vhost::vhost_user::Error::SocketError(e)))?;
        let features = activation.features & self.server_features
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let server = &mut self.server;
        server.set_features(features)?;
        server.set_mem_table(&regions(&activation.memory)?)?;
        // Before any queue starts, so that one that fails leaves none running without our knowing.
        self.active = true;
        for (index, (queue, notifier)) in queues.iter().zip(&self.notifiers).enumerate() {
            let addresses = addresses(&queue.state(), &activation.memory)?;
            server.set_vring_num(index, queue.size())?;
            server.set_vring_addr(index, &addresses)?;
            server.set_vring_base(index, 0)?;
            server.set_vring_call(index, &line)?;
            server.set_vring_kick(index, notifier)?;
            server.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    fn not_supported(&self) -> StateError {
        StateError::NotSupported {
            device: self.name.clone(),
            why: "a folder shared by a file server cannot be in a snapshot",
        }
    }

    fn lose(&mut self, why: &str) {
        self.active = false;
        if let Some(lost) = self.lost.take() {
            let tag = self.config[..MAX_TAG].split(|&b| b == 0).next();
            let tag = String::from_utf8_lossy(tag.unwrap_or_default()).into_owned();
            lost(format!(
                "{}: the file server behind the share `{tag}` {why}",
                self.name
            ));
        }
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Agrees on the protocol. The server's device features.
fn greet(server: &mut Frontend) -> Result<u64, String> {
    let failed = |e: vhost::Error| e.to_string();
    server.set_owner().map_err(failed)?;
    let features = server.get_features().map_err(failed)?;
    if features & TRANSPORT_FEATURES != TRANSPORT_FEATURES {
        return Err(format!(
            "of the features {TRANSPORT_FEATURES:#x} it lacks {:#x}",
            TRANSPORT_FEATURES & !features
        ));
    }
    if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
        return Err("it knows no features of the protocol".to_owned());
    }
    let known = server.get_protocol_features().map_err(failed)?;
    let wanted = VhostUserProtocolFeatures::REPLY_ACK;
    server
        .set_protocol_features(known & wanted)
        .map_err(failed)?;
    if known.contains(wanted) {
        // From now on what it cannot do is an error, and not only the silence that follows.
        server.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(features)
}

/// Guest memory, by the files that it is in.
fn regions(memory: &GuestMemory) -> Result<Vec<VhostUserMemoryRegionInfo>, vhost::Error> {
    memory
        .iter()
        .map(VhostUserMemoryRegionInfo::from_guest_region)
        .collect()
}

/// Where a queue's rings are in this process, which is how the protocol counts.
fn addresses(queue: &QueueState, memory: &GuestMemory) -> Result<VringConfigData, vhost::Error> {
    let host = |address| {
        let host = memory.get_host_address(GuestAddress(address));
        host.map(|start| start as u64)
            .map_err(|_| vhost::Error::DescriptorTableAddress)
    };
    Ok(VringConfigData {
        queue_max_size: queue.max_size,
        queue_size: queue.size,
        flags: 0,
        desc_table_addr: host(queue.desc_table)?,
        used_ring_addr: host(queue.used_ring)?,
        avail_ring_addr: host(queue.avail_ring)?,
        log_addr: None,
    })
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        device_id::FS
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }

    fn take_notifiers(&mut self, notifiers: &[EventFd]) -> io::Result<bool> {
        self.notifiers = notifiers
            .iter()
            .map(EventFd::try_clone)
            .collect::<io::Result<_>>()?;
        Ok(true)
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = (0..QUEUE_SIZES.len())
            .map(|index| activation.take_queue(index))
            .collect::<Result<Vec<_>, _>>()?;
        self.hand_over(&activation, &queues).map_err(|e| {
            self.reset();
            ActivateError::Host(
                "the file server does not take the queues",
                io::Error::other(e),
            )
        })
    }

    fn reset(&mut self) {
        if !self.active {
            return;
        }
        self.active = false;
        // Its answer comes when it has stopped, and from then on it leaves the queue alone.
        for index in 0..QUEUE_SIZES.len() {
            if let Err(e) = self.server.get_vring_base(index) {
                self.lose(&format!("does not stop: {e}"));
                return;
            }
        }
    }

    /// What the server knows of open files and folders cannot be asked of it.
    fn save(&mut self) -> Result<SavedDevice, StateError> {
        Err(self.not_supported())
    }

    fn restore(
        &mut self,
        _own: &serde_json::Value,
        _activation: Option<Activation>,
    ) -> Result<(), StateError> {
        Err(self.not_supported())
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource {
            fd: RawFd::from(self.server.as_raw_fd()),
            token: SERVER,
            edge: true,
            writable: false,
        }]
    }

    fn process_queue(&mut self, _index: usize) {}

    fn process_event(&mut self, token: u32) {
        // It says nothing unless asked. What is read of an answer is read under the transport's lock,
        // so that here only the end of the connection can be met, or the trace of an answer.
        if token == SERVER && has_ended(self.server.as_raw_fd()) {
            self.lose("has ended");
        }
    }
}

/// Whether the other end of a socket is closed.
fn has_ended(socket: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: socket,
        events: 0,
        revents: 0,
    };
    // SAFETY: the structure is one pollfd, borrowed for the call, which does not wait.
    let n = unsafe { libc::poll(&mut poll, 1, 0) };
    n > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}
