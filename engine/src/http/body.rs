//! Bodies: what is between the head of an answer and its end, and sending one without knowing its
//! length.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::head::{Framing, Head};

/// The longest line before a chunk, in bytes.
const MAX_CHUNK_LINE: usize = 256;
/// Bytes in a chunk that is sent.
const CHUNK: usize = 64 << 10;

/// The body of an answer. An end that comes too soon is an error.
#[derive(Debug)]
pub struct Body<S = UnixStream> {
    source: Source<S>,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many bytes are left of the body.
    Length(u64),
    /// So many bytes are left of this chunk; after it comes a line end if it is not the first.
    Chunk { left: u64, first: bool },
    /// Everything until the end of the connection.
    Close,
    /// Nothing is left.
    Ended,
}

impl<S: Read> Body<S> {
    /// What follows `head` on `stream`, of which `received` was read with the head.
    pub(super) fn new(stream: S, received: Vec<u8>, head: &Head) -> Self {
        Body {
            source: Source::new(received, stream),
            state: match head.framing {
                Framing::Length(length) => State::Length(length),
                Framing::Chunked => State::Chunk {
                    left: 0,
                    first: true,
                },
                Framing::Close => State::Close,
            },
        }
    }

    /// Reads the line before the next chunk, and what follows the last.
    fn next_chunk(&mut self, first: bool) -> io::Result<()> {
        if !first && !self.source.line()?.is_empty() {
            return Err(bad_chunk());
        }
        let line = self.source.line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        // from_str_radix would take a sign.
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad_chunk());
        }
        let left = u64::from_str_radix(size, 16).map_err(|_| bad_chunk())?;
        self.state = State::Chunk { left, first: false };
        if left == 0 {
            while !self.source.line()?.is_empty() {}
            self.state = State::Ended;
        }
        Ok(())
    }
}

impl<S: Read> Read for Body<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let State::Chunk { left: 0, first } = self.state {
            self.next_chunk(first)?;
        }
        let left = match self.state {
            State::Ended | State::Length(0) => return Ok(0),
            State::Close => return self.source.read(buffer),
            State::Length(left) | State::Chunk { left, .. } => left,
        };
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self.source.read(&mut buffer[..most])?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = left - n as u64;
        self.state = match self.state {
            State::Chunk { first, .. } => State::Chunk { left, first },
            _ => State::Length(left),
        };
        Ok(n)
    }
}

/// The stream, behind what was read of it too early.
#[derive(Debug)]
pub(super) struct Source<S> {
    received: io::Cursor<Vec<u8>>,
    pub(super) stream: S,
}

impl<S> Source<S> {
    pub(super) fn new(received: Vec<u8>, stream: S) -> Self {
        Source {
            received: io::Cursor::new(received),
            stream,
        }
    }

    /// Has `bytes` be what is read next.
    pub(super) fn give_back(&mut self, mut bytes: Vec<u8>) {
        bytes.extend(self.rest());
        self.received = io::Cursor::new(bytes);
    }

    /// What was received and not read, and the stream.
    pub(super) fn into_parts(self) -> (Vec<u8>, S) {
        (self.rest().to_vec(), self.stream)
    }

    fn rest(&self) -> &[u8] {
        let at = usize::try_from(self.received.position()).unwrap_or(usize::MAX);
        self.received.get_ref().get(at..).unwrap_or_default()
    }
}

impl<S: Read> Source<S> {
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            if self.read(&mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match byte[0] {
                b'\n' => break,
                b'\r' => {}
                byte => line.push(byte),
            }
            if line.len() > MAX_CHUNK_LINE {
                return Err(bad_chunk());
            }
        }
        String::from_utf8(line).map_err(|_| bad_chunk())
    }
}

impl<S: Read> Read for Source<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.received.read(buffer)? {
            0 => self.stream.read(buffer),
            n => Ok(n),
        }
    }
}

/// Sends all that `source` has.
pub(super) fn send_chunks(stream: &mut impl Write, source: &mut dyn Read) -> io::Result<()> {
    // The size is written in front of what was read, so that a chunk is one write.
    const ROOM: usize = 18;
    let mut buffer = vec![0; ROOM + CHUNK + 2];
    loop {
        let n = match source.read(&mut buffer[ROOM..ROOM + CHUNK]) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if n == 0 {
            return stream.write_all(b"0\r\n\r\n");
        }
        let size = format!("{n:x}\r\n");
        let start = ROOM - size.len();
        buffer[start..ROOM].copy_from_slice(size.as_bytes());
        buffer[ROOM + n..ROOM + n + 2].copy_from_slice(b"\r\n");
        stream.write_all(&buffer[start..ROOM + n + 2])?;
    }
}

fn bad_chunk() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the answer's chunks cannot be told apart",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(framing: Framing, received: &[u8], rest: &[u8]) -> io::Result<Vec<u8>> {
        let head = Head {
            status: 200,
            framing,
            exec_id: None,
        };
        let mut bytes = Vec::new();
        Body::new(rest, received.to_vec(), &head).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn body_when_sent_in_chunks_comes_back_wherever_it_was_cut() {
        let data: Vec<u8> = (0..150_000u32).map(|n| n as u8).collect();
        let mut sent = Vec::new();
        send_chunks(&mut sent, &mut &data[..]).expect("send");
        for cut in [0, 1, 5, 100, sent.len() - 1, sent.len()] {
            let (a, b) = sent.split_at(cut);
            assert_eq!(read(Framing::Chunked, a, b).expect("read"), data);
        }
    }

    #[test]
    fn body_when_cut_short_or_malformed_is_an_error() {
        assert!(read(Framing::Length(4), b"ab", b"c").is_err());
        for wrong in [
            "",
            "3\r\nab",
            "3\r\nabcd\r\n0\r\n\r\n",
            "-1\r\n",
            "+1\r\na",
            "g\r\n",
            "10000000000000000\r\n",
        ] {
            assert!(
                read(Framing::Chunked, wrong.as_bytes(), b"").is_err(),
                "{wrong}"
            );
        }
        assert_eq!(read(Framing::Length(2), b"a", b"bc").expect("whole"), b"ab");
        assert_eq!(read(Framing::Close, b"a", b"bc").expect("whole"), b"abc");
    }
}
