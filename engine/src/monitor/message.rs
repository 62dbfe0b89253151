//! What a monitor and the command that started it say to each other, on a socket of their own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use bulkhead_protocol::Exit;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::poll::poll_until;

/// The longest message, in bytes.
const MAX_MESSAGE: u64 = 64 << 10;
/// What the command says once it is attached to the streams.
const GO: u8 = b'g';

/// What a monitor says, a line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Something that takes a while: a line for the user.
    Progress(String),
    /// The container is there, and its program waits for the command to be attached.
    Created,
    /// The program runs.
    Started,
    /// It does not, and will not.
    Failed(Failure),
    /// The program has ended, and that is recorded.
    Exited(Exit),
}

/// The command's end.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// Talks to the monitor at the other end of `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Connection {
            reader: BufReader::new(stream),
        }
    }

    /// Waits until there is a message, or the monitor has ended. `false` if `other` can be read first.
    pub fn wait_or(&self, other: BorrowedFd<'_>) -> io::Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(true);
        }
        let mut fds = [
            PollFd::new(self.reader.get_ref(), PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ];
        poll_until(&mut fds, None)?;
        Ok(fds[1].revents().is_empty())
    }

    /// The next message. `None` when the monitor has ended.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut line = String::new();
        let n = self
            .reader
            .by_ref()
            .take(MAX_MESSAGE)
            .read_line(&mut line)?;
        Ok(match n {
            0 => None,
            _ => Some(serde_json::from_str(&line)?),
        })
    }

    /// Says that the program may start.
    pub fn go(&mut self) -> io::Result<()> {
        self.reader.get_mut().write_all(&[GO])
    }

    /// Says that all output was taken, so that the sandbox can end.
    pub fn done(&mut self) {
        // A monitor that has ended need not be told.
        let _ = self.reader.get_mut().shutdown(Shutdown::Write);
    }
}

/// Tells the command something. One that has left need not know.
pub(super) fn tell(mut command: &UnixStream, message: &Message) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let _ = command.write_all(&line);
    }
}

/// Reads the command's word. `false` if it left without one.
pub(super) fn may_go(mut command: &UnixStream) -> bool {
    let mut word = [0];
    matches!(command.read(&mut word), Ok(1) if word[0] == GO)
}
