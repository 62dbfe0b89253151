//! A virtqueue a device works on: chains off the available ring, used buffers back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{ChainError, DescriptorChain};
use super::interrupt::Interrupt;
use crate::GuestMemory;

/// What makes a queue unusable. The device that meets one stops with `DEVICE_NEEDS_RESET`: once a
/// driver and a device disagree about a ring, every later request may be the wrong one.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are not in guest memory, or their indexes make no sense.
    #[error("virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// The next chain is malformed.
    #[error("descriptor chain: {0}")]
    Chain(#[from] ChainError),
}

/// One queue of an active device, with the memory it lies in and the interrupt it calls.
pub struct VirtQueue {
    queue: Queue,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
}

impl VirtQueue {
    /// Joins a queue that the driver has made ready to what it needs to be worked on.
    pub fn new(queue: Queue, memory: Arc<GuestMemory>, interrupt: Arc<Interrupt>) -> Self {
        VirtQueue {
            queue,
            memory,
            interrupt,
        }
    }

    /// Guest memory, as long as the queue is in use.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The number of descriptors the driver chose.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver has put chains here that were not popped yet.
    pub fn has_available(&self) -> Result<bool, QueueError> {
        Ok(self.available()? != 0)
    }

    /// Takes the next chain off the ring into `chain`; `false` if there is none.
    pub fn pop(&mut self, chain: &mut DescriptorChain) -> Result<bool, QueueError> {
        if self.available()? == 0 {
            return Ok(false);
        }
        let next = self.queue.next_avail();
        // The ring was checked against guest memory when the queue was made ready; a slot of it is
        // read with a bound on every part of the sum.
        let slot = u64::from(next % self.queue.size());
        let addr = self
            .queue
            .avail_ring()
            .checked_add(4 + 2 * slot)
            .ok_or(virtio_queue::Error::AddressOverflow)?;
        let head: u16 = self
            .memory
            .load(GuestAddress(addr), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        chain.parse(
            &self.memory,
            GuestAddress(self.queue.desc_table()),
            self.queue.size(),
            u16::from_le(head),
        )?;
        Ok(true)
    }

    /// Like [`Self::pop`]; when there is none, also asks the driver to notify of the next.
    pub fn pop_or_arm(&mut self, chain: &mut DescriptorChain) -> Result<bool, QueueError> {
        loop {
            if self.pop(chain)? {
                return Ok(true);
            }
            // One that came before the driver saw the request is one it will not notify of.
            if !self.enable_notification()? {
                return Ok(false);
            }
        }
    }

    /// Puts the chain last popped back, to be popped again. At most once for each `pop`.
    pub fn undo_pop(&mut self) {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_sub(1));
    }

    /// Gives the chain with `head` back to the driver, `written` bytes of it filled.
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(&*self.memory, head, written)?)
    }

    /// Interrupts the driver if it wants to hear of what was pushed since the last call. Call it
    /// once for a batch.
    pub fn signal_used(&mut self) -> Result<(), QueueError> {
        if self.queue.needs_notification(&*self.memory)? {
            self.interrupt.signal_used();
        }
        Ok(())
    }

    /// Asks the driver not to notify while the device is looking at the queue anyway.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(&*self.memory)?)
    }

    /// Asks the driver to notify again. `true` if more came meanwhile: look once more.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }

    /// The ring positions and addresses, for snapshots and for tests.
    pub fn state(&self) -> virtio_queue::QueueState {
        self.queue.state()
    }

    /// How many chains wait. An error if the driver claims more than the queue can hold.
    fn available(&self) -> Result<u16, QueueError> {
        let avail = self.queue.avail_idx(&*self.memory, Ordering::Acquire)?;
        let waiting = avail.0.wrapping_sub(self.queue.next_avail());
        if waiting > self.queue.size() {
            return Err(virtio_queue::Error::InvalidAvailRingIndex.into());
        }
        Ok(waiting)
    }
}
