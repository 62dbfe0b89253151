//! What a monitor and the command that started it say to each other, on a socket of their own.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use bulkhead_protocol::Exit;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::poll::poll_until;

/// The longest message, in bytes.
const MAX_MESSAGE: u64 = 64 << 10;
/// What the command says once it is attached to the streams, or with where it wants them.
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

    /// Says that the program may start, and that the frames of its streams are to be sent to `output` too, if there is one.
    pub fn go(&mut self, output: Option<UnixStream>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let output = output.as_ref().map(|output| [output.as_fd()]);
        if let Some(output) = &output {
            // There is room for one.
            ancillary.push(SendAncillaryMessage::ScmRights(output));
        }
        let word = [IoSlice::new(&[GO])];
        let flags = SendFlags::NOSIGNAL;
        sendmsg(self.reader.get_ref(), &word, &mut ancillary, flags)?;
        Ok(())
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

/// The command's word.
pub(super) struct Go {
    /// Where it wants the frames of the program's streams.
    pub output: Option<UnixStream>,
}

/// Reads the command's word. `None` if it left without one.
pub(super) fn may_go(command: &UnixStream) -> Option<Go> {
    let mut word = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = {
        let mut words = [IoSliceMut::new(&mut word)];
        recvmsg(command, &mut words, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    };
    if !received.is_ok_and(|received| received.bytes == 1) || word[0] != GO {
        return None;
    }
    let mut output = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            output = descriptors.next().map(UnixStream::from);
        }
    }
    Some(Go { output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_when_a_stream_comes_with_it_is_read_with_it() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let (mut taken, given) = UnixStream::pair().expect("pair");
        let mut connection = Connection::new(ours);
        connection.go(Some(given)).expect("go");
        connection.go(None).expect("go");
        drop(connection);
        let go = may_go(&theirs).expect("a word");
        let mut output = go.output.expect("a stream");
        output.write_all(b"x").expect("write");
        drop(output);
        let mut text = String::new();
        taken.read_to_string(&mut text).expect("read");
        assert_eq!(text, "x");
        assert!(may_go(&theirs).is_some_and(|go| go.output.is_none()));
        assert!(may_go(&theirs).is_none());
    }
}
