//! One client: bytes in, requests handled in their order, bytes out, and an end that loses neither.

use std::io::{self, ErrorKind, Read, Write};

use crate::http::{self, Parsed, Refusal, Request, Response};

/// How much is read at a time.
const CHUNK: usize = 4096;
/// How many requests are answered before other clients get their turn.
const MAX_BURST: usize = 16;
/// How many bytes a client may still send after its last answer before it is cut off.
const MAX_DRAIN: usize = 256 << 10;

/// A byte stream that can end in one direction only.
pub trait Stream: Read + Write {
    /// Ends the outgoing direction; the peer reads end-of-file after what was written.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Bytes from the client.
    Read,
    /// Room for bytes to the client (or, after a burst of requests, its next turn).
    Write,
}

enum Phase {
    /// Requests are read and answered.
    Open,
    /// No request will be read any more; what is left of the output goes out.
    Closing,
    /// The output is out and ended. What the client still sends is thrown away until it ends its
    /// side too: closing before that makes the kernel reset the connection, and a reset can
    /// overtake the answer.
    Draining { left: usize },
}

/// A client's connection and the bytes under way on it.
pub struct Connection<S> {
    stream: S,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    phase: Phase,
    continued: bool,
}

impl<S: Stream> Connection<S> {
    /// Starts on a non-blocking stream.
    pub fn new(stream: S) -> Self {
        Connection {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            phase: Phase::Open,
            continued: false,
        }
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether the last answer was given and it remains to be received.
    pub fn is_ending(&self) -> bool {
        !matches!(self.phase, Phase::Open)
    }

    /// Does all that can be done now. `None` means that the connection is over.
    pub fn advance(
        &mut self,
        handle: &mut dyn FnMut(&Request<'_>) -> Response,
    ) -> Option<Interest> {
        // An error means that the client is gone; there is nobody to tell.
        self.try_advance(handle).unwrap_or(None)
    }

    fn try_advance(
        &mut self,
        handle: &mut dyn FnMut(&Request<'_>) -> Response,
    ) -> io::Result<Option<Interest>> {
        let mut burst = 0;
        loop {
            // Answers first: a client that does not read its answers gets no further ones, which
            // bounds the output.
            if !self.flush()? {
                return Ok(Some(Interest::Write));
            }
            match self.phase {
                Phase::Open if burst == MAX_BURST => return Ok(Some(Interest::Write)),
                Phase::Open => {
                    if self.answer_next(handle) {
                        burst += 1;
                    } else {
                        match self.fill()? {
                            None => return Ok(Some(Interest::Read)),
                            Some(0) if self.input.is_empty() => return Ok(None),
                            // The client ended in the middle of a request.
                            Some(0) => self.refuse(Refusal::Malformed),
                            Some(_) => {}
                        }
                    }
                }
                Phase::Closing => {
                    self.stream.shutdown_write()?;
                    self.input = Vec::new();
                    self.phase = Phase::Draining { left: MAX_DRAIN };
                }
                Phase::Draining { left } => match self.fill()? {
                    None => return Ok(Some(Interest::Read)),
                    Some(0) => return Ok(None),
                    Some(n) => {
                        self.input.clear();
                        match left.checked_sub(n) {
                            Some(left) => self.phase = Phase::Draining { left },
                            None => return Ok(None),
                        }
                    }
                },
            }
        }
    }

    /// Puts the answer to the next whole request, or to bytes that are none, on the output. `false`
    /// if more input is needed first.
    fn answer_next(&mut self, handle: &mut dyn FnMut(&Request<'_>) -> Response) -> bool {
        match http::parse(&self.input) {
            Ok(Parsed::Complete(request, length)) => {
                let response = handle(&request);
                let keep_alive = request.keep_alive && !response.last;
                let with_body = request.method != "HEAD";
                response.write_to(&mut self.output, with_body, keep_alive);
                self.input.drain(..length);
                self.continued = false;
                if !keep_alive {
                    self.phase = Phase::Closing;
                }
                true
            }
            Ok(Parsed::Partial { wants_continue }) => {
                if wants_continue && !self.continued {
                    self.continued = true;
                    self.output
                        .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    return true;
                }
                false
            }
            Err(refusal) => {
                self.refuse(refusal);
                true
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        refusal.response().write_to(&mut self.output, true, false);
        self.phase = Phase::Closing;
    }

    /// Writes the output. `false` if the client takes no more now.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Reads a chunk onto the input: its length, 0 at the end of the stream, `None` if there is
    /// nothing now. The input stays within a request's bounds and a chunk, as it is only read on
    /// when it holds no whole request.
    fn fill(&mut self) -> io::Result<Option<usize>> {
        let mut chunk = [0; CHUNK];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(n) => {
                    self.input.extend_from_slice(&chunk[..n]);
                    return Ok(Some(n));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A client on paper: pieces that arrive one `read` each, and how much each `write` takes.
    struct Script {
        pieces: VecDeque<Vec<u8>>,
        ends: bool,
        write_size: usize,
        room: usize,
        received: Vec<u8>,
        ended: bool,
    }

    fn script(pieces: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Script {
        Script {
            pieces: pieces.into_iter().map(Into::into).collect(),
            ends: true,
            write_size: usize::MAX,
            room: usize::MAX,
            received: Vec::new(),
            ended: false,
        }
    }

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let Some(mut piece) = self.pieces.pop_front() else {
                return if self.ends {
                    Ok(0)
                } else {
                    Err(ErrorKind::WouldBlock.into())
                };
            };
            let n = piece.len().min(buf.len());
            buf[..n].copy_from_slice(&piece[..n]);
            if n < piece.len() {
                self.pieces.push_front(piece.split_off(n));
            }
            Ok(n)
        }
    }

    impl Write for Script {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(self.write_size).min(self.room);
            if n == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= n;
            self.received.extend_from_slice(&buf[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Stream for Script {
        fn shutdown_write(&mut self) -> io::Result<()> {
            self.ended = true;
            Ok(())
        }
    }

    fn echo_path(request: &Request<'_>) -> Response {
        Response::json(200, &request.path)
    }

    fn run(script: Script) -> (Option<Interest>, Script) {
        let mut connection = Connection::new(script);
        let interest = connection.advance(&mut echo_path);
        (interest, connection.stream)
    }

    fn text(script: &Script) -> String {
        String::from_utf8_lossy(&script.received).into_owned()
    }

    #[test]
    fn requests_when_pipelined_byte_by_byte_then_answered_in_order() {
        let bytes = b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\n";
        let (interest, client) = run(script(bytes.iter().map(|b| vec![*b])));
        assert_eq!(interest, None);
        let text = text(&client);
        let (a, b) = (text.find("\"/a\""), text.find("\"/b\""));
        assert!(a.is_some() && a < b, "{text}");
        assert!(client.ended);
    }

    #[test]
    fn answer_when_client_takes_one_byte_at_a_time_then_whole() {
        let mut client = script(["GET /a HTTP/1.1\r\n\r\n"]);
        client.write_size = 1;
        assert!(text(&run(client).1).ends_with("\"/a\"\n"));
    }

    #[test]
    fn client_when_it_does_not_read_then_gets_no_second_answer() {
        let mut client = script(["GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n"]);
        client.room = 10;
        let mut connection = Connection::new(client);
        let mut handled = 0;
        let mut handle = |r: &Request<'_>| {
            handled += 1;
            echo_path(r)
        };
        assert_eq!(connection.advance(&mut handle), Some(Interest::Write));
        assert_eq!(connection.advance(&mut handle), Some(Interest::Write));
        assert_eq!(handled, 1);
    }

    #[test]
    fn client_when_it_floods_then_others_get_their_turn() {
        let (interest, client) = run(script(["GET /a HTTP/1.1\r\n\r\n".repeat(100)]));
        assert_eq!(interest, Some(Interest::Write));
        assert_eq!(text(&client).matches("200 OK").count(), MAX_BURST);
    }

    #[test]
    fn refused_client_when_it_goes_on_sending_then_reads_its_answer_and_is_cut_off() {
        let mut client = script([b"nonsense\r\n\r\n".to_vec(), vec![b'x'; 2 * MAX_DRAIN]]);
        client.ends = false;
        let (interest, client) = run(client);
        assert_eq!(interest, None);
        assert!(text(&client).starts_with("HTTP/1.1 400 "));
        assert!(client.ended && !client.pieces.is_empty());
    }

    #[test]
    fn client_when_it_ends_in_mid_request_then_400() {
        let (interest, client) = run(script(["GET /a HT"]));
        assert_eq!(interest, None);
        assert!(text(&client).starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn client_when_it_expects_100_then_gets_it_once() {
        let head = "POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
        let (_, client) = run(script([head, "{", "} "]));
        let text = text(&client);
        assert!(text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"));
        assert_eq!(text.matches("100 Continue").count(), 1);
    }

    #[test]
    fn silent_client_when_it_leaves_then_over_without_a_word() {
        let (interest, client) = run(script([""; 0]));
        assert_eq!((interest, client.received.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn any_pieces_when_received_then_no_panic_and_the_input_stays_bounded(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
            head in prop::option::of("GET /[a-z]{1,5} HTTP/1.1\r\n(Content-Length: [0-9]{1,6}\r\n)?\r\n"),
        ) {
            let mut client = script(pieces);
            if let Some(head) = head {
                client.pieces.push_front(head.into_bytes());
            }
            client.ends = false;
            let mut connection = Connection::new(client);
            let _ = connection.advance(&mut echo_path);
            prop_assert!(connection.input.len() <= http::MAX_HEAD + http::MAX_BODY + CHUNK);
        }
    }
}
