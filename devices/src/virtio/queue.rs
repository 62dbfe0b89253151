//! A virtqueue a device works on: chains off the available ring, used buffers back.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{ChainError, DescriptorChain};
use super::interrupt::Interrupt;
use super::state::QueuePosition;
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
    /// The used ring's index when the driver was last thought of as told.
    signalled: u16,
}

impl VirtQueue {
    /// Joins a queue that the driver has made ready to what it needs to be worked on.
    pub fn new(queue: Queue, memory: Arc<GuestMemory>, interrupt: Arc<Interrupt>) -> Self {
        VirtQueue {
            signalled: queue.next_used(),
            queue,
            memory,
            interrupt,
        }
    }

    /// The same for a queue that another device has worked on until `position`.
    pub fn resume(
        queue: Queue,
        memory: Arc<GuestMemory>,
        interrupt: Arc<Interrupt>,
        position: QueuePosition,
    ) -> Self {
        let mut queue = queue;
        queue.set_next_avail(position.next_available);
        queue.set_next_used(position.next_used);
        VirtQueue {
            queue,
            memory,
            interrupt,
            signalled: position.signalled,
        }
    }

    /// How far the device got. What it has popped and holds, it has to put back by itself.
    pub fn position(&self) -> QueuePosition {
        QueuePosition {
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            signalled: self.signalled,
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

    /// Gives several chains back at once, each with the bytes written to it: the driver sees all of
    /// them or none. What is one thing in several chains, like a packet, goes back so.
    pub fn push_used_together(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((last_head, last_written), before)) = used.split_last() else {
            return Ok(());
        };
        // The driver does not look at slots beyond the ring's index, which moves once, at the end.
        let mut next = self.queue.next_used();
        for (head, written) in before {
            if *head >= self.queue.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            let element = u64::from(*head) | u64::from(*written) << 32;
            let slot = u64::from(next % self.queue.size());
            let addr = self
                .queue
                .used_ring()
                .checked_add(4 + 8 * slot)
                .ok_or(virtio_queue::Error::AddressOverflow)?;
            self.memory
                .write_obj(element.to_le(), GuestAddress(addr))
                .map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.push_used(*last_head, *last_written)
    }

    /// Interrupts the driver if it wants to hear of what was pushed since the last call. Call it
    /// once for a batch.
    pub fn signal_used(&mut self) -> Result<(), QueueError> {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.signalled, new);
        if new != old && self.driver_wants_to_hear(old, new)? {
            self.interrupt.signal_used();
        }
        Ok(())
    }

    /// Whether the driver asked to be told when the used ring's index went from `old` to `new`
    /// (virtio 1.2 §2.7.7.2, §2.7.10).
    ///
    /// `virtio_queue` has this as well, but counts only what was pushed one by one, and does not know
    /// the flag.
    fn driver_wants_to_hear(&self, old: u16, new: u16) -> Result<bool, QueueError> {
        // The driver writes its wish, then looks at the index; we wrote the index and now look at its
        // wish. The fence is what keeps both from looking too early.
        fence(Ordering::SeqCst);
        let by_event = self.queue.event_idx_enabled();
        let offset = if by_event {
            4 + 2 * u64::from(self.queue.size())
        } else {
            0
        };
        let addr = self
            .queue
            .avail_ring()
            .checked_add(offset)
            .ok_or(virtio_queue::Error::AddressOverflow)?;
        let wish: u16 = self
            .memory
            .load(GuestAddress(addr), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        let wish = u16::from_le(wish);
        Ok(if by_event {
            new.wrapping_sub(wish).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(wish) & VRING_AVAIL_F_NO_INTERRUPT == 0
        })
    }

    /// Asks the driver not to notify while the device is looking at the queue anyway.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(&*self.memory)?)
    }

    /// Asks the driver to notify again. `true` if more came meanwhile: look once more.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }

    /// The available ring's index: how many chains the driver has ever put in, modulo 2^16.
    pub fn available_index(&self) -> Result<u16, QueueError> {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire)?;
        Ok(index.0)
    }

    /// Asks the driver to notify of what it puts in beyond `index`, an
    /// [`available_index`](Self::available_index), though there may be chains not popped. `true` if
    /// there is more already.
    pub fn notify_beyond(&mut self, index: u16) -> Result<bool, QueueError> {
        let next = self.queue.next_avail();
        // That is what notifications are counted from.
        self.queue.set_next_avail(index);
        let more = self.queue.enable_notification(&*self.memory);
        self.queue.set_next_avail(next);
        Ok(more?)
    }

    /// The ring positions and addresses.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use vm_memory::Address;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    const SIZE: u16 = 8;
    const AVAIL: GuestAddress = GuestAddress(0x1000);
    const USED: GuestAddress = GuestAddress(0x2000);

    fn queue(event_idx: bool, used: u16) -> VirtQueue {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_avail_ring_address(Some(AVAIL.0 as u32), None);
        queue.set_used_ring_address(Some(USED.0 as u32), None);
        queue.set_ready(true);
        queue.set_event_idx(event_idx);
        queue.set_next_used(used);
        assert!(queue.is_valid(&*memory));
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        VirtQueue::new(queue, memory, Arc::new(Interrupt::new(line)))
    }

    fn signalled(queue: &mut VirtQueue) -> bool {
        queue.signal_used().unwrap();
        queue.interrupt.line().read().is_ok()
    }

    #[test]
    fn chains_pushed_together_move_the_index_once_and_wrap() {
        let mut q = queue(false, 0xffff);
        q.push_used_together(&[]).unwrap();
        q.push_used_together(&[(3, 30), (1, 10), (2, 0xffff_ffff)])
            .unwrap();
        assert_eq!(q.memory.read_obj::<u16>(USED.unchecked_add(2)).unwrap(), 2);
        for (slot, element) in [(7, [3, 30]), (0, [1, 10]), (1, [2, 0xffff_ffff])] {
            let addr = USED.unchecked_add(4 + 8 * slot);
            assert_eq!(q.memory.read_obj::<[u32; 2]>(addr).unwrap(), element);
        }
        assert!(q.push_used_together(&[(SIZE, 0), (0, 0)]).is_err());
        assert!(q.push_used_together(&[(0, 0), (SIZE, 0)]).is_err());
    }

    #[test]
    fn driver_is_interrupted_when_the_index_passes_its_event() {
        let mut q = queue(true, 0xfffe);
        let event = AVAIL.unchecked_add(4 + 2 * u64::from(SIZE));
        q.memory.write_obj(0u16, event).unwrap();
        q.push_used(0, 0).unwrap();
        assert!(!signalled(&mut q));
        q.push_used_together(&[(1, 0), (2, 0), (3, 0)]).unwrap();
        assert!(signalled(&mut q));
        assert!(!signalled(&mut q));
        q.push_used(4, 0).unwrap();
        assert!(!signalled(&mut q));
    }

    #[test]
    fn driver_without_events_is_interrupted_unless_its_flag_says_no() {
        let mut q = queue(false, 0);
        assert!(!signalled(&mut q), "nothing was pushed");
        q.push_used(0, 0).unwrap();
        assert!(signalled(&mut q));
        q.memory.write_obj(1u16, AVAIL).unwrap();
        q.push_used(0, 0).unwrap();
        assert!(!signalled(&mut q));
    }
}
