//! The signals that end a VM and not only this process.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::error::{SessionError, cannot};

/// Blocks the signals that end this process, and the one for the window's size, for this thread and those that
/// it starts. They are read from a descriptor instead.
pub fn block() -> Result<SignalFd, SessionError> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGWINCH,
    ] {
        set.add(signal);
    }
    set.thread_block().map_err(cannot("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&set, flags).map_err(cannot("watch signals"))
}

/// Whether one has come by now that ends this process.
pub fn has_come(signals: &SignalFd) -> bool {
    while let Ok(Some(info)) = signals.read_signal() {
        if info.ssi_signo != Signal::SIGWINCH as u32 {
            return true;
        }
    }
    false
}
