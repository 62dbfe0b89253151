//! Being told when memory runs out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::stats;

/// Tells when memory of a control group runs out.
#[derive(Debug)]
pub struct MemoryEvents {
    /// Counts what was killed.
    table: OwnedFd,
    /// Of version 1: what the kernel says it through. Of version 2 the table does.
    signal: Option<OwnedFd>,
    kills: u64,
}

impl MemoryEvents {
    /// Watches a group of version 2 by its `memory.events`.
    pub(super) fn of_table(table: OwnedFd) -> MemoryEvents {
        MemoryEvents::begin(table, None)
    }

    /// Watches a group of version 1 by its `memory.oom_control`.
    pub(super) fn of_signals(group: &std::path::Path) -> Result<MemoryEvents, Errno> {
        use std::os::fd::AsRawFd;
        let open = |file: &str, flags| {
            openat(
                CWD,
                group.join(file),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let table = open("memory.oom_control", OFlags::RDONLY)?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = open("cgroup.event_control", OFlags::WRONLY)?;
        let registration = format!("{} {}", signal.as_raw_fd(), table.as_raw_fd());
        rustix::io::write(control, registration.as_bytes())?;
        Ok(MemoryEvents::begin(table, Some(signal)))
    }

    fn begin(table: OwnedFd, signal: Option<OwnedFd>) -> MemoryEvents {
        let mut events = MemoryEvents {
            table,
            signal,
            kills: 0,
        };
        // Of version 2 the kernel tells what has happened since this was last read.
        events.kills = events.read().map_or(0, |(kills, _)| kills);
        events
    }

    /// What [`as_fd`](AsFd::as_fd) is polled for.
    pub fn interest(&self) -> PollFlags {
        match self.signal {
            Some(_) => PollFlags::IN,
            None => PollFlags::PRI,
        }
    }

    /// How many processes the kernel had killed when it was last asked.
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// Whether memory ran out since this was last asked, so that a process is killed. From now on it polls again.
    pub fn ran_out(&mut self) -> bool {
        if let Some(signal) = &self.signal {
            let _ = rustix::io::read(signal, &mut [0; 8]);
        }
        // The group may be gone.
        let Some((kills, is_out)) = self.read() else {
            return false;
        };
        let more = kills > self.kills;
        self.kills = kills;
        // Version 1 tells before it kills.
        more || is_out && self.signal.is_some()
    }

    /// How many were killed, and whether there is no memory now.
    fn read(&self) -> Option<(u64, bool)> {
        let mut buffer = [0; 256];
        let length = rustix::io::pread(&self.table, &mut buffer, 0).ok()?;
        let text = str::from_utf8(buffer.get(..length)?).ok()?;
        let kills = stats::value(text, "oom_kill").unwrap_or(self.kills);
        Some((kills, stats::value(text, "under_oom") == Some(1)))
    }
}

impl AsFd for MemoryEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_ref().unwrap_or(&self.table).as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn table_when_it_grows_then_memory_ran_out_once() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let write = |text: &str| fs::write(file.path(), text).expect("written");
        write("low 0\nhigh 1\nmax 22\noom 3\noom_kill 4\noom_group_kill 5\n");
        let mut events = MemoryEvents::of_table(fs::File::open(file.path()).expect("open").into());
        assert_eq!((events.kills(), events.ran_out()), (4, false));
        write("oom 4\noom_kill 5\n");
        assert!(events.ran_out());
        assert!(!events.ran_out());
        for broken in ["", "oom_kill x\n"] {
            write(broken);
            assert_eq!((events.ran_out(), events.kills()), (false, 5));
        }
    }
}
