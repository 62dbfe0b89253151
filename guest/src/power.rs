//! The end of the guest.
//!
//! A microVM has no ACPI to power off with. Our VMM has a port for it, named on the kernel command
//! line as `bulkhead.exit_port=0x501`: a byte of 0 there ends the VM. Under another VMM the kernel
//! is asked, and does what it can.

use std::io;

use rustix::system::{RebootCommand, reboot};

use crate::kmsg;

/// What the VMM's exit port takes for an orderly end.
const EXIT_POWER_OFF: u8 = 0;

/// Sends `signal` to every process but this one. Only PID 1 of a guest may mean that.
pub fn signal_everyone(signal: libc::c_int) {
    if std::process::id() == 1 {
        // SAFETY: kill takes integers and touches no memory of ours. ESRCH, when there is nobody
        // left to signal, is as good as success.
        unsafe { libc::kill(-1, signal) };
    }
}

/// Ends the guest: caches to disk, disks unmounted, power off. Every other process has ended.
pub fn off() -> ! {
    rustix::fs::sync();
    crate::mounts::unmount_disks();
    let failed = match exit_port() {
        Ok(Some(port)) => match write_port(port, EXIT_POWER_OFF) {
            Ok(()) => Some(format!("nothing ends the VM at port {port:#x}")),
            Err(e) => Some(format!("cannot use port {port:#x}: {e}")),
        },
        Ok(None) => None,
        Err(e) => Some(format!("cannot read /proc/cmdline: {e}")),
    };
    match failed {
        // A VMM with an exit port has no other way to power off: a kernel that is asked to would
        // halt for good. A reset ends the VM too, if less politely.
        Some(failed) => kmsg::error(format_args!("{failed}")),
        None => end_by(RebootCommand::PowerOff),
    }
    end_by(RebootCommand::Restart);
    // The end of PID 1 would be a panic of the kernel, so there is none.
    loop {
        std::thread::park();
    }
}

fn end_by(command: RebootCommand) {
    if let Err(e) = reboot(command) {
        kmsg::error(format_args!("{command:?} refused: {e}"));
    }
}

fn exit_port() -> io::Result<Option<u16>> {
    Ok(port_parameter(&std::fs::read_to_string("/proc/cmdline")?))
}

/// The value of `bulkhead.exit_port` on a kernel command line, hexadecimal with `0x` or decimal.
/// The last one counts, as it does for the kernel's own parameters.
fn port_parameter(cmdline: &str) -> Option<u16> {
    let values = cmdline.split_ascii_whitespace();
    let value = values
        .filter_map(|p| p.strip_prefix("bulkhead.exit_port="))
        .next_back()?;
    match value.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

/// Writes a byte to an I/O port. If the port is one that ends the VM, this does not return.
pub fn write_port(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: ioperm takes integers; it lets this thread use one port and touches no memory.
    if unsafe { libc::ioperm(port.into(), 1, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this thread may use the port, and writing to it touches no memory of this program.
    // What the device behind it does is the caller's matter.
    unsafe {
        std::arch::asm!(
            "out dx, al",
            in("dx") port,
            in("al") value,
            options(nomem, nostack, preserves_flags)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_when_named_on_the_command_line_then_found() {
        assert_eq!(
            port_parameter("quiet bulkhead.exit_port=0x501 rw\n"),
            Some(0x501)
        );
        let twice = "bulkhead.exit_port=1 bulkhead.exit_port=1282";
        assert_eq!(port_parameter(twice), Some(0x502));
        for none in [
            "",
            "console=hvc0",
            "bulkhead.exit_port=",
            "bulkhead.exit_port=0x10000",
            "bulkhead.exit_port=x",
            "not.bulkhead.exit_port=1",
        ] {
            assert_eq!(port_parameter(none), None, "{none}");
        }
    }
}
