//! A small HTTP/1.1 client for the two local servers there are: a VMM's control socket and a guest's
//! agent. One connection for each question; a guest may be hostile, so every answer has a bound.

mod body;
mod conversation;
mod head;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub use body::Body;
pub use conversation::Conversation;
use head::read_head;

/// The most bytes of an answer that are kept in memory.
const MAX_ANSWER: u64 = 1 << 20;

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A connection that is no longer HTTP but a stream of frames.
#[derive(Debug)]
pub struct Upgraded {
    /// The connection.
    pub stream: UnixStream,
    /// What the server has sent already.
    pub received: Vec<u8>,
    /// The ID of the program at its other end, if it was executed by the request.
    pub exec_id: Option<String>,
}

/// One that never was HTTP.
impl From<UnixStream> for Upgraded {
    fn from(stream: UnixStream) -> Self {
        Upgraded {
            stream,
            received: Vec::new(),
            exec_id: None,
        }
    }
}

/// Asks the server at the Unix socket `path`.
pub fn ask(
    path: &Path,
    method: &str,
    target: &str,
    body: &str,
    limit: Duration,
) -> io::Result<Answer> {
    ask_on(connect(path, Some(limit))?, method, target, body)
}

/// Asks the server on vsock port `port` of the guest behind the hybrid socket at `path`.
pub fn ask_guest(
    path: &Path,
    port: u32,
    (method, target, body): (&str, &str, &str),
    limit: Duration,
) -> io::Result<Answer> {
    ask_on(
        connect_guest(path, port, Some(limit))?,
        method,
        target,
        body,
    )
}

/// Connects to the Unix socket `path`; each read and write is to take no longer than `limit`.
pub fn connect(path: &Path, limit: Option<Duration>) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    Ok(stream)
}

/// Connects to vsock port `port` of the guest behind the hybrid socket at `path`.
pub fn connect_guest(path: &Path, port: u32, limit: Option<Duration>) -> io::Result<UnixStream> {
    let mut stream = connect(path, limit)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // Byte by byte, so that nothing after the line is swallowed; it is a short line.
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != [b'\n'] {
        if line.len() > 64 || stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        line.extend(byte);
    }
    if line.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

/// Asks and reads the whole answer.
pub fn ask_on(stream: UnixStream, method: &str, target: &str, body: &str) -> io::Result<Answer> {
    let (status, body) = open(stream, method, target, body.as_bytes())?;
    read_answer(status, body)
}

/// Asks, and returns the status and the body to be read.
pub fn open(
    mut stream: UnixStream,
    method: &str,
    target: &str,
    body: &[u8],
) -> io::Result<(u16, Body)> {
    send(&mut stream, method, target, "Connection: close\r\n", body)?;
    let (head, received) = read_head(&mut stream)?;
    Ok((head.status, Body::new(stream, received, &head)))
}

/// A question whose answer has not come yet. It can be read once the answer begins.
#[derive(Debug)]
pub struct Asked {
    stream: UnixStream,
}

impl Asked {
    /// Reads the whole answer.
    pub fn answer(mut self) -> io::Result<Answer> {
        let (head, received) = read_head(&mut self.stream)?;
        read_answer(head.status, Body::new(self.stream, received, &head))
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks, for whoever has something to watch until the answer comes.
pub fn begin(mut stream: UnixStream, method: &str, target: &str, body: &str) -> io::Result<Asked> {
    let headers = "Connection: close\r\n";
    send(&mut stream, method, target, headers, body.as_bytes())?;
    Ok(Asked { stream })
}

/// Asks on a connection that stays open, and reads the whole answer.
pub fn ask_again(
    stream: &mut UnixStream,
    method: &str,
    target: &str,
    body: &str,
) -> io::Result<Answer> {
    send(stream, method, target, "", body.as_bytes())?;
    let (head, received) = read_head(stream)?;
    let mut bytes = Vec::new();
    let body = Body::new(stream, received, &head);
    body.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(Answer {
        status: head.status,
        body: bytes,
    })
}

/// Sends a request whose body is all that `source` has, in chunks, and reads the whole answer.
pub fn send_stream(
    mut stream: UnixStream,
    method: &str,
    target: &str,
    source: &mut dyn Read,
) -> io::Result<Answer> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    // A server that refuses answers and stops reading; what it says is worth more than a broken pipe.
    match body::send_chunks(&mut stream, source) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
        result => result?,
    }
    let (head, received) = read_head(&mut stream)?;
    read_answer(head.status, Body::new(stream, received, &head))
}

/// Asks for the connection to become a stream of frames. The inner error is the server's answer when
/// it would rather not.
pub fn upgrade(
    mut stream: UnixStream,
    target: &str,
    protocol: &str,
    body: &[u8],
) -> io::Result<Result<Upgraded, Answer>> {
    let headers = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
    send(&mut stream, "POST", target, &headers, body)?;
    let (head, received) = read_head(&mut stream)?;
    if head.status == 101 {
        // From here on either side may be silent for as long as it likes.
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        return Ok(Ok(Upgraded {
            stream,
            received,
            exec_id: head.exec_id,
        }));
    }
    let body = Body::new(stream, received, &head);
    read_answer(head.status, body).map(Err)
}

fn send(
    stream: &mut impl Write,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<()> {
    // One write, so that the server need not wait for a second packet.
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend(body);
    stream.write_all(&request)
}

fn read_answer(status: u16, body: Body) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    body.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(Answer {
        status,
        body: bytes,
    })
}
