//! What a monitor waits for.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

use super::machine::Machine;
use crate::error::{Error, cannot};
use crate::poll::poll_until;

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
/// they are blocked no more, but for that a child has ended: those are an agent's, if this process has one.
pub fn watch_signals() -> Result<SignalFd, Error> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    let mut blocked = set;
    blocked.add(Signal::SIGCHLD);
    blocked.thread_set_mask().map_err(cannot("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&set, flags).map_err(cannot("watch signals"))
}

/// What there is to wait for all the time.
pub struct Watch {
    signals: SignalFd,
}

impl Watch {
    /// Watches the signals that this process gets.
    pub fn new(signals: SignalFd) -> Self {
        Watch { signals }
    }

    /// Waits until `fd` can be read, or something happens that matters more or comes first. A `command`
    /// that can be read from has ended, as it has nothing to say yet.
    pub fn wait(
        &self,
        machine: Option<&Machine>,
        fd: Option<BorrowedFd<'_>>,
        command: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<Event, Error> {
        // Stands in for what there is none of.
        let none = self.signals.as_fd();
        let all = [
            fd.unwrap_or(none),
            none,
            machine.map_or(none, AsFd::as_fd),
            command.unwrap_or(none),
        ];
        loop {
            let mut fds = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            if !poll_until(&mut fds, until).map_err(cannot("wait for the sandbox"))? {
                return Ok(Event::Nothing);
            }
            let [readable, signalled, ended, left] = fds.map(|fd| !fd.revents().is_empty());
            // What has been written counts, even if its writer has ended since.
            if readable && fd.is_some() {
                return Ok(Event::Readable);
            }
            if signalled && matches!(self.signals.read_signal(), Ok(Some(_))) {
                return Ok(Event::Stop);
            }
            if left && command.is_some() {
                return Ok(Event::CommandEnded);
            }
            if ended && machine.is_some() {
                return Ok(Event::MachineEnded);
            }
        }
    }
}
