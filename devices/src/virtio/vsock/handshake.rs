//! What a host client says first: `CONNECT <port>\n`, in any letter case.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use super::socket;

/// The longest line taken. The longest sensible one, `CONNECT 4294967295\r\n`, has 20 bytes.
const MAX_LINE: usize = 32;

/// As much of the line as has come so far.
#[derive(Debug, Default)]
pub struct Line {
    bytes: [u8; MAX_LINE],
    len: usize,
}

/// Where a handshake stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The line is not whole yet.
    Waiting,
    /// The client wants this port of the guest.
    Connect(u32),
    /// Not the line it should be, too long, or the client has gone.
    Bad,
}

impl Line {
    /// Reads what has come of the line, and not a byte of what follows it.
    pub fn advance(&mut self, mut stream: &UnixStream) -> Progress {
        loop {
            // Looked at first, taken then: what follows the line belongs to the guest, and there is
            // no place to keep it but the socket.
            let free = &mut self.bytes[self.len..];
            let seen = match socket::peek(stream, free) {
                Ok(0) => return Progress::Bad,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Waiting,
                Err(_) => return Progress::Bad,
            };
            let end = free[..seen].iter().position(|b| *b == b'\n');
            let take = end.map_or(seen, |at| at + 1);
            if stream.read_exact(&mut free[..take]).is_err() {
                return Progress::Bad;
            }
            self.len += take;
            if end.is_some() {
                return parse(&self.bytes[..self.len - 1]).map_or(Progress::Bad, Progress::Connect);
            }
            if self.len == MAX_LINE {
                return Progress::Bad;
            }
        }
    }
}

/// The port in `CONNECT <port>`, without the line's end.
fn parse(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let command = words.next()?;
    let port = words.next()?;
    if !command.eq_ignore_ascii_case("CONNECT") || words.next().is_some() {
        return None;
    }
    // `u32::from_str` would take a plus sign as well.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn line_when_well_formed_names_the_port() {
        for (line, port) in [
            ("CONNECT 0", 0),
            ("connect 1024", 1024),
            ("cOnNeCt 4294967295\r", u32::MAX),
            ("CONNECT  7 ", 7),
        ] {
            assert_eq!(parse(line.as_bytes()), Some(port), "{line:?}");
        }
    }

    #[test]
    fn line_when_malformed_is_refused() {
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT +1",
            "CONNECT -1",
            "CONNECT 4294967296",
            "CONNECT 1 2",
            "CONNECT 0x10",
            "CONNECTT 1",
            "GET / HTTP/1.1",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }

    #[test]
    fn line_when_it_comes_byte_by_byte_is_put_together() {
        let (ours, mut theirs) = pair();
        let mut line = Line::default();
        for byte in b"CONNECT 52" {
            theirs.write_all(&[*byte]).unwrap();
            assert_eq!(line.advance(&ours), Progress::Waiting);
        }
        theirs.write_all(b"\n").unwrap();
        assert_eq!(line.advance(&ours), Progress::Connect(52));
    }

    #[test]
    fn line_leaves_what_follows_it_on_the_socket() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(b"CONNECT 52\nGET / HTTP").unwrap();
        assert_eq!(Line::default().advance(&ours), Progress::Connect(52));
        let mut rest = [0; 10];
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"GET / HTTP");
    }

    #[test]
    fn line_when_too_long_or_cut_off_is_bad() {
        let (ours, mut theirs) = pair();
        theirs.write_all(&[b'C'; 100]).unwrap();
        assert_eq!(Line::default().advance(&ours), Progress::Bad);

        let (ours, mut theirs) = pair();
        theirs.write_all(b"CONNECT 5").unwrap();
        drop(theirs);
        assert_eq!(Line::default().advance(&ours), Progress::Bad);
    }

    proptest! {
        #[test]
        fn line_of_any_bytes_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (ours, mut theirs) = pair();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            let _ = Line::default().advance(&ours);
        }
    }
}
