//! Signals as events: blocked, and read from a descriptor in the loop.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, read};

/// What a signal asks of PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A child ended.
    Reap,
    /// An orderly end: SIGTERM, SIGINT (Ctrl-Alt-Del where the kernel forwards it) or SIGPWR.
    Stop,
}

/// What PID 1 watches for.
const ALL: [libc::c_int; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR];

/// The descriptor signals are read from. They stay blocked for good: a program that is started
/// from here must unblock them before it is executed.
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals and opens the descriptor. What was raised before is kept for it only if
    /// it was pending; children that ended earlier are found by the first reaping.
    pub fn new() -> io::Result<Self> {
        Self::of(&ALL)
    }

    /// Only that children have ended: other signals are for other threads of the process, all of which
    /// have this one blocked.
    pub fn of_children() -> io::Result<Self> {
        Self::of(&[libc::SIGCHLD])
    }

    fn of(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset makes a set of the memory, before anything reads it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for &signal in signals {
            // SAFETY: the set was initialised above and the signal is a valid one.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        let watched = set;
        // A program that has closed its input is an error of the write, and nothing else.
        // SAFETY: as above.
        unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE) };
        // SAFETY: the set is initialised and lives through the call; no old set is asked for.
        let blocked =
            unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        if blocked < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: as above; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, watched.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, open and ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Signals { fd })
    }

    /// The next signal, if one is pending.
    pub fn next(&self) -> Option<Asked> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            return match read(&self.fd, &mut info) {
                // `ssi_signo` is the structure's first field.
                Ok(n) if n == info.len() => {
                    let number = [info[0], info[1], info[2], info[3]];
                    Some(match libc::c_int::from_ne_bytes(number) {
                        libc::SIGCHLD => Asked::Reap,
                        _ => Asked::Stop,
                    })
                }
                Err(Errno::INTR) => continue,
                _ => None,
            };
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
