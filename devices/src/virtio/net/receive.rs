//! From the host to the guest.
//!
//! A packet is read straight into the guest's buffers. How long it is shows only then, so buffers for
//! the longest one are taken off the ring before, as far as they are there, and a spill buffer of the
//! device's own follows them; what ended up in it is copied on. Buffers that a packet left over wait
//! for the next one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use libc::iovec;
use vm_memory::{Bytes, VolatileSlice};

use super::backend::Backend;
use super::{HEADER_LEN, LONGEST_PACKET, Next, TURN};
use crate::GuestMemory;
use crate::rate_limiter::RateLimiter;
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::state::QueuePosition;

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// No more buffers are taken once there are so many pieces: with the pieces of the longest chain and
/// the spill they stay below `IOV_MAX`.
const ENOUGH_PIECES: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub packets: u64,
    pub bytes: u64,
    pub dropped: u64,
    /// Times that a packet waited, or may have, because the guest had no buffer for it.
    pub no_buffers: u64,
    pub throttled: u64,
    pub errors: u64,
}

/// The receiving half of an active card.
pub(super) struct Receiver {
    queue: VirtQueue,
    memory: Arc<GuestMemory>,
    /// Whether a packet may go to the guest in several chains.
    mergeable: bool,
    /// How much room is wanted before a packet is read, in bytes.
    wanted: usize,
    /// Chains taken off the ring and not given back, in order, and their pieces. All that were popped
    /// after the first of them are here, so that they can be put back by counting them.
    held: VecDeque<Held>,
    iovecs: Vec<iovec>,
    /// Bytes in all of them.
    room: usize,
    spill: Vec<u8>,
    packet: Option<Packet>,
    chain: DescriptorChain,
    used: Vec<(u16, u32)>,
}

#[derive(Debug)]
struct Held {
    head: u16,
    /// Bytes in it. 0: of no use, and only waits for its turn to be given back.
    len: u32,
    pieces: usize,
}

/// A packet that was read and not yet given to the guest.
#[derive(Debug)]
struct Packet {
    len: usize,
    /// The bytes from here on are in the spill buffer.
    spilled_at: usize,
    /// The rate limiter has let it pass.
    admitted: bool,
}

// SAFETY: what the iovecs point to is guest memory, which belongs to no thread and which `memory`
// keeps mapped.
unsafe impl Send for Receiver {}

impl Receiver {
    pub fn new(queue: VirtQueue, mergeable: bool, wanted: usize) -> Self {
        Receiver {
            memory: Arc::clone(queue.memory()),
            queue,
            mergeable,
            wanted,
            held: VecDeque::new(),
            iovecs: Vec::new(),
            room: 0,
            // Touched only by packets that spill, so it costs no memory before.
            spill: vec![0; LONGEST_PACKET],
            packet: None,
            chain: DescriptorChain::new(),
            used: Vec::new(),
        }
    }

    /// How far it got, as if the chains that are held had not been taken yet.
    pub fn position(&self) -> QueuePosition {
        // No more than the queue has room for.
        self.queue.position().put_back(self.held.len() as u16)
    }

    /// Moves packets as long as there are packets and buffers.
    pub fn run(
        &mut self,
        backend: &dyn Backend,
        limiter: &mut Option<RateLimiter>,
        counters: &mut Counters,
    ) -> Result<Next, QueueError> {
        let mut next = Next::Wait;
        for turn in 0.. {
            if limiter.as_ref().is_some_and(RateLimiter::is_blocked) {
                break;
            }
            if turn == TURN {
                next = Next::Again;
                break;
            }
            if self.packet.is_none() {
                if !self.gather(self.wanted)? {
                    counters.no_buffers += 1;
                    break;
                }
                match self.read(backend) {
                    // A socket in a tap's place was closed: there will be no more edges.
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                        next = Next::Again;
                        break;
                    }
                    // The interface is gone or going; an edge will tell if it comes back.
                    Err(_) => {
                        counters.errors += 1;
                        break;
                    }
                }
            }
            let Some(packet) = &mut self.packet else {
                break;
            };
            let len = packet.len;
            if len < HEADER_LEN {
                self.packet = None;
                counters.dropped += 1;
                continue;
            }
            if !packet.admitted {
                if let Some(limiter) = limiter
                    && !limiter.consume(len as u64)
                {
                    counters.throttled += 1;
                    break;
                }
                packet.admitted = true;
            }
            self.gather(len)?;
            if self.room < len {
                if self.more_can_come() {
                    counters.no_buffers += 1;
                    break;
                }
                self.packet = None;
                counters.dropped += 1;
                continue;
            }
            self.deliver()?;
            counters.packets += 1;
            counters.bytes += len as u64;
        }
        self.queue.signal_used()?;
        Ok(next)
    }

    /// Takes chains off the ring until there is room for `wanted` bytes or there are no more. `false`
    /// if there is none at all.
    fn gather(&mut self, wanted: usize) -> Result<bool, QueueError> {
        while self.room < wanted
            && self.iovecs.len() < ENOUGH_PIECES
            && self.held.len() < usize::from(self.queue.size())
            && (self.mergeable || self.held.is_empty())
        {
            if !self.queue.pop_or_arm(&mut self.chain)? {
                break;
            }
            let (head, len) = (self.chain.head(), self.chain.writable.len());
            let before = self.iovecs.len();
            let whole =
                self.chain
                    .writable
                    .append_iovecs(&self.memory, 0, len as usize, &mut self.iovecs);
            let len = if whole { len } else { 0 };
            if len == 0 && self.held.is_empty() {
                self.queue.push_used(head, 0)?;
                continue;
            }
            self.room += len as usize;
            self.held.push_back(Held {
                head,
                len,
                pieces: self.iovecs.len() - before,
            });
        }
        Ok(!self.held.is_empty())
    }

    /// Whether the driver may still put in buffers for a packet that does not fit, or has given all
    /// that its ring holds.
    fn more_can_come(&self) -> bool {
        self.mergeable
            && self.iovecs.len() < ENOUGH_PIECES
            && self.iovecs.len() < usize::from(self.queue.size())
            && self.held.len() < usize::from(self.queue.size())
    }

    fn read(&mut self, backend: &dyn Backend) -> io::Result<usize> {
        self.iovecs.push(iovec {
            iov_base: self.spill.as_mut_ptr().cast(),
            iov_len: self.spill.len(),
        });
        // SAFETY: guest memory, which `memory` keeps mapped, and the spill buffer, borrowed mutably
        // with all of `self`.
        let result = unsafe { backend.receive(&self.iovecs) };
        self.iovecs.pop();
        let len = result?;
        if len > 0 {
            self.packet = Some(Packet {
                len,
                spilled_at: self.room,
                admitted: false,
            });
        }
        Ok(len)
    }

    /// Gives the packet, for which there is room, to the guest.
    fn deliver(&mut self) -> Result<(), QueueError> {
        let Some(packet) = self.packet.take() else {
            return Ok(());
        };
        if let Some(spilled) = packet.len.checked_sub(packet.spilled_at) {
            // SAFETY: the iovecs are guest memory, which `memory` keeps mapped.
            unsafe { copy_to(&self.iovecs, packet.spilled_at, &self.spill[..spilled]) };
        }

        self.used.clear();
        let (mut left, mut chains, mut pieces) = (packet.len, 0, 0);
        for held in &self.held {
            if held.len == 0 {
                self.queue.push_used(held.head, 0)?;
                chains += 1;
                continue;
            }
            if left == 0 {
                break;
            }
            chains += 1;
            let written = left.min(held.len as usize);
            // At most `held.len`.
            self.used.push((held.head, written as u32));
            left -= written;
            pieces += held.pieces;
            self.room -= held.len as usize;
        }
        // 1 where buffers do not merge, because then no more than one is held (§5.1.6.4.1).
        let count = self.used.len() as u16; // at most ENOUGH_PIECES and one
        // SAFETY: as above.
        unsafe { copy_to(&self.iovecs, NUM_BUFFERS, &count.to_le_bytes()) };
        self.held.drain(..chains);
        self.iovecs.drain(..pieces);
        self.queue.push_used_together(&self.used)
    }
}

/// Copies `data` to guest memory at `offset` into `iovecs`, as far as it fits.
///
/// # Safety
/// Each of `iovecs` is mapped guest memory.
unsafe fn copy_to(iovecs: &[iovec], offset: usize, data: &[u8]) {
    let (mut skip, mut left) = (offset, data);
    for iov in iovecs {
        if left.is_empty() {
            break;
        }
        if skip >= iov.iov_len {
            skip -= iov.iov_len;
            continue;
        }
        // SAFETY: mapped by this function's contract, and guest memory is only ever accessed as
        // volatile.
        let piece = unsafe { VolatileSlice::new(iov.iov_base.cast(), iov.iov_len) };
        let n = left.len().min(iov.iov_len - skip);
        // In range, so this cannot fail.
        let _ = piece.write_slice(&left[..n], skip);
        left = &left[n..];
        skip = 0;
    }
}
