//! The chunked transfer coding (RFC 9112 §7.1).

use super::Refusal;

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The longest line of a chunk's size, its extensions included, bytes.
const MAX_SIZE_LINE: usize = 256;
/// The longest trailer section, bytes.
const MAX_TRAILERS: usize = 8 << 10;

/// The line before a chunk of `length` bytes, which `\r\n` ends.
pub fn chunk_size_line(length: usize) -> String {
    format!("{length:x}\r\n")
}

/// Takes a chunked body apart. Strict: lines end with CR LF, and what a proxy in between could read
/// differently is refused.
#[derive(Debug)]
pub struct Chunks {
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// In the digits of a size.
    Size {
        size: u64,
        digits: u32,
    },
    /// Behind them, up to the line feed.
    Extension {
        size: u64,
        length: usize,
        cr: bool,
    },
    /// In a chunk of which so much is left.
    Data(u64),
    /// Behind a chunk: CR, then LF.
    DataEnd {
        cr: bool,
    },
    /// In the trailers: how long they are, and how long this line is.
    Trailer {
        total: usize,
        line: usize,
        cr: bool,
    },
    Over,
}

impl Chunks {
    /// At the beginning of a body.
    pub fn new() -> Self {
        Chunks {
            state: State::Size { size: 0, digits: 0 },
        }
    }

    /// See [`super::BodyDecoder::next`].
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Refusal> {
        loop {
            if let State::Data(left) = self.state {
                let now = usize::try_from(left).unwrap_or(usize::MAX);
                let (piece, rest) = input.split_at(now.min(input.len()));
                *input = rest;
                let left = left - piece.len() as u64;
                self.state = match left {
                    0 => State::DataEnd { cr: false },
                    _ => State::Data(left),
                };
                if !piece.is_empty() {
                    return Ok(Some(piece));
                }
            }
            if self.is_over() {
                return Ok(None);
            }
            let Some((&byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            *input = rest;
            self.state = step(self.state, byte).ok_or(Refusal::Malformed)?;
        }
    }

    /// Whether the last chunk and the trailers have come.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self::new()
    }
}

/// The state after a byte that is not data; `None` if it must not be there.
fn step(state: State, byte: u8) -> Option<State> {
    Some(match (state, byte) {
        (State::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            let digit = char::from(byte).to_digit(16)?;
            State::Size {
                size: size.checked_mul(16)?.checked_add(digit.into())?,
                // Leading zeros are no way to send for ever.
                digits: Some(digits + 1).filter(|&d| d <= 16)?,
            }
        }
        (State::Size { digits: 0, .. }, _) => return None,
        (State::Size { size, .. }, b'\r') => State::Extension {
            size,
            length: 0,
            cr: true,
        },
        (State::Size { size, .. }, b';' | b' ' | b'\t') => State::Extension {
            size,
            length: 1,
            cr: false,
        },
        (State::Extension { size, cr: true, .. }, b'\n') => match size {
            0 => State::Trailer {
                total: 0,
                line: 0,
                cr: false,
            },
            _ => State::Data(size),
        },
        (State::Extension { cr: true, .. }, _) => return None,
        (State::Extension { size, length, .. }, b'\r') => State::Extension {
            size,
            length,
            cr: true,
        },
        (State::Extension { size, length, .. }, _) if byte != b'\n' => State::Extension {
            size,
            length: Some(length + 1).filter(|&l| l <= MAX_SIZE_LINE)?,
            cr: false,
        },
        (State::DataEnd { cr: false }, b'\r') => State::DataEnd { cr: true },
        (State::DataEnd { cr: true }, b'\n') => State::Size { size: 0, digits: 0 },
        (
            State::Trailer {
                line: 0, cr: true, ..
            },
            b'\n',
        ) => State::Over,
        (
            State::Trailer {
                total, cr: true, ..
            },
            b'\n',
        ) => State::Trailer {
            total,
            line: 0,
            cr: false,
        },
        (State::Trailer { cr: true, .. }, _) => return None,
        (State::Trailer { total, line, .. }, b'\r') => State::Trailer {
            total,
            line,
            cr: true,
        },
        (State::Trailer { total, line, .. }, _) if byte != b'\n' => State::Trailer {
            total: Some(total + 1).filter(|&t| t <= MAX_TRAILERS)?,
            line: line + 1,
            cr: false,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The body in `pieces`, whether it is over, and what is left of the last piece.
    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), Refusal> {
        let mut chunks = Chunks::new();
        let mut body = Vec::new();
        let mut left = Vec::new();
        for mut piece in pieces.iter().copied() {
            while let Some(data) = chunks.next(&mut piece)? {
                body.extend_from_slice(data);
            }
            left.extend_from_slice(piece);
        }
        Ok((body, chunks.is_over(), left))
    }

    #[test]
    fn body_when_it_has_extensions_and_trailers_then_only_the_data_counts() {
        let wire = b"5;a=b\r\nhello\r\n1 \r\n,\r\n6\r\n world\r\n000\r\nA: b\r\n\r\nGET";
        let (body, over, left) = decode(&[wire]).expect("chunks");
        assert_eq!(
            (&body[..], over, &left[..]),
            (&b"hello, world"[..], true, &b"GET"[..])
        );
        let bytes: Vec<&[u8]> = wire[..wire.len() - 3].chunks(1).collect();
        assert_eq!(decode(&bytes), Ok((b"hello, world".to_vec(), true, vec![])));
    }

    #[test]
    fn body_when_malformed_then_refused() {
        for bad in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "0x1\r\nA\r\n",
            "1\nA\r\n",
            "1\r\r\nA",
            "1\r\nAB\r\n",
            "1\r\nA\n",
            "10000000000000000\r\n",
            "00000000000000001\r\nA",
            "0\r\nA: b\n\r\n",
            "0\r\n\n",
            &format!("1;{}\r\nA", "x".repeat(MAX_SIZE_LINE)),
            &format!("0\r\n{}", "A: b\r\n".repeat(MAX_TRAILERS)),
        ] {
            assert_eq!(
                decode(&[bad.as_bytes()]),
                Err(Refusal::Malformed),
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_when_decoded_then_no_panic_and_the_cuts_do_not_matter(
            input in "([0-9a-f]{0,2}[;\r\n ]{0,3}\n?.{0,4}\r?\n?){0,6}",
            cut in 0usize..40,
        ) {
            let input = input.as_bytes();
            let (a, b) = input.split_at(cut.min(input.len()));
            prop_assert_eq!(decode(&[input]).map(|d| (d.0, d.1)), decode(&[a, b]).map(|d| (d.0, d.1)));
        }
    }
}
