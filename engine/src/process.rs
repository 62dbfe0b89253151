//! A process, told from others that have had or will have its number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::poll::poll_until;

/// How long the kernel gets to end a process that is killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A process by its number and when it started: numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in the kernel's ticks since the boot.
    pub start_ticks: u64,
}

impl Process {
    /// This process.
    pub fn this() -> io::Result<Self> {
        Self::with_pid(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The process that has the number `pid` now.
    pub fn with_pid(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Process { pid, start_ticks })
    }

    /// A descriptor of the process, if it is still there.
    pub fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Now that the number cannot be given to another, it can be compared.
        let is_same = Self::with_pid(self.pid).ok()? == self;
        // One that has ended, and that its parent has yet to be told of, is not there any more.
        (is_same && !wait_end(&fd, Duration::ZERO)).then_some(fd)
    }

    /// Kills it and waits for its end.
    pub fn kill(self) {
        if let Some(fd) = self.open() {
            let _ = pidfd_send_signal(&fd, Signal::KILL); // it may have ended
            wait_end(&fd, KILL_LIMIT);
        }
    }
}

/// Waits for the end of the process that `fd` is of. `false` if it did not come in time.
pub fn wait_end(fd: impl AsFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll_until(&mut fds, Some(Instant::now() + limit)).unwrap_or(false)
}

/// The time of processors that a process has used, itself and for the kernel, in the kernel's ticks.
pub fn ticks_of(pid: u32) -> Option<u64> {
    ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 14th and the 15th field of `/proc/PID/stat` (proc(5)).
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

/// The 22nd field of `/proc/PID/stat` (proc(5)).
fn start_ticks(stat: &str) -> Option<u64> {
    // The second field is a name in parentheses, which may hold any character.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_when_its_number_is_used_again_is_another() {
        let this = Process::this().expect("this");
        assert!(this.open().is_some());
        let earlier = Process {
            start_ticks: this.start_ticks.wrapping_sub(1),
            ..this
        };
        assert!(earlier.open().is_none());
    }

    #[test]
    fn start_when_the_name_is_hostile_is_still_found() {
        let rest = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>();
        let stat = format!("7 (a) R ( b) {}", rest.join(" "));
        assert_eq!(start_ticks(&stat), Some(22));
        assert_eq!(start_ticks("7 (a) R"), None);
        assert_eq!(ticks(&stat), Some(14 + 15));
        assert_eq!(ticks("7 (a) R"), None);
    }
}
