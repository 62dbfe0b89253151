//! A table of things with stable numbers, and the order in which they get their turn.

use std::collections::VecDeque;

/// The name of an entry. An entry that takes the place of a removed one has another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    index: u32,
    generation: u32,
}

impl SlotId {
    /// As one number, for epoll. Never one of the top 2^32.
    pub fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What [`Self::token`] made.
    pub fn from_token(token: u64) -> SlotId {
        SlotId {
            index: token as u32,
            generation: (token >> 32) as u32,
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    /// In the ready queue. Of the slot, not of the entry, so that the queue never holds a slot
    /// twice, however fast entries come and go.
    queued: bool,
    entry: Option<T>,
}

/// The table. Grows to the most entries it ever held.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
        }
    }
}

impl<T> Slots<T> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds an entry.
    pub fn insert(&mut self, entry: T) -> SlotId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                queued: false,
                entry: None,
            });
            // The owner's limit on entries is far below 2^32.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.entry = Some(entry);
        SlotId {
            index,
            generation: slot.generation,
        }
    }

    /// The entry, if it is still there.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.entry.as_mut()
    }

    /// Takes the entry out.
    pub fn remove(&mut self, id: SlotId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let entry = slot.entry.take()?;
        // Keeps clear of the generation whose tokens are the owner's own.
        slot.generation = (slot.generation + 1) % u32::MAX;
        self.free.push(id.index);
        Some(entry)
    }

    /// Puts an entry at the end of the ready queue, unless it is in it.
    pub fn make_ready(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id.index as usize)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_back(id.index);
        }
    }

    /// Puts an entry at the head of the ready queue: its turn was cut short.
    pub fn make_ready_first(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id.index as usize)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_front(id.index);
        }
    }

    /// Takes the entry whose turn it is off the ready queue.
    pub fn next_ready(&mut self) -> Option<SlotId> {
        while let Some(index) = self.ready.pop_front() {
            let slot = &mut self.slots[index as usize];
            slot.queued = false;
            if slot.entry.is_some() {
                return Some(SlotId {
                    index,
                    generation: slot.generation,
                });
            }
        }
        None
    }

    /// Whether the ready queue is empty. `false` is a guess: its entries may have been removed.
    pub fn none_ready(&self) -> bool {
        self.ready.is_empty()
    }

    /// Removes everything. Names from before stay invalid.
    pub fn clear(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.queued = false;
            if slot.entry.take().is_some() {
                slot.generation = (slot.generation + 1) % u32::MAX;
                self.free.push(index as u32);
            }
        }
        self.ready.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn name_when_its_place_is_reused_is_no_longer_good() {
        let mut slots = Slots::default();
        let a = slots.insert('a');
        assert_eq!(slots.remove(a), Some('a'));
        let b = slots.insert('b');
        assert_ne!(a, b);
        assert_eq!(slots.get_mut(a), None);
        assert_eq!(slots.remove(a), None);
        assert_eq!(slots.get_mut(SlotId::from_token(b.token())), Some(&mut 'b'));
        slots.clear();
        assert_eq!(slots.get_mut(b), None);
        assert_eq!(slots.len(), 0);
    }

    #[test]
    fn ready_queue_goes_round_and_skips_the_removed() {
        let mut slots = Slots::default();
        let ids: Vec<_> = (0..4).map(|n| slots.insert(n)).collect();
        ids.iter().for_each(|id| slots.make_ready(*id));
        slots.make_ready(ids[0]);
        slots.remove(ids[1]);
        assert_eq!(slots.next_ready(), Some(ids[0]));
        slots.make_ready(ids[0]);
        assert_eq!(slots.next_ready(), Some(ids[2]));
        slots.make_ready_first(ids[2]);
        assert_eq!(slots.next_ready(), Some(ids[2]));
        assert_eq!(slots.next_ready(), Some(ids[3]));
        assert_eq!(slots.next_ready(), Some(ids[0]));
        assert_eq!(slots.next_ready(), None);
    }

    #[test]
    fn ready_queue_stays_bounded_when_entries_come_and_go() {
        let mut slots = Slots::default();
        for n in 0..1000 {
            let id = slots.insert(n);
            slots.make_ready(id);
            slots.remove(id);
        }
        assert_eq!(slots.ready.len(), 1);
    }
}
