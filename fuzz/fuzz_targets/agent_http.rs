//! The agent's HTTP endpoint: any bytes in any pieces, with a client that reads as much or as little as
//! it likes. Whatever comes, requests are answered one by one, and the connection ends.
#![no_main]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use arbitrary::Arbitrary;
use bulkhead_agent::api::route::Route;
use bulkhead_agent::connection::{Answer, Connection, Expect, Handler, Interest, Progress, Stream};
use bulkhead_agent::http::{Head, MAX_HEAD, Query, Response};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 512;

#[derive(Arbitrary, Debug)]
enum Piece {
    Raw(Vec<u8>),
    Head {
        post: bool,
        path: u8,
        chunked: bool,
        length: u8,
        later: bool,
    },
    Chunk(Vec<u8>),
    LastChunk,
    Nothing,
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        const PATHS: [&str; 6] = [
            "/v1/containers?a=%20b&force",
            "/v1/containers/a/files?path=/%2e%2e",
            "/v1/containers/a/execs/1/wait",
            "/v1/health",
            "/leave",
            "*",
        ];
        match self {
            Piece::Raw(bytes) => bytes.clone(),
            Piece::Head {
                post,
                path,
                chunked,
                length,
                later,
            } => {
                let method = if *post { "POST" } else { "GET" };
                let path = if *later {
                    "/later"
                } else {
                    PATHS[usize::from(*path) % PATHS.len()]
                };
                let framing = if *chunked {
                    "Transfer-Encoding: chunked".to_owned()
                } else {
                    format!("Content-Length: {length}")
                };
                format!("{method} {path} HTTP/1.1\r\n{framing}\r\n\r\n").into_bytes()
            }
            Piece::Chunk(data) => {
                let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
                chunk.extend_from_slice(data);
                chunk.extend_from_slice(b"\r\n");
                chunk
            }
            Piece::LastChunk => b"0\r\n\r\n".to_vec(),
            Piece::Nothing => Vec::new(),
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    pieces: Vec<Piece>,
    /// How much of each write is taken; 0 for none of it.
    takes: Vec<u8>,
    ends: bool,
}

struct Client {
    pieces: VecDeque<Vec<u8>>,
    takes: VecDeque<u8>,
    ends: bool,
    received: usize,
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.pieces.pop_front() {
            None if self.ends => Ok(0),
            None => Err(ErrorKind::WouldBlock.into()),
            // A piece of nothing is a moment without input.
            Some(piece) if piece.is_empty() => Err(ErrorKind::WouldBlock.into()),
            Some(mut piece) => {
                let n = piece.len().min(buffer.len());
                buffer[..n].copy_from_slice(&piece[..n]);
                if n < piece.len() {
                    self.pieces.push_front(piece.split_off(n));
                }
                Ok(n)
            }
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match self.takes.pop_front() {
            Some(0) => return Err(ErrorKind::WouldBlock.into()),
            Some(n) => bytes.len().min(n.into()),
            None => bytes.len(),
        };
        self.received += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Client {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Witness {
    asked: usize,
    promised: bool,
}

impl Handler for Witness {
    type Destination = ();

    fn expect(&mut self, head: &Head) -> Expect<()> {
        assert!(
            !self.promised,
            "a request is looked at before the last one is answered"
        );
        assert!(head.path.len() + head.query.len() + head.method.len() <= MAX_HEAD);
        if let Some(route) = Route::of(&head.path) {
            assert!(!route.methods().is_empty());
        }
        let query = Query(&head.query);
        assert!(query.get("path").is_none_or(|path| path.len() <= MAX_HEAD));
        let _ = query.flag("force", false);
        match head.path.as_str() {
            "/leave" => Expect::Leave(()),
            "/v1/health" if head.method == "POST" => Expect::Refuse(Response::conflict("No.")),
            _ => Expect::Body(LIMIT),
        }
    }

    fn handle(&mut self, head: &Head, body: &[u8]) -> Answer<()> {
        assert!(!self.promised && body.len() <= LIMIT);
        self.asked += 1;
        if head.path == "/later" {
            self.promised = true;
            return Answer::Later;
        }
        Answer::Now(Response::json(200, &body.len()))
    }
}

fuzz_target!(|input: Input| {
    let client = Client {
        pieces: input.pieces.iter().map(Piece::bytes).collect(),
        takes: input.takes.iter().copied().collect(),
        ends: input.ends,
        received: 0,
    };
    let mut moves = input
        .pieces
        .iter()
        .map(|p| p.bytes().len() + 2)
        .sum::<usize>()
        + input.takes.len();
    moves = 2 * moves + 100;
    let mut connection = Connection::new(client);
    let mut witness = Witness::default();
    loop {
        match connection.advance(&mut witness) {
            Progress::Over => return,
            Progress::Leaves((), head) => {
                assert_eq!(head.path, "/leave");
                return;
            }
            Progress::Wants(Interest::Answer) => {
                assert!(witness.promised && connection.is_promised());
                witness.promised = false;
                connection.answer(&Response::done());
            }
            Progress::Wants(Interest::Read) => {
                let client = connection.stream();
                if client.pieces.is_empty() && !client.ends {
                    return;
                }
            }
            Progress::Wants(Interest::Write) => {}
        }
        moves = moves
            .checked_sub(1)
            .expect("the connection goes round in circles");
    }
});
