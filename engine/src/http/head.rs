//! The first lines of an answer.

use std::io::{self, Read};

use bulkhead_protocol::EXEC_ID_HEADER;

/// The longest head that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// What matters of a head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Where the body ends.
    pub framing: Framing,
    /// The ID of the program that was executed, if one was.
    pub exec_id: Option<String>,
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After a chunk of no bytes.
    Chunked,
    /// Where the connection does.
    Close,
}

/// Reads a head, and returns with it what came behind.
pub fn read_head(stream: &mut impl Read) -> io::Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    loop {
        let n = match stream.read(&mut block) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        bytes.extend(&block[..n]);
        if let Some((head, length)) = parse(&bytes)? {
            bytes.drain(..length);
            return Ok((head, bytes));
        }
        if bytes.len() > MAX_HEAD {
            return Err(not_http("its head is too long"));
        }
    }
}

/// The head that `bytes` start with and its length, or `None` if it is not whole yet.
fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => return Err(not_http(&e.to_string())),
    };
    let status = response.code.unwrap_or_default();
    let header = |name: &str| {
        response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    };
    let framing = if status < 200 || status == 204 || status == 304 {
        Framing::Length(0)
    } else if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked")) {
        Framing::Chunked
    } else if let Some(value) = header("content-length") {
        let length = str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        Framing::Length(length.ok_or_else(|| not_http("its length is no number"))?)
    } else {
        Framing::Close
    };
    let exec_id = header(EXEC_ID_HEADER).and_then(|value| String::from_utf8(value.into()).ok());
    let head = Head {
        status,
        framing,
        exec_id,
    };
    Ok(Some((head, length)))
}

fn not_http(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the answer is not HTTP: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_when_cut_short_is_an_error_and_when_whole_leaves_the_rest() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        let (head, rest) = read_head(&mut &whole[..]).expect("whole");
        assert_eq!((head.status, head.framing), (200, Framing::Length(3)));
        assert_eq!(rest, b"abc");
        for n in 0..whole.len() - 3 {
            assert!(read_head(&mut &whole[..n]).is_err(), "{n}");
        }
    }

    #[test]
    fn head_when_hostile_is_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(64 << 10));
        for wrong in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            &long,
        ] {
            assert!(read_head(&mut wrong.as_bytes()).is_err());
        }
    }

    #[test]
    fn body_ends_as_the_head_says() {
        let framing = |text: &str| read_head(&mut text.as_bytes()).expect("head").0.framing;
        assert_eq!(framing("HTTP/1.1 204 No\r\n\r\n"), Framing::Length(0));
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n"), Framing::Close);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(framing(chunked), Framing::Chunked);
    }
}
