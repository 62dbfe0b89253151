//! Staying with a process until it ends: signals are passed on to it, and its terminal is joined with ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, wait, waitid};

use crate::failure::{Outcome, cannot};
use crate::terminal::Joined;

/// Signals wait for us from now on, so that none is lost before there is whom to give it to.
pub struct Foreground {
    signals: SignalFd,
}

impl Foreground {
    pub fn prepare() -> Outcome<Foreground> {
        let failed = || cannot("wait for signals");
        let mut set = SigSet::all();
        // What these say is of this process.
        for signal in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGTSTP,
            Signal::SIGCONT,
            Signal::SIGPIPE,
            Signal::SIGURG,
        ] {
            set.remove(signal);
        }
        set.thread_block().map_err(failed())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).map_err(failed())?;
        Ok(Foreground { signals })
    }

    /// Waits for a child to end, with what is to be done with a signal; its code.
    pub fn stay(
        self,
        process: BorrowedFd<'_>,
        terminal: Option<OwnedFd>,
        kill: impl Fn(i32),
    ) -> Outcome<u8> {
        let mut terminal = terminal.map(Joined::new).transpose()?;
        let stdin = std::io::stdin();
        loop {
            let on = |wanted: bool, flags: PollFlags| match wanted {
                true => flags,
                false => PollFlags::empty(),
            };
            let mut watched = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::from_borrowed_fd(process, PollFlags::IN),
            ];
            if let Some(joined) = &terminal {
                let master =
                    on(joined.is_open(), PollFlags::IN) | on(joined.has_input(), PollFlags::OUT);
                if !master.is_empty() {
                    watched.push(PollFd::from_borrowed_fd(joined.master(), master));
                }
                if joined.wants_input() {
                    watched.push(PollFd::new(&stdin, PollFlags::IN));
                }
            }
            match poll(&mut watched, None) {
                Err(Errno::INTR) => continue,
                polled => polled.map_err(cannot("wait for the container"))?,
            };
            let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(watched);
            let is_ready = |n: usize| ready.get(n).copied().unwrap_or(false);
            while let Ok(Some(signal)) = self.signals.read_signal() {
                self.pass_on(signal.ssi_signo, terminal.as_ref(), &kill);
            }
            if let Some(joined) = &mut terminal {
                let has_master = joined.is_open();
                let wants_input = joined.wants_input();
                if has_master && is_ready(2) {
                    joined.give_input();
                    joined.show();
                }
                if wants_input && is_ready(2 + usize::from(has_master)) {
                    joined.take_input();
                }
            }
            if is_ready(1) {
                if let Some(joined) = &mut terminal {
                    while joined.show() {}
                }
                drop(terminal);
                return collect(process);
            }
        }
    }

    fn pass_on(&self, signal: u32, terminal: Option<&Joined>, kill: &impl Fn(i32)) {
        match i32::try_from(signal) {
            Ok(libc_signal) if libc_signal == Signal::SIGCHLD as i32 => {}
            Ok(libc_signal) if libc_signal == Signal::SIGWINCH as i32 && terminal.is_some() => {
                terminal.into_iter().for_each(Joined::resize);
            }
            Ok(signal) => kill(signal),
            Err(_) => {}
        }
    }
}

/// The code of a child that has ended. Orphans that came to us meanwhile are collected, too.
fn collect(process: BorrowedFd<'_>) -> Outcome<u8> {
    let status = loop {
        match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            status => break status.map_err(cannot("wait for the container"))?,
        }
    };
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    let code = status.map(|status| match status.terminating_signal() {
        Some(signal) => signal | 0x80,
        None => status.exit_status().unwrap_or(0),
    });
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}
