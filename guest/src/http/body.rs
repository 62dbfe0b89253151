//! The body of a request, however it is framed, taken apart as its bytes come.

use super::chunks::Chunks;
use super::{Framing, Refusal};

/// Finds the body in what follows a request's head.
#[derive(Debug)]
pub enum BodyDecoder {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
}

impl BodyDecoder {
    /// A decoder for a body framed like this.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => BodyDecoder::Length(length),
            Framing::Chunked => BodyDecoder::Chunked(Chunks::new()),
        }
    }

    /// The next piece of the body, taken from the front of `input`. `None` if the input is used up
    /// or the body [is over](Self::is_over); what then is left of the input is the next request's.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Refusal> {
        match self {
            BodyDecoder::Chunked(chunks) => chunks.next(input),
            BodyDecoder::Length(left) => {
                let now = usize::try_from(*left).unwrap_or(usize::MAX);
                let (piece, rest) = input.split_at(now.min(input.len()));
                *input = rest;
                *left -= piece.len() as u64;
                Ok((!piece.is_empty()).then_some(piece))
            }
        }
    }

    /// Whether all of the body has come.
    pub fn is_over(&self) -> bool {
        match self {
            BodyDecoder::Chunked(chunks) => chunks.is_over(),
            BodyDecoder::Length(left) => *left == 0,
        }
    }
}
