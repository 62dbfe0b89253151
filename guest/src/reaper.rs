//! The one owner of `waitpid(-1)`: orphans become PID 1's children, and somebody must collect them.

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

/// Collects every process that has ended and reports each, with its raw wait status. Returns whether
/// children are left.
pub fn reap(mut ended: impl FnMut(Pid, i32)) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended(pid, status.as_raw()),
            Ok(None) => return true,
            Err(Errno::INTR) => {}
            // ECHILD, the only other error there is.
            Err(_) => return false,
        }
    }
}
