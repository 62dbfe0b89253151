//! A one-byte port with which the guest ends the VM and says why.
//!
//! A guest without ACPI has no other way to power off. Ours is a port because a program reaches one
//! with two system calls (`ioperm`), with no driver.

use std::sync::Arc;

use super::exit_signal::{ExitSignal, GuestExit};
use crate::bus::BusDevice;

/// The I/O port.
pub const PORT: u64 = 0x501;
/// Number of ports.
pub const WINDOW_SIZE: u64 = 1;
/// What is written to power off.
pub const POWER_OFF: u8 = 0;
/// What is written to report that the kernel panicked.
pub const PANIC: u8 = 1;

/// The exit port.
#[derive(Debug)]
pub struct ExitPort(Arc<ExitSignal>);

impl ExitPort {
    /// A port that raises `signal`.
    pub fn new(signal: Arc<ExitSignal>) -> Self {
        ExitPort(signal)
    }
}

impl BusDevice for ExitPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        match data {
            [POWER_OFF] => self.0.raise(GuestExit::PowerOff),
            [PANIC] => self.0.raise(GuestExit::Panic),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_mean_something_raise_the_signal() {
        for (data, reason) in [
            (&[0][..], Some(GuestExit::PowerOff)),
            (&[1], Some(GuestExit::Panic)),
            (&[2], None),
            (&[0, 0], None),
            (&[], None),
        ] {
            let signal = Arc::new(ExitSignal::new().unwrap());
            ExitPort::new(Arc::clone(&signal)).write(0, data);
            assert_eq!(signal.reason(), reason, "{data:?}");
        }
    }
}
