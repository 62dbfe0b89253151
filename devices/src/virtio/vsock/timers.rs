//! Deadlines, and the one timer that stands for all of them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A set of deadlines, each with the token of what waits for it.
#[derive(Debug)]
pub struct Timers {
    fd: TimerFd,
    deadlines: BTreeSet<(Instant, u64)>,
    /// When the timer goes off. It may be earlier than any deadline, if that was removed: one idle
    /// wake-up is cheaper than a system call for every deadline met.
    armed: Option<Instant>,
}

impl Timers {
    /// No deadlines.
    pub fn new() -> io::Result<Timers> {
        Ok(Timers {
            fd: TimerFd::new().map_err(io::Error::from)?,
            deadlines: BTreeSet::new(),
            armed: None,
        })
    }

    /// Adds a deadline.
    pub fn add(&mut self, at: Instant, token: u64) {
        self.deadlines.insert((at, token));
        if self.armed.is_none_or(|armed| at < armed) {
            self.arm(at);
        }
    }

    /// Forgets a deadline.
    pub fn remove(&mut self, at: Instant, token: u64) {
        self.deadlines.remove(&(at, token));
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.deadlines.clear();
    }

    /// Takes out a deadline that has passed. To be called until there is none, when the timer went
    /// off; then the timer is set again.
    pub fn next_passed(&mut self, now: Instant) -> Option<u64> {
        match self.deadlines.first().copied() {
            Some((at, token)) if at <= now => {
                self.deadlines.pop_first();
                Some(token)
            }
            Some((at, _)) => {
                self.arm(at);
                None
            }
            None => {
                self.armed = None;
                None
            }
        }
    }

    fn arm(&mut self, at: Instant) {
        // Zero would disarm it.
        let delay = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        // Setting a timer that is open to a valid time cannot fail.
        self.armed = self.fd.reset(delay, None).is_ok().then_some(at);
    }
}

impl AsRawFd for Timers {
    /// Readable when a deadline may have passed. To be watched for edges: it is never read.
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_pass_in_order_and_removed_ones_do_not() {
        let mut timers = Timers::new().unwrap();
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        timers.add(after(30), 3);
        timers.add(after(10), 1);
        timers.add(after(20), 2);
        timers.remove(after(20), 2);
        assert_eq!(timers.armed, Some(after(10)));
        assert_eq!(timers.next_passed(now), None);
        assert_eq!(timers.next_passed(after(15)), Some(1));
        assert_eq!(timers.next_passed(after(15)), None);
        assert_eq!(timers.armed, Some(after(30)));
        assert_eq!(timers.next_passed(after(30)), Some(3));
        assert_eq!(timers.next_passed(after(30)), None);
        assert_eq!(timers.armed, None);
    }
}
