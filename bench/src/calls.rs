//! What a program asks of its kernel: a system call that does next to nothing, and a new process.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::NOTHING;
use crate::timed::{Done, for_about};

/// This program, by a path that any container has.
const ITSELF: &str = "/proc/self/exe";

/// System calls that only ask for a number the kernel has at hand.
pub fn system_calls(budget: Duration) -> Result<Done, String> {
    for_about(budget, || Ok(ask(64)))
}

/// So many of them, for who counts.
pub fn ask(calls: u64) -> u64 {
    for _ in 0..calls {
        let _ = rustix::process::getppid();
    }
    calls
}

/// Processes made, executing this program, which ends at once, and waited for.
pub fn spawn(budget: Duration) -> Result<Done, String> {
    for_about(budget, || {
        let mut command = Command::new(ITSELF);
        command.arg(NOTHING).stdin(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => Ok(1),
            Ok(status) => Err(format!("the new process ended with {status}")),
            Err(e) => Err(format!("cannot start {ITSELF}: {e}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted() {
        assert_eq!(system_calls(Duration::ZERO).expect("done").count, 64);
        assert_eq!(ask(3), 3);
    }
}
