//! The body of a request, as something to read.

use std::io::{self, ErrorKind, Read};

use crate::http::BodyDecoder;
use crate::server::socket::Socket;

/// How much is read at a time.
const CHUNK: usize = 64 << 10;

/// See the module.
pub struct Body<'a> {
    socket: &'a mut Socket,
    decoder: BodyDecoder,
    /// What was read and is not used, behind `used`.
    input: Vec<u8>,
    used: usize,
}

impl<'a> Body<'a> {
    /// A body of which `input` has come already, on a socket that waits.
    pub fn new(socket: &'a mut Socket, input: Vec<u8>, decoder: BodyDecoder) -> Self {
        Body {
            socket,
            decoder,
            input,
            used: 0,
        }
    }

    /// The connection, to write to.
    pub fn socket(&mut self) -> &mut Socket {
        self.socket
    }

    /// Waits for the client to end its side; what it still sends is of no interest.
    pub fn drain(&mut self, mut most: u64) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while most > 0 {
            match self.socket.read(&mut buffer)? {
                0 => break,
                n => most = most.saturating_sub(n as u64),
            }
        }
        Ok(())
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let mut rest = &self.input[self.used..];
            // No more of the input than the buffer takes: what is decoded must be used.
            let all = rest.len();
            let window = all.min(buffer.len());
            rest = &rest[..window];
            let malformed = |_| io::Error::new(ErrorKind::InvalidData, "the body is malformed");
            let piece = self.decoder.next(&mut rest).map_err(malformed)?;
            self.used += window - rest.len();
            if let Some(piece) = piece {
                buffer[..piece.len()].copy_from_slice(piece);
                return Ok(piece.len());
            }
            if self.decoder.is_over() {
                return Ok(0);
            }
            if self.used == self.input.len() {
                self.input.resize(CHUNK, 0);
                self.used = 0;
                let n = self.socket.read(&mut self.input);
                self.input.truncate(*n.as_ref().unwrap_or(&0));
                if n? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}
