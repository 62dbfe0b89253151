//! From the guest to the host.

use std::io;
use std::sync::Arc;

use libc::iovec;

use super::backend::Backend;
use super::{HEADER_LEN, LONGEST_PACKET, Next, TURN};
use crate::GuestMemory;
use crate::rate_limiter::RateLimiter;
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::state::QueuePosition;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub packets: u64,
    pub bytes: u64,
    /// Packets that were malformed or that the host refused.
    pub dropped: u64,
    /// Times that the host had no room.
    pub stalls: u64,
    pub throttled: u64,
}

/// The sending half of an active card.
pub(super) struct Transmitter {
    queue: VirtQueue,
    memory: Arc<GuestMemory>,
    chain: DescriptorChain,
    iovecs: Vec<iovec>,
    /// The rate limiter has let the next packet pass.
    admitted: bool,
}

// SAFETY: the iovecs are scratch space, filled and used within one call; what they point to is guest
// memory, which belongs to no thread.
unsafe impl Send for Transmitter {}

impl Transmitter {
    pub fn new(queue: VirtQueue) -> Self {
        Transmitter {
            memory: Arc::clone(queue.memory()),
            queue,
            chain: DescriptorChain::new(),
            iovecs: Vec::new(),
            admitted: false,
        }
    }

    /// How far it got. A packet that waits is on the ring still.
    pub fn position(&self) -> QueuePosition {
        self.queue.position()
    }

    /// Sends what the guest has put in, as long as the host takes it.
    pub fn run(
        &mut self,
        backend: &dyn Backend,
        limiter: &mut Option<RateLimiter>,
        counters: &mut Counters,
    ) -> Result<Next, QueueError> {
        let mut next = Next::Wait;
        for turn in 0.. {
            if limiter.as_ref().is_some_and(RateLimiter::is_blocked) && !self.admitted {
                break;
            }
            if turn == TURN {
                next = Next::Again;
                break;
            }
            if !self.queue.pop_or_arm(&mut self.chain)? {
                break;
            }
            let len = self.chain.readable.len() as usize;
            self.iovecs.clear();
            let sound = (HEADER_LEN + 1..=LONGEST_PACKET).contains(&len)
                && self
                    .chain
                    .readable
                    .append_iovecs(&self.memory, 0, len, &mut self.iovecs);
            if !sound {
                counters.dropped += 1;
                self.queue.push_used(self.chain.head(), 0)?;
                continue;
            }
            if !self.admitted
                && let Some(limiter) = limiter
                && !limiter.consume(len as u64)
            {
                counters.throttled += 1;
                self.queue.undo_pop();
                break;
            }
            // The header may be nonsense: a tap checks it, on the copy it has made.
            // SAFETY: the iovecs lie in guest memory, which `memory` keeps mapped.
            match unsafe { backend.send(&self.iovecs) } {
                Ok(_) => {
                    counters.packets += 1;
                    counters.bytes += len as u64;
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                        if e.kind() == io::ErrorKind::Interrupted {
                            next = Next::Again;
                        }
                        counters.stalls += 1;
                        self.admitted = true;
                        self.queue.undo_pop();
                        break;
                    }
                    // Refused (a bad header), or the interface is down. Cards lose packets.
                    _ => counters.dropped += 1,
                },
            }
            self.admitted = false;
            self.queue.push_used(self.chain.head(), 0)?;
        }
        self.queue.signal_used()?;
        Ok(next)
    }
}
