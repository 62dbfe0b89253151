//! Where PID 1 says what went wrong: the kernel's log, so that it comes out where the kernel's own
//! messages do, in their order.

use std::fs::OpenOptions;
use std::io::Write;

/// Logs `message` at the kernel's error level, or writes it to standard error where there is no
/// kernel log to write to or the kernel is not the agent's.
pub fn error(message: std::fmt::Arguments<'_>) {
    let line = format!("<3>bulkhead-agent: {message}\n");
    let is_logged = std::process::id() == 1
        && OpenOptions::new()
            .write(true)
            .open("/dev/kmsg")
            .and_then(|mut log| log.write_all(line.as_bytes()))
            .is_ok();
    if !is_logged {
        // There is nowhere left to complain about a failure of this.
        let _ = std::io::stderr().write_all(&line.as_bytes()[3..]);
    }
}
