//! A process 1 that only reaps: for programs that leave orphans, or that signals end only because they are not process 1.
//! It is no program but this one's code in the container, so that the image needs none.

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

use crate::sys;

/// Goes on in a child. The process that called waits for it, gives it all signals, collects everybody's children, and ends as
/// the child does.
pub fn fork() -> Result<(), Errno> {
    // What comes before the loop waits for it; the child lets it through again.
    sys::set_signal_mask(ALL)?;
    let Some(child) = sys::fork()? else {
        return sys::set_signal_mask(0);
    };
    // The parent must see the end of the channel when the child executes the program, and nobody may look in here.
    if sys::close_from(0).is_err() || sys::set_undumpable().is_err() {
        sys::exit(125);
    }
    loop {
        match sys::wait_signal(ALL) {
            Ok(libc::SIGCHLD) => reap(child),
            Ok(signal) => {
                // It ended already, and the next signal is SIGCHLD.
                let _ = sys::kill(child, signal);
            }
            Err(_) => {}
        }
    }
}

const ALL: u64 = u64::MAX;

fn reap(child: Pid) {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == child => {
                if let Some(exit) = crate::Exit::from_wait_status(status.as_raw()) {
                    sys::exit(i32::from(exit.code));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(Errno::INTR) => {}
            // No children at all: the program's end was missed.
            Err(_) => sys::exit(125),
        }
    }
}
