//! The two ends of programs' streams.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_container::Stdio;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::streams::program::Ends;

/// Pipes for a program that has no terminal: its ends and ours. Without `stdin` it reads from
/// `/dev/null`.
pub fn pipes(stdin: bool) -> io::Result<(Stdio, Ends)> {
    let (program_stdin, our_stdin) = if stdin {
        let (program, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        (program, Some(never_waiting(ours)?))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (our_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (our_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let ends = Ends {
        stdin: our_stdin,
        stdout: Some(never_waiting(our_stdout)?),
        stderr: Some(never_waiting(our_stderr)?),
        is_terminal: false,
    };
    let stdio = Stdio::Files {
        stdin: program_stdin,
        stdout,
        stderr,
    };
    Ok((stdio, ends))
}

/// Our end of a program's terminal.
pub fn terminal(master: OwnedFd) -> io::Result<Ends> {
    let master = never_waiting(master)?;
    // A descriptor can be waited for once, and this one is for two things.
    let input = rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 0)?;
    Ok(Ends {
        stdin: Some(input),
        stdout: Some(master),
        stderr: None,
        is_terminal: true,
    })
}

/// Only our end: the two ends of a pipe have flags of their own.
fn never_waiting(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    Ok(fd)
}
