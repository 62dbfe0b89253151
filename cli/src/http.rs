//! A small HTTP/1.1 client for the two local servers `bulkhead` talks to: the VMM's control socket and
//! the guest's agent. Both are asked one thing per connection, with bodies in JSON.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The most bytes of an answer that are read: the agent's come from a guest, which may be hostile.
const MAX_ANSWER: u64 = 1 << 20;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, whole.
    pub body: Vec<u8>,
}

/// Asks the server at the Unix socket `path`.
pub fn ask(
    path: &Path,
    method: &str,
    target: &str,
    body: &str,
    limit: Duration,
) -> io::Result<Answer> {
    exchange(UnixStream::connect(path)?, method, target, body, limit)
}

/// Asks the server on vsock port `port` of the guest behind the hybrid socket at `path`.
pub fn ask_guest(
    path: &Path,
    port: u32,
    (method, target, body): (&str, &str, &str),
    limit: Duration,
) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
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
    if !line.starts_with(b"OK ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    exchange(stream, method, target, body, limit)
}

fn exchange(
    mut stream: UnixStream,
    method: &str,
    target: &str,
    body: &str,
    limit: Duration,
) -> io::Result<Answer> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).ok()? else {
        return None;
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok())
        .unwrap_or(0usize);
    Some(Answer {
        status: response.code?,
        body: bytes.get(head..head.checked_add(length)?)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_when_cut_short_is_none() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(parse(whole).expect("whole").body, b"abc");
        for n in 0..whole.len() {
            assert!(parse(&whole[..n]).is_none(), "{n}");
        }
        assert!(
            parse(b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n").is_none()
        );
    }

    #[test]
    fn answer_without_a_body_is_empty() {
        let answer = parse(b"HTTP/1.1 204 No Content\r\n\r\n").expect("answer");
        assert_eq!((answer.status, answer.body.len()), (204, 0));
    }
}
