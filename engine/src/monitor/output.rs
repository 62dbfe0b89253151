//! What a container writes: from the agent's stream to the log, up to its end.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use bulkhead_protocol::Exit;
use bulkhead_protocol::frame::{Decoder, Kind, Part, encode};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::sandbox::KILLED;
use crate::agent::printable;
use crate::http::Upgraded;
use crate::log::{Stream, Writer};

/// How much is read at a time.
const BLOCK: usize = 64 << 10;

/// Why there is nothing more.
#[derive(Debug, PartialEq, Eq)]
pub enum Over {
    /// The program has ended.
    Exit(Exit),
    /// The agent says what it cannot mean.
    Damaged(String),
    /// The connection has ended.
    Closed,
}

/// A container's output.
pub struct Output {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
    error: Option<String>,
    started: bool,
    log: Writer,
    /// Where the same frames go to.
    relay: Option<Relay>,
    over: Option<Over>,
}

/// The command that wants the frames, and those that it has not taken. While there are any the agent's wait, and the
/// program with them, as it would for the next one in a pipe.
struct Relay {
    stream: UnixStream,
    /// What it has not taken.
    held: Vec<u8>,
    /// How much of that it has taken.
    taken: usize,
}

impl Relay {
    /// Sends what there is room for. `false` if nobody is there to take it.
    fn send(&mut self) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while self.taken < self.held.len() {
            match send(&self.stream, &self.held[self.taken..], flags) {
                Ok(n) => self.taken += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        self.held.clear();
        self.taken = 0;
        true
    }
}

impl Output {
    /// Begins with what has come with the stream's beginning.
    pub fn new(stream: Upgraded, log: Writer) -> Self {
        let mut output = Output {
            stream: stream.stream,
            decoder: Decoder::new(),
            buffer: stream.received,
            error: None,
            started: false,
            log,
            relay: None,
            over: None,
        };
        output.over = output.decode();
        output
    }

    /// Has the program executed.
    pub fn start(&mut self) -> io::Result<()> {
        self.stream.write_all(&encode(Kind::Start, b""))
    }

    /// Whether it has been.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// Sends the frames on, from the first one. To be called before any is taken.
    pub fn relay_to(&mut self, stream: UnixStream) {
        self.relay = Some(Relay {
            stream,
            held: self.buffer.clone(),
            taken: 0,
        });
        self.relay();
    }

    /// What was not sent on yet, and has to be before more is taken: it can be once this has room.
    pub fn held(&self) -> Option<BorrowedFd<'_>> {
        let relay = self.relay.as_ref().filter(|relay| !relay.held.is_empty());
        relay.map(|relay| relay.stream.as_fd())
    }

    /// How much that is.
    pub fn held_bytes(&self) -> usize {
        let relay = self.relay.as_ref();
        relay.map_or(0, |relay| relay.held.len() - relay.taken)
    }

    /// Sends on what there is room for.
    pub fn relay(&mut self) {
        if self.relay.as_mut().is_some_and(|relay| !relay.send()) {
            self.relay = None;
        }
    }

    /// Sends nothing on any more, and says so.
    pub fn end_relay(&mut self) {
        self.relay = None;
    }

    /// Why there is nothing more, once there is not; told once.
    pub fn over(&mut self) -> Option<Over> {
        self.over.take()
    }

    /// Whether that is still to be told.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Takes what there is, and waits for it if there is nothing.
    pub fn take(&mut self) {
        self.buffer.resize(BLOCK, 0);
        self.over = match self.stream.read(&mut self.buffer) {
            Ok(0) => Some(Over::Closed),
            Ok(n) => {
                self.buffer.truncate(n);
                if let Some(relay) = &mut self.relay {
                    relay.held.extend_from_slice(&self.buffer);
                }
                let over = self.decode();
                self.relay();
                over
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => None,
            Err(_) => Some(Over::Closed),
        };
    }

    /// Ends the log.
    pub fn finish(&mut self) {
        // A log that cannot be written is no reason not to record the end.
        let _ = self.log.finish();
    }

    fn decode(&mut self) -> Option<Over> {
        let mut rest = &self.buffer[..];
        loop {
            match self.decoder.next(&mut rest) {
                Ok(None) => return None,
                Ok(Some(Part::Data(kind, bytes))) => {
                    let stream = match kind {
                        Kind::Stderr => Stream::Stderr,
                        _ => Stream::Stdout,
                    };
                    // The container goes on even if its log cannot.
                    let _ = self.log.write(stream, bytes);
                }
                Ok(Some(Part::Message(Kind::Error, text))) => {
                    self.error = Some(printable(&String::from_utf8_lossy(&text)));
                }
                Ok(Some(Part::Message(Kind::Started, _))) => self.started = true,
                Ok(Some(Part::Message(Kind::Exit, text))) => {
                    return Some(Over::Exit(ended(&text, self.error.take())));
                }
                Ok(Some(_)) => {}
                Err(e) => {
                    return Some(Over::Damaged(format!("the agent's stream is damaged: {e}")));
                }
            }
        }
    }
}

/// Readable when there is something to take.
impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn ended(text: &[u8], error: Option<String>) -> Exit {
    let mut exit: Exit = serde_json::from_slice(text).unwrap_or_else(|_| Exit {
        code: KILLED,
        error: Some("the agent does not say how the program ended".to_owned()),
        ..Exit::default()
    });
    exit.error = exit.error.map(|text| printable(&text)).or(error);
    exit
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn output_when_taken_in_pieces_is_in_the_log_and_its_end_is_told_once() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let mut upgraded = Upgraded::from(ours);
        let first = encode(Kind::Stdout, b"one\n");
        let (begin, rest) = first.split_at(3);
        upgraded.received = begin.to_vec();
        let mut output = Output::new(upgraded, Writer::open(&path).expect("log"));
        assert!(!output.is_over());
        theirs.write_all(rest).expect("write");
        output.take();
        assert_eq!(output.over(), None);
        theirs
            .write_all(&encode(Kind::Exit, br#"{"code": 3}"#))
            .expect("write");
        output.take();
        let Some(Over::Exit(exit)) = output.over() else {
            panic!("no end");
        };
        assert_eq!(exit.code, 3);
        assert_eq!(output.over(), None);
        drop(theirs);
        output.take();
        assert_eq!(output.over(), Some(Over::Closed));
        output.finish();
        let log = fs::read_to_string(&path).expect("read");
        assert!(log.contains(r#"one\n"#), "{log}");
    }

    #[test]
    fn output_when_nobody_takes_what_is_sent_on_holds_it_and_loses_nothing() {
        let dir = tempfile::tempdir().expect("folder");
        let log = Writer::open(&dir.path().join("log")).expect("log");
        let (ours, mut agent) = UnixStream::pair().expect("pair");
        let first = encode(Kind::Stdout, b"first");
        let mut upgraded = Upgraded::from(ours);
        upgraded.received = first.clone();
        let mut output = Output::new(upgraded, log);
        let (mut command, theirs) = UnixStream::pair().expect("pair");
        output.relay_to(theirs);
        let mut sent = first;
        let frame = encode(Kind::Stdout, &[b'x'; 50_000]);
        while output.held().is_none() {
            agent.write_all(&frame).expect("write");
            sent.extend_from_slice(&frame);
            output.take();
        }
        let mut taken = vec![0; sent.len()];
        let (early, late) = taken.split_at_mut(60_000);
        command.read_exact(early).expect("read");
        output.relay();
        let reader = std::thread::spawn(move || {
            let mut rest = Vec::new();
            command.read_to_end(&mut rest).map(|_| rest)
        });
        while output.held().is_some() {
            output.relay();
        }
        output.end_relay();
        late.copy_from_slice(&reader.join().expect("thread").expect("read"));
        assert_eq!(taken, sent);
    }

    #[test]
    fn output_when_the_command_has_left_is_not_held() {
        let dir = tempfile::tempdir().expect("folder");
        let log = Writer::open(&dir.path().join("log")).expect("log");
        let (ours, mut agent) = UnixStream::pair().expect("pair");
        let mut output = Output::new(Upgraded::from(ours), log);
        let (command, theirs) = UnixStream::pair().expect("pair");
        output.relay_to(theirs);
        drop(command);
        agent.write_all(&encode(Kind::Stdout, b"x")).expect("write");
        output.take();
        assert!(output.held().is_none());
    }
}
