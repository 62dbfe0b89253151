//! The smallest guest: a PID 1 that says which kernel it runs on and ends the machine.
//!
//! How, the kernel's command line says (an unknown `name=value` there is in PID 1's environment):
//! `HELLO=reset` (the default), `poweroff` or `panic`.

use std::arch::asm;
use std::env;
use std::io;

use rustix::system::{RebootCommand, reboot, uname};

/// The VMM's exit port. A byte written to it ends the VM: 0 says that it was powered off.
const EXIT_PORT: u16 = 0x501;

fn main() {
    let system = uname();
    println!(
        "hello from {} {}",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy()
    );
    if std::process::id() != 1 {
        return;
    }
    // A serial port may still be sending.
    let _ = rustix::termios::tcdrain(io::stdout());
    match env::var("HELLO").as_deref() {
        Ok("poweroff") => power_off(),
        // PID 1 must not end: the kernel panics when it does.
        Ok("panic") => return,
        _ => {}
    }
    if let Err(e) = reboot(RebootCommand::Restart) {
        println!("hello: cannot reset: {e}");
    }
    loop {
        std::thread::park();
    }
}

fn power_off() {
    // SAFETY: grants this process one I/O port; no memory is involved.
    if unsafe { libc::ioperm(EXIT_PORT.into(), 1, 1) } != 0 {
        println!(
            "hello: no access to the exit port: {}",
            io::Error::last_os_error()
        );
        return;
    }
    // SAFETY: the port was granted above; the write ends the VM.
    unsafe { asm!("out dx, al", in("dx") EXIT_PORT, in("al") 0u8) };
}
