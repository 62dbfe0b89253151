//! How a device asks the event loop to call it again.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::EventSource;

/// An eventfd that a device, or a handle to it, rings to get a turn on the event loop.
///
/// A device that has used up its share of one turn rings it instead of going on, so that a busy
/// device (or a guest that refills a queue as fast as it is emptied) does not keep the others waiting.
#[derive(Debug)]
pub struct Wakeup(EventFd);

impl Wakeup {
    /// A wakeup that was not rung.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Wakeup)
    }

    /// Asks for a turn. Several rings before it comes are one.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the loop is awake already.
        let _ = self.0.write(1);
    }

    /// The turn has come: call this first.
    pub fn clear(&self) {
        // Nothing to read only means that it was cleared already.
        let _ = self.0.read();
    }

    /// What the event loop should watch.
    pub fn source(&self, token: u32) -> EventSource {
        EventSource {
            fd: self.0.as_raw_fd(),
            token,
            edge: false,
            writable: false,
        }
    }
}
