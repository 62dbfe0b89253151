//! What a container writes: from the agent's stream to the log, up to its end.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use bulkhead_protocol::Exit;
use bulkhead_protocol::frame::{Decoder, Kind, Part};

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
    log: Writer,
    over: Option<Over>,
}

impl Output {
    /// Begins with what has come with the stream's beginning.
    pub fn new(stream: Upgraded, log: Writer) -> Self {
        let mut output = Output {
            stream: stream.stream,
            decoder: Decoder::new(),
            buffer: stream.received,
            error: None,
            log,
            over: None,
        };
        output.over = output.decode();
        output
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
                self.decode()
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
    use std::fs;
    use std::io::Write as _;

    use bulkhead_protocol::frame::encode;

    use super::*;

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
}
