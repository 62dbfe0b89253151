//! What a monitor waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::error::{Error, cannot};
use crate::poll::poll_until;
use crate::process::wait_end;

/// How long a machine gets to end in order before it is killed.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How long a machine whose streams have ended gets to end by itself.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// What was waited for has something to read.
    Readable,
    /// The machine has ended.
    MachineEnded,
    /// This process is to end.
    Stop,
    /// The command that started the container has ended.
    CommandEnded,
    /// Nothing, for as long as was to be waited.
    Nothing,
}

/// The signals that ask this process to end. Whatever others the command has blocked that started this,
/// they are blocked no more.
pub fn watch_signals() -> Result<SignalFd, Error> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_set_mask().map_err(cannot("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&set, flags).map_err(cannot("watch signals"))
}

/// The machine's process. Dropped, it is killed.
pub struct Machine {
    child: Child,
    pidfd: OwnedFd,
    signals: SignalFd,
}

impl Machine {
    /// Watches the process, and the signals that this one gets.
    pub fn watch(mut child: Child, signals: SignalFd) -> Result<Self, Error> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Machine {
                child,
                pidfd,
                signals,
            }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(cannot("watch the VMM")(e))
            }
        }
    }

    /// Waits until `fd` can be read, or something happens that matters more or comes first. A `command`
    /// that can be read from has ended, as it has nothing to say yet.
    pub fn wait(
        &self,
        fd: BorrowedFd<'_>,
        command: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<Event, Error> {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(fd, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.pidfd, PollFlags::IN),
                // Where there is none, the first stands in for it.
                PollFd::from_borrowed_fd(command.unwrap_or(fd), PollFlags::IN),
            ];
            if !poll_until(&mut fds, until).map_err(cannot("wait for the sandbox"))? {
                return Ok(Event::Nothing);
            }
            let [readable, signalled, ended, left] = fds.map(|fd| !fd.revents().is_empty());
            // What has been written counts, even if its writer has ended since.
            if readable {
                return Ok(Event::Readable);
            }
            if signalled && matches!(self.signals.read_signal(), Ok(Some(_))) {
                return Ok(Event::Stop);
            }
            if left && command.is_some() {
                return Ok(Event::CommandEnded);
            }
            if ended {
                return Ok(Event::MachineEnded);
            }
        }
    }

    /// Ends the machine, in order if it can be.
    pub fn end(&mut self) -> io::Result<ExitStatus> {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.pidfd, rustix::process::Signal::TERM);
        if !wait_end(self.pidfd.as_fd(), END_LIMIT) {
            self.child.kill()?;
        }
        self.child.wait()
    }

    /// How it ended, if it does so in a moment: its streams end before it.
    pub fn last_status(&mut self) -> Option<ExitStatus> {
        wait_end(self.pidfd.as_fd(), LAST_MOMENT);
        self.status()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
