//! One client: bytes in, requests handled in their order, bytes out, and an end that loses neither.

use std::io::{self, ErrorKind, Read, Write};

use crate::http::{self, BodyDecoder, Framing, Head, Refusal, Response};

/// How much is read at a time: each read is a system call, and what makes a container is some ten KiB.
const CHUNK: usize = 16 << 10;
/// How many requests are answered before other clients get their turn.
const MAX_BURST: usize = 16;
/// How many bytes a client may still send after its last answer before it is cut off.
const MAX_DRAIN: usize = 256 << 10;

/// Who answers requests.
pub trait Handler {
    /// Where a connection goes that leaves HTTP.
    type Destination;
    /// What is to be done with the body of a request of which only this has come.
    fn expect(&mut self, head: &Head) -> Expect<Self::Destination>;
    /// Answers a request that has come whole.
    fn handle(&mut self, head: &Head, body: &[u8]) -> Answer<Self::Destination>;
}

/// See [`Handler::expect`].
pub enum Expect<D> {
    /// It is collected; it may be so many bytes long.
    Body(usize),
    /// It is not wanted, because of this.
    Refuse(Response),
    /// Whoever the connection goes to reads it.
    Leave(D),
}

/// See [`Handler::handle`].
pub enum Answer<D> {
    /// This is it.
    Now(Response),
    /// It is given later, with [`Connection::answer`].
    Later,
    /// The connection goes on as something else.
    Leave(D),
}

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
    /// The answer that was promised, or the client's leaving.
    Answer,
}

/// What came of [`Connection::advance`].
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<D> {
    /// The connection waits.
    Wants(Interest),
    /// It is over.
    Over,
    /// It goes on as something else, whose head is the request's.
    Leaves(D, Box<Head>),
}

enum Phase {
    /// Requests are read and answered.
    Open,
    /// The body of a request is read.
    Body(Box<Body>),
    /// The answer to a request is given later; the next one has to wait for it.
    Promised { with_body: bool, keep_alive: bool },
    /// No request will be read any more; what is left of the output goes out.
    Closing,
    /// The output is out and ended. What the client still sends is thrown away until it ends its
    /// side too: closing before that makes the kernel reset the connection, and a reset can
    /// overtake the answer.
    Draining { left: usize },
}

struct Body {
    head: Head,
    decoder: BodyDecoder,
    bytes: Vec<u8>,
    limit: usize,
}

/// A client's connection and the bytes under way on it.
pub struct Connection<S> {
    stream: S,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    phase: Phase,
}

/// What came of the input.
enum Step<D> {
    /// Something is on the output.
    Answered,
    /// Something was read of it, and there may be more to do.
    Again,
    /// More input is needed first.
    Starved,
    /// See [`Progress::Leaves`].
    Leaves(D, Box<Head>),
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
        }
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream and what was read from it beyond the last head, once the connection leaves.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.input)
    }

    /// Whether the last answer was given and it remains to be received.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Draining { .. })
    }

    /// Whether an answer was promised and has not been given.
    pub fn is_promised(&self) -> bool {
        matches!(self.phase, Phase::Promised { .. })
    }

    /// Gives the answer that was promised. To be followed by [`Self::advance`].
    pub fn answer(&mut self, response: &Response) {
        if let Phase::Promised {
            with_body,
            keep_alive,
        } = self.phase
        {
            self.phase = Phase::Open;
            self.put(response, with_body, keep_alive);
        }
    }

    /// Does all that can be done now.
    pub fn advance<D>(&mut self, handler: &mut dyn Handler<Destination = D>) -> Progress<D> {
        // An error means that the client is gone; there is nobody to tell.
        self.try_advance(handler).unwrap_or(Progress::Over)
    }

    fn try_advance<D>(
        &mut self,
        handler: &mut dyn Handler<Destination = D>,
    ) -> io::Result<Progress<D>> {
        let mut burst = 0;
        loop {
            // Answers first: a client that does not read its answers gets no further ones, which
            // bounds the output.
            if !self.flush()? {
                return Ok(Progress::Wants(Interest::Write));
            }
            match self.phase {
                Phase::Open if burst == MAX_BURST => return Ok(Progress::Wants(Interest::Write)),
                Phase::Promised { .. } => return Ok(Progress::Wants(Interest::Answer)),
                Phase::Open | Phase::Body(_) => match self.step(handler) {
                    Step::Answered => burst += 1,
                    Step::Again => {}
                    Step::Leaves(to, head) => return Ok(Progress::Leaves(to, head)),
                    Step::Starved => match self.fill()? {
                        None => return Ok(Progress::Wants(Interest::Read)),
                        Some(0) if self.is_idle() => return Ok(Progress::Over),
                        // The client ended in the middle of a request.
                        Some(0) => self.refuse(Refusal::Malformed),
                        Some(_) => {}
                    },
                },
                Phase::Closing => {
                    self.stream.shutdown_write()?;
                    self.input = Vec::new();
                    self.phase = Phase::Draining { left: MAX_DRAIN };
                }
                Phase::Draining { left } => match self.fill()? {
                    None => return Ok(Progress::Wants(Interest::Read)),
                    Some(0) => return Ok(Progress::Over),
                    Some(n) => {
                        self.input.clear();
                        match left.checked_sub(n) {
                            Some(left) => self.phase = Phase::Draining { left },
                            None => return Ok(Progress::Over),
                        }
                    }
                },
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.input.is_empty() && matches!(self.phase, Phase::Open)
    }

    fn step<D>(&mut self, handler: &mut dyn Handler<Destination = D>) -> Step<D> {
        let result = match &mut self.phase {
            Phase::Body(_) => self.collect(handler),
            _ => self.begin(handler),
        };
        result.unwrap_or_else(|refusal| {
            self.refuse(refusal);
            Step::Answered
        })
    }

    /// Takes the next head off the input.
    fn begin<D>(&mut self, handler: &mut dyn Handler<Destination = D>) -> Result<Step<D>, Refusal> {
        let Some((head, length)) = http::parse_head(&self.input)? else {
            return Ok(Step::Starved);
        };
        self.input.drain(..length);
        let limit = match handler.expect(&head) {
            Expect::Body(limit) => limit,
            Expect::Leave(to) => return Ok(Step::Leaves(to, Box::new(head))),
            Expect::Refuse(response) => {
                self.put(&response, head.method != "HEAD", false);
                return Ok(Step::Answered);
            }
        };
        let expected = match head.framing {
            Framing::Length(length) if length > limit as u64 => {
                return Err(Refusal::BodyTooLarge(limit));
            }
            // No longer than the limit, which is a usize.
            Framing::Length(length) => length as usize,
            Framing::Chunked => 0,
        };
        let decoder = BodyDecoder::new(head.framing);
        if head.wants_continue && !decoder.is_over() && self.input.is_empty() {
            self.output
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.phase = Phase::Body(Box::new(Body {
            head,
            decoder,
            // Memory that is not written to yet costs nothing, and growing is copying.
            bytes: Vec::with_capacity(expected),
            limit,
        }));
        Ok(Step::Again)
    }

    /// Moves the body off the input, and answers the request once it is whole.
    fn collect<D>(
        &mut self,
        handler: &mut dyn Handler<Destination = D>,
    ) -> Result<Step<D>, Refusal> {
        let Phase::Body(body) = &mut self.phase else {
            return Ok(Step::Starved);
        };
        let mut rest = &self.input[..];
        while let Some(piece) = body.decoder.next(&mut rest)? {
            if piece.len() > body.limit - body.bytes.len() {
                return Err(Refusal::BodyTooLarge(body.limit));
            }
            body.bytes.extend_from_slice(piece);
        }
        let used = self.input.len() - rest.len();
        self.input.drain(..used);
        if !body.decoder.is_over() {
            return Ok(Step::Starved);
        }
        let Phase::Body(body) = std::mem::replace(&mut self.phase, Phase::Open) else {
            return Ok(Step::Starved);
        };
        let (with_body, keep_alive) = (body.head.method != "HEAD", body.head.keep_alive);
        match handler.handle(&body.head, &body.bytes) {
            Answer::Now(response) => {
                self.put(&response, with_body, keep_alive);
                Ok(Step::Answered)
            }
            Answer::Later => {
                self.phase = Phase::Promised {
                    with_body,
                    keep_alive,
                };
                Ok(Step::Again)
            }
            Answer::Leave(to) => Ok(Step::Leaves(to, Box::new(body.head))),
        }
    }

    fn put(&mut self, response: &Response, with_body: bool, keep_alive: bool) {
        let keep_alive = keep_alive && !response.last;
        response.write_to(&mut self.output, with_body, keep_alive);
        if !keep_alive {
            self.phase = Phase::Closing;
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.put(&refusal.response(), true, false);
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
    /// nothing now. The input stays within a head's bounds and a chunk, as it is only read on when
    /// it holds no whole head and nothing of a body.
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

    const LIMIT: usize = 1000;

    /// Answers with the path and the body; what begins with `/later` later, and `/leave` leaves.
    #[derive(Default)]
    struct Echo {
        handled: usize,
    }

    impl Handler for Echo {
        type Destination = ();

        fn expect(&mut self, head: &Head) -> Expect<()> {
            match head.path.as_str() {
                "/leave" => Expect::Leave(()),
                "/refuse" => Expect::Refuse(Response::conflict("No.")),
                _ => Expect::Body(LIMIT),
            }
        }

        fn handle(&mut self, head: &Head, body: &[u8]) -> Answer<()> {
            self.handled += 1;
            match head.path.as_str() {
                "/later" => Answer::Later,
                path => Answer::Now(Response::json(200, &(path, String::from_utf8_lossy(body)))),
            }
        }
    }

    fn run(script: Script) -> (Progress<()>, Script) {
        let mut connection = Connection::new(script);
        let progress = connection.advance(&mut Echo::default());
        (progress, connection.stream)
    }

    fn text(script: &Script) -> String {
        String::from_utf8_lossy(&script.received).into_owned()
    }

    #[test]
    fn requests_when_pipelined_byte_by_byte_then_answered_in_order() {
        let bytes = b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\n";
        let (progress, client) = run(script(bytes.iter().map(|b| vec![*b])));
        assert_eq!(progress, Progress::Over);
        let text = text(&client);
        let (a, b) = (text.find("[\"/a\",\"\"]"), text.find("[\"/b\",\"\"]"));
        assert!(a.is_some() && a < b, "{text}");
        assert!(client.ended);
    }

    #[test]
    fn answer_when_client_takes_one_byte_at_a_time_then_whole() {
        let mut client = script(["GET /a HTTP/1.1\r\n\r\n"]);
        client.write_size = 1;
        assert!(text(&run(client).1).ends_with("[\"/a\",\"\"]\n"));
    }

    #[test]
    fn client_when_it_does_not_read_then_gets_no_second_answer() {
        let mut client = script(["GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n"]);
        client.room = 10;
        let mut connection = Connection::new(client);
        let mut echo = Echo::default();
        for _ in 0..2 {
            let progress = connection.advance(&mut echo);
            assert_eq!(progress, Progress::Wants(Interest::Write));
        }
        assert_eq!(echo.handled, 1);
    }

    #[test]
    fn client_when_it_floods_then_others_get_their_turn() {
        let (progress, client) = run(script(["GET /a HTTP/1.1\r\n\r\n".repeat(100)]));
        assert_eq!(progress, Progress::Wants(Interest::Write));
        assert_eq!(text(&client).matches("200 OK").count(), MAX_BURST);
    }

    #[test]
    fn refused_client_when_it_goes_on_sending_then_reads_its_answer_and_is_cut_off() {
        let mut client = script([b"nonsense\r\n\r\n".to_vec(), vec![b'x'; 2 * MAX_DRAIN]]);
        client.ends = false;
        let (progress, client) = run(client);
        assert_eq!(progress, Progress::Over);
        assert!(text(&client).starts_with("HTTP/1.1 400 "));
        assert!(client.ended && !client.pieces.is_empty());
    }

    #[test]
    fn client_when_it_ends_in_mid_request_then_400() {
        let (progress, client) = run(script(["GET /a HT"]));
        assert_eq!(progress, Progress::Over);
        assert!(text(&client).starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn client_when_it_expects_100_then_gets_it_once() {
        let head = "POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
        let (_, client) = run(script([head, "{", "} "]));
        let text = text(&client);
        assert!(text.ends_with("[\"/a\",\"{} \"]\n"), "{text}");
        assert!(text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"));
        assert_eq!(text.matches("100 Continue").count(), 1);
    }

    #[test]
    fn silent_client_when_it_leaves_then_over_without_a_word() {
        let (progress, client) = run(script([""; 0]));
        assert_eq!((progress, client.received.len()), (Progress::Over, 0));
    }

    #[test]
    fn body_when_chunked_byte_by_byte_then_whole_and_the_next_request_is_found() {
        let bytes = b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
        let (_, client) = run(script(bytes.iter().map(|b| vec![*b])));
        let text = text(&client);
        let (a, b) = (text.find("[\"/a\",\"abcde\"]"), text.find("[\"/b\",\"\"]"));
        assert!(a.is_some() && a < b, "{text}");
    }

    #[test]
    fn body_when_too_long_then_413_however_it_is_framed() {
        let lengthy = format!("Content-Length: {}\r\n\r\n", LIMIT + 1);
        let chunks = "1ff\r\n".to_owned() + &"x".repeat(511) + "\r\n";
        let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{}", chunks.repeat(2));
        for framing in [lengthy, chunked] {
            let (progress, client) = run(script([format!("PUT /a HTTP/1.1\r\n{framing}")]));
            assert_eq!(progress, Progress::Over);
            assert!(text(&client).starts_with("HTTP/1.1 413 "));
        }
    }

    #[test]
    fn answer_when_promised_then_the_next_request_waits_for_it() {
        let mut client = script(["GET /later HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n"]);
        client.ends = false;
        let mut connection = Connection::new(client);
        let mut echo = Echo::default();
        for _ in 0..2 {
            let progress = connection.advance(&mut echo);
            assert_eq!(progress, Progress::Wants(Interest::Answer));
        }
        assert_eq!((echo.handled, text(&connection.stream)), (1, String::new()));
        connection.answer(&Response::json(200, &"at last"));
        let progress = connection.advance(&mut echo);
        assert_eq!(progress, Progress::Wants(Interest::Read));
        let text = text(&connection.stream);
        assert!(text.find("at last") < text.find("/b") && echo.handled == 2);
    }

    #[test]
    fn connection_when_it_leaves_then_takes_along_what_came_behind_the_head() {
        let mut connection = Connection::new(script(["PUT /leave HTTP/1.1\r\n\r\nmore"]));
        let progress = connection.advance(&mut Echo::default());
        assert!(matches!(progress, Progress::Leaves((), head) if head.path == "/leave"));
        assert_eq!(connection.into_parts().1, b"more");
    }

    #[test]
    fn body_when_refused_before_it_comes_then_the_connection_ends() {
        let request = "PUT /refuse HTTP/1.1\r\nContent-Length: 9\r\n\r\nnonsense";
        let (progress, client) = run(script([request]));
        assert_eq!(progress, Progress::Over);
        assert!(text(&client).starts_with("HTTP/1.1 409 ") && client.ended);
    }

    proptest! {
        #[test]
        fn any_pieces_when_received_then_no_panic_and_the_input_stays_bounded(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
            head in prop::option::of("GET /[a-z]{1,5} HTTP/1.1\r\n(Content-Length: [0-9]{1,4}\r\n|Transfer-Encoding: chunked\r\n)?\r\n"),
        ) {
            let mut client = script(pieces);
            if let Some(head) = head {
                client.pieces.push_front(head.into_bytes());
            }
            client.ends = false;
            let mut connection = Connection::new(client);
            let _ = connection.advance(&mut Echo::default());
            prop_assert!(connection.input.len() <= http::MAX_HEAD + CHUNK);
        }
    }
}
