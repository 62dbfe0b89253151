//! The user's terminal: raw while a guest has it, put back whatever happens.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use rustix::process::getpgrp;
use rustix::termios::{self, OptionalActions, Termios};

/// Name of the hidden command that [`keep`] implements.
pub const KEEPER_COMMAND: &str = "keep-terminal";

/// A raw terminal. Dropping it puts the terminal back.
///
/// A process that is killed with SIGKILL drops nothing. So a second process, the keeper, holds the
/// other end of a socket: when it closes without a word, the keeper puts the terminal back instead.
pub struct RawTerminal {
    saved: Termios,
    keeper: Child,
    socket: UnixStream,
}

impl RawTerminal {
    /// Makes the terminal at standard input raw. `None` if it is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !termios::isatty(&stdin) {
            return Ok(None);
        }
        let saved = termios::tcgetattr(&stdin)?;
        // Before the terminal is touched: the keeper saves its state as it finds it.
        let (keeper, socket) = start_keeper()?;
        let terminal = RawTerminal {
            saved: saved.clone(),
            keeper,
            socket,
        };
        let mut raw = saved;
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Drain: what the guest printed last is still meant for a raw terminal.
        let restored = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.saved);
        if restored.is_ok() {
            let _ = self.socket.write_all(b"d"); // a keeper that is gone has nothing to do either
        }
        let _ = self.socket.shutdown(Shutdown::Write);
        let _ = self.keeper.wait();
    }
}

/// Whether standard input is a terminal that others have now: a shell stops whatever touches its terminal, or
/// reads from it, as a job in the background.
pub fn is_in_background() -> bool {
    termios::tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

/// The terminal's size, if standard output or input is one: columns and rows.
pub fn window_size() -> Option<(u16, u16)> {
    let of = |fd: BorrowedFd<'_>| termios::tcgetwinsize(fd).ok();
    let size = of(io::stdout().as_fd()).or_else(|| of(io::stdin().as_fd()))?;
    Some((size.ws_col, size.ws_row))
}

/// Starts the keeper, with the terminal as its standard input and a socket as its standard output.
fn start_keeper() -> io::Result<(Child, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let keeper = Command::new(std::env::current_exe()?)
        .arg(KEEPER_COMMAND)
        .stdout(OwnedFd::from(theirs))
        .spawn()?;
    // It says a byte once it has saved the terminal's state; only then may that state change.
    ours.read_exact(&mut [0])?;
    Ok((keeper, ours))
}

/// The keeper: waits for a word or the end of its socket, and in the second case puts the terminal
/// back to how it was at the start.
pub fn keep() -> Result<u8, Box<dyn Error>> {
    // A session of its own, so that what is sent to the terminal's processes does not end it. That
    // fails only for a process group's leader, which a shell makes of nobody's child.
    let _ = rustix::process::setsid();
    let (terminal, socket) = (io::stdin(), io::stdout());
    let saved = termios::tcgetattr(&terminal)?;
    rustix::io::write(&socket, b"r")?;
    let mut word = [0];
    let done = loop {
        match rustix::io::read(&socket, &mut word) {
            Err(rustix::io::Errno::INTR) => {}
            result => break matches!(result, Ok(1)),
        }
    };
    if !done {
        termios::tcsetattr(&terminal, OptionalActions::Now, &saved)?;
    }
    Ok(0)
}

/// What typing the escape sequence means.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// Pass these bytes to the guest.
    Bytes(Vec<u8>),
    /// Pass these bytes to the guest, then stop the VM.
    Quit(Vec<u8>),
}

/// Finds the escape sequence in what is typed: Ctrl-A x quits, Ctrl-A Ctrl-A is one Ctrl-A, and Ctrl-A
/// followed by anything else is passed on as it is.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

const CTRL_A: u8 = 0x01;

impl Escape {
    /// Looks through the next bytes typed.
    pub fn filter(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (std::mem::take(&mut self.pending), byte) {
                (false, CTRL_A) => self.pending = true,
                (false, _) | (true, CTRL_A) => bytes.push(byte),
                (true, b'x' | b'X') => return Typed::Quit(bytes),
                (true, _) => bytes.extend([CTRL_A, byte]),
            }
        }
        Typed::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_when_split_between_reads_is_still_found() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ls\x01"), Typed::Bytes(b"ls".to_vec()));
        assert_eq!(escape.filter(b"x"), Typed::Quit(vec![]));
    }

    #[test]
    fn ctrl_a_when_doubled_or_followed_by_others_reaches_the_guest() {
        let mut escape = Escape::default();
        assert_eq!(
            escape.filter(b"\x01\x01x\x01b"),
            Typed::Bytes(b"\x01x\x01b".to_vec())
        );
        assert_eq!(escape.filter(b"a\x01Xz"), Typed::Quit(b"a".to_vec()));
    }
}
