//! A process that goes on apart from the one that made it: what stays with a container when its maker leaves.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use rustix::process::Pid;

use crate::sys;

/// Forks a process that runs `child` and ends with the code that this returns. It has these as its standard input, output and
/// error, and no other descriptor. None, and nothing is done, if this process has other threads: what they hold would be held
/// for good.
pub fn fork_apart(
    stdio: [BorrowedFd<'_>; 3],
    child: impl FnOnce() -> i32,
) -> io::Result<Option<Pid>> {
    // As many as threads, and two.
    let links = std::fs::metadata("/proc/self/task").map(|folder| folder.nlink());
    if !matches!(links, Ok(3)) {
        return Ok(None);
    }
    if let Some(pid) = sys::fork_alone()? {
        return Ok(Some(pid));
    }
    let mut numbers = 0..;
    let given = stdio.into_iter().zip(&mut numbers);
    let connected = given.map(|(fd, number)| sys::dup_to(fd, number));
    let connected = connected
        .collect::<Result<(), _>>()
        .and_then(|()| sys::close_from(3));
    std::process::exit(match connected {
        Ok(()) => child(),
        Err(_) => 127,
    })
}
