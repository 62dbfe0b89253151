//! Our program is out of the reach of containers: see `bulkhead_container::self_exe`.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use bulkhead_container::self_exe;

use crate::failure::{Outcome, cannot};

/// Goes on as it is if this program cannot be written through `/proc/self/exe`, and otherwise executes one of which that is so.
pub fn ensure() -> Outcome<()> {
    if !self_exe::is_writable()? {
        return Ok(());
    }
    let program = match self_exe::read_only() {
        Ok(program) => program,
        // Whoever may not mount copies it.
        Err(_) => self_exe::sealed()?,
    };
    let mut words = std::env::args_os();
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0(words.next().unwrap_or_else(|| "bulkhead-runc".into()));
    Err(cannot("execute this program again")(
        command.args(words).exec(),
    ))
}
