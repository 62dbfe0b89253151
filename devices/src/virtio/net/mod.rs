//! The network card (virtio 1.2 §5.1) on a tap: one pair of queues, checksum and segmentation
//! offloads both ways.

pub mod backend;
pub mod mac;
mod receive;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod snapshot_tests;
pub mod tap;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod transmit;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::interrupt::Interrupt;
use super::queue::QueueError;
use super::state::{SavedDevice, StateError, read_own};
use super::wakeup::Wakeup;
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id, read_config_bytes};
use crate::rate_limiter::{RateLimit, RateLimiter};
use backend::{Backend, Offloads};
use mac::MacAddress;
use receive::Receiver;
use transmit::Transmitter;

/// Index of the queue with buffers to receive into.
pub const RECEIVE_QUEUE: usize = 0;
/// Index of the queue with packets to send.
pub const TRANSMIT_QUEUE: usize = 1;

const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Bytes in front of each packet, with `num_buffers` whether or not buffers merge (§5.1.6.1).
const HEADER_LEN: usize = 12;
/// An Ethernet header with a VLAN tag.
const ETHERNET_LEN: usize = 18;
/// Bytes in the longest packet there can be, its header included: 64 KiB of IP.
const LONGEST_PACKET: usize = HEADER_LEN + ETHERNET_LEN + 0xffff;
/// The MTU where nothing is said of it.
const DEFAULT_MTU: u16 = 1500;

/// Most packets moved in one turn on the event loop, for each direction.
const TURN: u32 = 64;

const BACKEND: u32 = 0;
const RECEIVE_TIMER: u32 = 1;
const TRANSMIT_TIMER: u32 = 2;
const WAKEUP: u32 = 3;

/// What a network card is made of, besides what carries its packets.
#[derive(Debug, Clone, Default)]
pub struct NetConfig {
    /// A word for logs and metrics.
    pub name: String,
    /// The card's address; a random one if not given.
    pub mac: Option<MacAddress>,
    /// The MTU that the guest is told, if any.
    pub mtu: Option<u16>,
    /// A bound on what the guest receives.
    pub receive_limit: RateLimit,
    /// A bound on what the guest sends.
    pub transmit_limit: RateLimit,
}

/// What one half wants of the event loop next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To hear of the next edge, notification or timer.
    Wait,
    /// Another turn, without any of these.
    Again,
}

/// The network card.
pub struct Net {
    name: String,
    mac: MacAddress,
    mtu: Option<u16>,
    backend: Box<dyn Backend>,
    receive_limiter: Option<RateLimiter>,
    transmit_limiter: Option<RateLimiter>,
    wakeup: Wakeup,
    interrupt: Option<Arc<Interrupt>>,
    active: Option<Active>,
    receive_counters: receive::Counters,
    transmit_counters: transmit::Counters,
}

/// What a snapshot keeps. Offloads follow from the features, and a packet that was read and not given
/// to the guest is lost, as packets may be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnState {
    mac: String,
    mtu: Option<u16>,
}

struct Active {
    receiver: Receiver,
    transmitter: Transmitter,
}

impl Net {
    /// A card whose packets `backend` carries.
    pub fn new(config: NetConfig, backend: Box<dyn Backend>) -> io::Result<Self> {
        Ok(Net {
            name: config.name,
            mac: config.mac.map_or_else(MacAddress::random, Ok)?,
            mtu: config.mtu,
            backend,
            receive_limiter: RateLimiter::new(&config.receive_limit)?,
            transmit_limiter: RateLimiter::new(&config.transmit_limit)?,
            wakeup: Wakeup::new()?,
            interrupt: None,
            active: None,
            receive_counters: receive::Counters::default(),
            transmit_counters: transmit::Counters::default(),
        })
    }

    /// The card's address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    fn run(&mut self, receive: bool, transmit: bool) {
        let Some(active) = &mut self.active else {
            return;
        };
        let backend = &*self.backend;
        let mut work = || -> Result<Next, QueueError> {
            let mut next = Next::Wait;
            if receive {
                next = active.receiver.run(
                    backend,
                    &mut self.receive_limiter,
                    &mut self.receive_counters,
                )?;
            }
            if transmit {
                let transmitted = active.transmitter.run(
                    backend,
                    &mut self.transmit_limiter,
                    &mut self.transmit_counters,
                )?;
                if transmitted == Next::Again {
                    next = Next::Again;
                }
            }
            Ok(next)
        };
        match work() {
            Ok(Next::Wait) => {}
            Ok(Next::Again) => self.wakeup.ring(),
            Err(e) => {
                log::warn!("{}: stopped: {e}", self.name);
                self.active = None;
                if let Some(interrupt) = &self.interrupt {
                    interrupt.signal_needs_reset();
                }
            }
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        device_id::NET
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mtu = self.mtu.map(|_| VIRTIO_NET_F_MTU);
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ]
        .into_iter()
        .chain(mtu)
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // §5.1.4: mac, status, max_virtqueue_pairs (of a feature that is not offered), mtu.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.0);
        config[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let offloads = Offloads {
            checksum: has(features, VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(features, VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(features, VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(features, VIRTIO_NET_F_GUEST_ECN),
        };
        let receive_queue = activation.take_queue(RECEIVE_QUEUE)?;
        let transmit_queue = activation.take_queue(TRANSMIT_QUEUE)?;
        self.backend
            .set_offloads(offloads)
            .map_err(|e| ActivateError::Host("cannot set the offloads of the tap", e))?;

        let wanted = if offloads.tso4 || offloads.tso6 {
            LONGEST_PACKET
        } else {
            HEADER_LEN + ETHERNET_LEN + usize::from(self.mtu.unwrap_or(DEFAULT_MTU))
        };
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        self.active = Some(Active {
            receiver: Receiver::new(receive_queue, mergeable, wanted),
            transmitter: Transmitter::new(transmit_queue),
        });
        // Packets may have come while nobody listened, and their edge is gone.
        self.wakeup.ring();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&mut self) -> Result<SavedDevice, StateError> {
        let own = OwnState {
            mac: self.mac.to_string(),
            mtu: self.mtu,
        };
        let queues = self.active.iter().flat_map(|active| {
            let positions = [active.receiver.position(), active.transmitter.position()];
            positions.map(Some)
        });
        SavedDevice::new(&self.name, queues.collect(), &own)
    }

    /// The card gets the address it had, whatever it was made with: the guest goes on using that.
    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        let own: OwnState = read_own(&self.name, own)?;
        let mac = own.mac.parse::<MacAddress>();
        let mac = mac.map_err(|e| StateError::Malformed {
            device: self.name.clone(),
            what: e.to_string(),
        })?;
        if own.mtu != self.mtu {
            let tell = |mtu: Option<u16>| mtu.map_or("none".to_owned(), |mtu| mtu.to_string());
            return Err(StateError::Mismatch {
                device: self.name.clone(),
                what: format!(
                    "its MTU is {} and was {}; give it the same",
                    tell(self.mtu),
                    tell(own.mtu)
                ),
            });
        }
        self.mac = mac;
        match activation {
            Some(activation) => self
                .activate(activation)
                .map_err(|e| StateError::activating(&self.name, e)),
            None => Ok(()),
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let backend = EventSource {
            fd: self.backend.fd(),
            token: BACKEND,
            edge: true,
            writable: true,
        };
        let timer = |limiter: &Option<RateLimiter>, token| {
            limiter.as_ref().map(|limiter| EventSource {
                fd: limiter.timer_fd(),
                token,
                edge: false,
                writable: false,
            })
        };
        [
            Some(backend),
            timer(&self.receive_limiter, RECEIVE_TIMER),
            timer(&self.transmit_limiter, TRANSMIT_TIMER),
            Some(self.wakeup.source(WAKEUP)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn process_queue(&mut self, index: usize) {
        match index {
            RECEIVE_QUEUE => self.run(true, false),
            TRANSMIT_QUEUE => self.run(false, true),
            _ => {}
        }
    }

    fn process_event(&mut self, token: u32) {
        match token {
            BACKEND => self.run(true, true),
            RECEIVE_TIMER => {
                if let Some(limiter) = &mut self.receive_limiter {
                    limiter.timer_fired();
                }
                self.run(true, false);
            }
            TRANSMIT_TIMER => {
                if let Some(limiter) = &mut self.transmit_limiter {
                    limiter.timer_fired();
                }
                self.run(false, true);
            }
            WAKEUP => {
                self.wakeup.clear();
                self.run(true, true);
            }
            _ => {}
        }
    }

    fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let (receive, transmit) = (&self.receive_counters, &self.transmit_counters);
        report("receive_packets", receive.packets);
        report("receive_bytes", receive.bytes);
        report("receive_dropped", receive.dropped);
        report("receive_no_buffers", receive.no_buffers);
        report("receive_throttled", receive.throttled);
        report("receive_errors", receive.errors);
        report("transmit_packets", transmit.packets);
        report("transmit_bytes", transmit.bytes);
        report("transmit_dropped", transmit.dropped);
        report("transmit_stalls", transmit.stalls);
        report("transmit_throttled", transmit.throttled);
    }
}
