//! What a monitor waits for.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
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
    /// What was waited for has something to read, or room.
    Ready,
    /// The machine has ended.
    MachineEnded,
    /// This process is to end.
    Stop,
    /// A command asks for something.
    Request,
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
    /// Where commands ask for something, while they may.
    pub requests: Option<UnixListener>,
}

impl Watch {
    /// Watches the signals that this process gets.
    pub fn new(signals: SignalFd) -> Self {
        Watch {
            signals,
            requests: None,
        }
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
        let fd = fd.map(|fd| (fd, PollFlags::IN));
        self.wait_until(machine, fd, command, until)
    }

    /// The same until `fd` is as its flags say.
    pub fn wait_until(
        &self,
        machine: Option<&Machine>,
        fd: Option<(BorrowedFd<'_>, PollFlags)>,
        command: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<Event, Error> {
        // Stands in for what there is none of.
        let none = self.signals.as_fd();
        let others = [
            none,
            machine.map_or(none, AsFd::as_fd),
            command.unwrap_or(none),
            self.requests.as_ref().map_or(none, AsFd::as_fd),
        ];
        let [signals, machine_fd, command_fd, requests] = others.map(|fd| (fd, PollFlags::IN));
        let all = [
            fd.unwrap_or(signals),
            signals,
            machine_fd,
            command_fd,
            requests,
        ];
        loop {
            let mut fds = all.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
            if !poll_until(&mut fds, until).map_err(cannot("wait for the sandbox"))? {
                return Ok(Event::Nothing);
            }
            let [ready, signalled, ended, left, asked] = fds.map(|fd| !fd.revents().is_empty());
            // What has been written counts, even if its writer has ended since.
            if ready && fd.is_some() {
                return Ok(Event::Ready);
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
            if asked && self.requests.is_some() {
                return Ok(Event::Request);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn request_when_nobody_is_to_ask_is_not_seen_and_otherwise_comes_last() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("socket");
        let none = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_NONBLOCK);
        let mut watch = Watch::new(none.expect("signals"));
        let listener = UnixListener::bind(&path).expect("listen");
        let _asking = UnixStream::connect(&path).expect("connect");
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let wait = |watch: &Watch| {
            let now = Some(Instant::now());
            watch.wait(None, Some(ours.as_fd()), None, now)
        };
        assert_eq!(wait(&watch).expect("wait"), Event::Nothing);
        watch.requests = Some(listener);
        assert_eq!(wait(&watch).expect("wait"), Event::Request);
        drop(theirs);
        assert_eq!(wait(&watch).expect("wait"), Event::Ready);
    }
}
