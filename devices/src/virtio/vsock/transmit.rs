//! Takes the driver's packets off the transmit queue.

use libc::iovec;

use super::muxer::{Muxer, Packet};
use super::packet::{HEADER_SIZE, Header};
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::state::QueuePosition;

/// Payload taken in one turn on the event loop, about: a millisecond's worth, that others wait for.
const TURN_BYTES: u32 = 4 << 20;

/// The transmit queue and what it takes to work on it.
pub struct Transmit {
    queue: VirtQueue,
    /// There may be packets: the driver notified, or the last turn ended before the queue did.
    pending: bool,
    chain: DescriptorChain,
    iovecs: Vec<iovec>,
}

// SAFETY: the iovecs are scratch space, filled and used within one call; what they point to is guest
// memory, which belongs to no thread.
unsafe impl Send for Transmit {}

impl Transmit {
    /// Packets may wait from before.
    pub fn new(queue: VirtQueue) -> Self {
        Transmit {
            queue,
            pending: true,
            chain: DescriptorChain::new(),
            iovecs: Vec::new(),
        }
    }

    /// How far it got. Between turns no packet is held.
    pub fn position(&self) -> QueuePosition {
        self.queue.position()
    }

    /// The driver has notified the queue.
    pub fn notified(&mut self) {
        self.pending = true;
    }

    /// Whether another turn would find work.
    pub fn has_work(&self, muxer: &Muxer) -> bool {
        self.pending && muxer.takes_packets()
    }

    /// One turn: as many packets as the queue can hold, at most, and [`TURN_BYTES`].
    pub fn serve(&mut self, muxer: &mut Muxer) -> Result<(), QueueError> {
        if !self.has_work(muxer) {
            return Ok(());
        }
        self.queue.disable_notification()?;
        let mut taken = false;
        let mut bytes = 0;
        for _ in 0..self.queue.size() {
            if !muxer.takes_packets() || bytes >= TURN_BYTES {
                break;
            }
            if !self.queue.pop_or_arm(&mut self.chain)? {
                self.pending = false;
                break;
            }
            self.take(muxer);
            // A chain may have up to 4 GiB.
            bytes = self.chain.readable.len().saturating_add(bytes);
            self.queue.push_used(self.chain.head(), 0)?;
            taken = true;
        }
        if taken {
            self.queue.signal_used()?;
        }
        Ok(())
    }

    fn take(&mut self, muxer: &mut Muxer) {
        let buffers = &self.chain.readable;
        let memory = self.queue.memory();
        let Some(header) = Header::read(buffers, memory) else {
            return muxer.take_malformed(&Header::default());
        };
        if header.len > buffers.len() - HEADER_SIZE {
            return muxer.take_malformed(&header);
        }
        let packet = Packet {
            header,
            buffers,
            memory,
        };
        muxer.take_packet(&packet, &mut self.iovecs);
    }
}
