//! The one owner of `waitpid(-1)`: orphans become PID 1's children, and somebody must collect them.

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

/// A process that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub pid: Pid,
    /// Its exit status as a shell would report it.
    pub code: u8,
}

/// Collects every process that has ended and reports each. Returns whether children are left.
pub fn reap(mut ended: impl FnMut(Ended)) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if let Some(code) = exit_code(status.as_raw()) {
                    ended(Ended { pid, code });
                }
            }
            Ok(None) => return true,
            Err(Errno::INTR) => {}
            // ECHILD, the only other error there is.
            Err(_) => return false,
        }
    }
}

/// A shell's view of how a process ended, from its raw wait status: its own status, or 128 and the signal's number. `None` if
/// it did not end but was stopped or went on.
pub fn exit_code(status: i32) -> Option<u8> {
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        return None;
    };
    // The kernel keeps 8 bits of a status and 7 of a signal.
    u8::try_from(code).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_when_mapped_then_as_a_shell_does() {
        assert_eq!(exit_code(0), Some(0));
        assert_eq!(exit_code(255 << 8), Some(255));
        assert_eq!(exit_code(libc::SIGKILL), Some(137));
        let dumped_core = libc::SIGSEGV | 0x80;
        assert_eq!(exit_code(dumped_core), Some(139));
    }

    #[test]
    fn status_when_not_of_an_end_then_none() {
        let stopped = libc::SIGSTOP << 8 | 0x7f;
        let continued = 0xffff;
        assert_eq!((exit_code(stopped), exit_code(continued)), (None, None));
    }

    #[test]
    fn any_status_when_mapped_then_no_panic() {
        for status in 0..=0x1_ffff {
            exit_code(status);
        }
    }
}
