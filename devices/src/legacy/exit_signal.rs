//! How a device tells the VMM that the guest has ended itself.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How a guest can end itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GuestExit {
    /// It powered off.
    PowerOff = 1,
    /// Its kernel panicked.
    Panic = 2,
    /// It asked for a reset.
    Reset = 3,
}

/// A word from the guest that is said once: the first one counts. A kernel that has panicked resets
/// the machine next, and must not pass for one that was rebooted.
#[derive(Debug)]
pub struct ExitSignal {
    reason: AtomicU8,
    event: EventFd,
}

impl ExitSignal {
    /// A signal that was not raised.
    pub fn new() -> io::Result<Self> {
        Ok(ExitSignal {
            reason: AtomicU8::new(0),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The guest has ended itself for `reason`.
    pub fn raise(&self, reason: GuestExit) {
        let first =
            self.reason
                .compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            // It counts to 1, so the write cannot fail.
            let _ = self.event.write(1);
        }
    }

    /// Why the guest has ended itself, if it has.
    pub fn reason(&self) -> Option<GuestExit> {
        [GuestExit::PowerOff, GuestExit::Panic, GuestExit::Reset]
            .into_iter()
            .find(|reason| *reason as u8 == self.reason.load(Ordering::Acquire))
    }

    /// Readable once the guest has ended itself.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_counts_and_is_said_once() {
        let signal = ExitSignal::new().unwrap();
        assert_eq!(signal.reason(), None);
        assert!(signal.event().read().is_err());
        signal.raise(GuestExit::Panic);
        signal.raise(GuestExit::Reset);
        assert_eq!(signal.reason(), Some(GuestExit::Panic));
        assert_eq!(signal.event().read().unwrap(), 1);
    }
}
