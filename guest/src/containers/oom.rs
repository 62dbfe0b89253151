//! Whether a container's memory runs out.

use bulkhead_container::Container;
use bulkhead_container::cgroup::MemoryEvents;
use bulkhead_protocol::EventKind;
use rustix::event::epoll::EventFlags;

use crate::guest::Guest;
use crate::server::poll::{Poll, Token};
use crate::server::slab::Key;

/// Begins to watch a container, if the kernel counts its memory.
pub fn watch(container: &Container, poll: &Poll, key: Key) -> Option<MemoryEvents> {
    let events = container.memory_events().ok()??;
    let interest = EventFlags::from_bits_retain(events.interest().bits().into());
    poll.add(&events, Token::Oom(key), interest).ok()?;
    Some(events)
}

impl Guest {
    /// There is something about a container's memory.
    pub fn memory_event(&mut self, key: Key) {
        let watched = self.containers.get_mut(key).and_then(|e| e.oom.as_mut());
        if watched.is_some_and(MemoryEvents::ran_out) {
            self.tell_of(key, EventKind::Oom);
        }
    }
}
