//! How a VM ends, and what its process's exit code says of it.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why the VM is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered itself off.
    PowerOff,
    /// Somebody outside asked for the end: a signal, or the control socket.
    Stopped,
    /// The guest asked for a reset. There is no firmware to go back to, so this ends the VM; it is
    /// also how a kernel without our exit port says good-bye (`reboot=k`).
    Reset,
    /// The guest's kernel panicked and said so through the exit port.
    Panic,
    /// A fault while handling a double fault: the processor gave up.
    TripleFault,
    /// The process that served a device is gone, and with it what the guest was promised.
    DeviceLost(String),
    /// KVM could not go on and the VMM could not help: what it met, with registers.
    Unsupported(String),
}

impl VmExit {
    /// The exit code of `bulkhead-vmm`, and of `bulkhead boot` after it.
    pub fn code(&self) -> u8 {
        match self {
            VmExit::PowerOff | VmExit::Stopped => 0,
            VmExit::Reset => 10,
            VmExit::Panic => 11,
            VmExit::TripleFault => 12,
            VmExit::Unsupported(_) => 13,
            VmExit::DeviceLost(_) => DEVICE_LOST,
        }
    }
}

/// Exit code when the VM could not be built: the configuration or the host is at fault.
pub const CANNOT_START: u8 = 125;

/// Exit code when the process that served a device is gone.
pub const DEVICE_LOST: u8 = 14;

/// Exit code when the VM could not go on from its snapshot for what that is: damaged, or not for this host. Another one
/// is needed.
pub const SNAPSHOT_REFUSED: u8 = 15;

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmExit::PowerOff => f.write_str("the guest powered off"),
            VmExit::Stopped => f.write_str("the VM was stopped"),
            VmExit::Reset => f.write_str("the guest asked for a reset"),
            VmExit::Panic => f.write_str("the guest's kernel panicked; its console says why"),
            VmExit::TripleFault => {
                f.write_str("the guest's processor shut down after a triple fault")
            }
            VmExit::Unsupported(what) | VmExit::DeviceLost(what) => f.write_str(what),
        }
    }
}

/// Where the end of the VM is reported: the first report stands.
#[derive(Debug)]
pub struct ExitSlot {
    exit: Mutex<Option<VmExit>>,
    event: EventFd,
}

impl ExitSlot {
    /// An empty slot.
    pub fn new() -> io::Result<Self> {
        Ok(ExitSlot {
            exit: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Says that the VM is over, and wakes the event loop.
    pub fn report(&self, exit: VmExit) {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(exit);
        // A full counter means that the loop has been woken already.
        let _ = self.event.write(1);
    }

    /// How the VM ended, if it has.
    pub fn get(&self) -> Option<VmExit> {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Readable once something was reported.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_when_told_twice_keeps_the_first() {
        let slot = ExitSlot::new().expect("eventfd");
        assert_eq!(slot.get(), None);
        slot.report(VmExit::Panic);
        slot.report(VmExit::Reset);
        assert_eq!(slot.get(), Some(VmExit::Panic));
    }

    #[test]
    fn codes_when_the_guest_ended_badly_are_distinct() {
        let bad = [
            VmExit::Reset,
            VmExit::Panic,
            VmExit::TripleFault,
            VmExit::Unsupported(String::new()),
            VmExit::DeviceLost(String::new()),
        ];
        let mut codes: Vec<u8> = bad.iter().map(VmExit::code).collect();
        codes.push(CANNOT_START);
        codes.push(SNAPSHOT_REFUSED);
        codes.push(0);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), bad.len() + 3);
    }
}
