//! Whether a container's memory runs out: `memory.events` of its group.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bulkhead_protocol::EventKind;
use rustix::event::epoll::EventFlags;

use crate::guest::Guest;
use crate::server::poll::{Poll, Token};
use crate::server::slab::Key;

/// A container's `memory.events`.
#[derive(Debug)]
pub struct OomWatch {
    events: File,
    /// How many processes the kernel had killed when it was last read.
    pub kills: u64,
}

impl OomWatch {
    /// Begins to watch the group at this folder, if the kernel counts memory.
    pub fn start(cgroup: &Path, poll: &Poll, key: Key) -> Option<Self> {
        let events = File::open(cgroup.join("memory.events")).ok()?;
        let mut watch = OomWatch { events, kills: 0 };
        // The kernel reports what has happened since it was last read.
        watch.update();
        poll.add(&watch.events, Token::Oom(key), EventFlags::PRI)
            .ok()?;
        Some(watch)
    }

    /// Reads it; returns whether processes have been killed since.
    pub fn update(&mut self) -> bool {
        let mut buffer = [0; 256];
        let length = self.events.read_at(&mut buffer, 0).unwrap_or(0);
        let kills = kills(&buffer[..length]).unwrap_or(self.kills);
        let more = kills > self.kills;
        self.kills = kills;
        more
    }
}

impl Guest {
    /// A container's memory events have changed.
    pub fn memory_event(&mut self, key: Key) {
        let watch = self.containers.get_mut(key).and_then(|e| e.oom.as_mut());
        if watch.is_some_and(OomWatch::update) {
            self.tell_of(key, EventKind::Oom);
        }
    }
}

fn kills(table: &[u8]) -> Option<u64> {
    let mut lines = str::from_utf8(table).ok()?.lines();
    lines
        .find_map(|line| line.strip_prefix("oom_kill "))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_when_read_then_the_killed_are_counted_and_not_the_attempts() {
        let table = b"low 0\nhigh 1\nmax 22\noom 3\noom_kill 4\noom_group_kill 5\n";
        assert_eq!(kills(table), Some(4));
        assert_eq!(
            (kills(b""), kills(b"oom_kill x\n"), kills(b"\xff")),
            (None, None, None)
        );
    }
}
