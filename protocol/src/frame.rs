//! The frames of a stream: what a connection carries, both ways, after it was upgraded.
//!
//! A frame is eight bytes, the [`Kind`], three zeros and the payload's length in big-endian order
//! (Docker's stream format), and the payload. The programs' data may be cut into frames anywhere;
//! [`Decoder`] hands it on as it comes, however long its frame is, and keeps only what must be
//! whole: the short frames that are messages.
//!
//! | to the agent | from the agent |
//! |---|---|
//! | [`Kind::Stdin`], an empty one for the end of it | [`Kind::Stdout`], [`Kind::Stderr`] |
//! | [`Kind::Resize`] with a [`TerminalSize`](crate::TerminalSize) | [`Kind::Error`] with a sentence |
//! | [`Kind::Start`] | [`Kind::Started`], or the program's end |
//! | | [`Kind::Exit`] with an [`Exit`](crate::Exit), the last one |

use std::fmt;

/// The token of the `Upgrade` header.
pub const UPGRADE: &str = "bulkhead-stream";
/// How long a header is, bytes.
pub const HEADER_LENGTH: usize = 8;
/// The longest payload of a frame that is a message, bytes.
pub const MAX_MESSAGE: usize = 8 << 10;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes for the program's standard input; an empty frame ends it.
    Stdin = 0,
    /// Bytes from the program's standard output, or its terminal.
    Stdout = 1,
    /// Bytes from the program's standard error.
    Stderr = 2,
    /// Why a program cannot be run: a sentence.
    Error = 3,
    /// How the program ended: JSON. Nothing follows.
    Exit = 4,
    /// The terminal's new size: JSON.
    Resize = 5,
    /// The container's program is to be executed, as by a request for that. Nothing in it.
    Start = 6,
    /// It has been. Nothing in it.
    Started = 7,
}

impl Kind {
    /// All there are.
    pub const ALL: [Kind; 8] = [
        Kind::Stdin,
        Kind::Stdout,
        Kind::Stderr,
        Kind::Error,
        Kind::Exit,
        Kind::Resize,
        Kind::Start,
        Kind::Started,
    ];

    /// Whether the payload is a whole and short, rather than a part of something endless.
    pub fn is_message(self) -> bool {
        !matches!(self, Kind::Stdin | Kind::Stdout | Kind::Stderr)
    }

    fn of(byte: u8) -> Option<Self> {
        Kind::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// The beginning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it carries.
    pub kind: Kind,
    /// How many bytes of payload follow.
    pub length: u32,
}

impl Header {
    /// As it goes over the wire.
    pub fn encode(self) -> [u8; HEADER_LENGTH] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [self.kind as u8, 0, 0, 0, a, b, c, d]
    }

    /// Reads a header.
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Result<Self, FrameError> {
        let [kind, 0, 0, 0, a, b, c, d] = bytes else {
            return Err(FrameError::Malformed(bytes));
        };
        let header = Header {
            kind: Kind::of(kind).ok_or(FrameError::Kind(kind))?,
            length: u32::from_be_bytes([a, b, c, d]),
        };
        // A message is at most some KiB; u32 fits usize wherever this runs.
        if header.kind.is_message() && header.length as usize > MAX_MESSAGE {
            return Err(FrameError::TooLong(header));
        }
        Ok(header)
    }
}

/// A whole frame; `payload` is at most `u32::MAX` bytes long, and what is beyond is cut off.
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let payload = &payload[..payload.len().min(length as usize)];
    let mut frame = Vec::with_capacity(HEADER_LENGTH + payload.len());
    frame.extend_from_slice(&Header { kind, length }.encode());
    frame.extend_from_slice(payload);
    frame
}

/// Why bytes are no frames. Nobody knows where the next one would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The three bytes after the kind are not zeros.
    Malformed([u8; HEADER_LENGTH]),
    /// There is no such kind.
    Kind(u8),
    /// A message of more than [`MAX_MESSAGE`] bytes.
    TooLong(Header),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Malformed(bytes) => write!(f, "{bytes:02x?} is not the header of a frame"),
            FrameError::Kind(kind) => write!(f, "there are no frames of type {kind}"),
            FrameError::TooLong(header) => write!(
                f,
                "a frame of type {} may be {MAX_MESSAGE} bytes long, not {}",
                header.kind as u8, header.length
            ),
        }
    }
}

impl std::error::Error for FrameError {}

/// A part of what came.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of a stream; never empty.
    Data(Kind, &'a [u8]),
    /// An empty frame of a stream: its end, for [`Kind::Stdin`].
    End(Kind),
    /// A whole message.
    Message(Kind, Vec<u8>),
}

/// Takes frames apart as their bytes come.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The part of a header that has come.
    header: [u8; HEADER_LENGTH],
    header_filled: usize,
    /// The frame that the next bytes belong to, and how many are still to come.
    current: Option<(Kind, usize)>,
    message: Vec<u8>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next part, taken from the front of `input`; `None` when all of it is taken.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Part<'a>>, FrameError> {
        loop {
            let Some((kind, left)) = self.current else {
                if !self.take_header(input) {
                    return Ok(None);
                }
                self.header_filled = 0;
                let header = Header::decode(self.header)?;
                let length = header.length as usize;
                if length == 0 {
                    return Ok(Some(if header.kind.is_message() {
                        Part::Message(header.kind, Vec::new())
                    } else {
                        Part::End(header.kind)
                    }));
                }
                self.current = Some((header.kind, length));
                continue;
            };
            if input.is_empty() {
                return Ok(None);
            }
            let (part, rest) = input.split_at(left.min(input.len()));
            *input = rest;
            let left = left - part.len();
            self.current = (left > 0).then_some((kind, left));
            if !kind.is_message() {
                return Ok(Some(Part::Data(kind, part)));
            }
            self.message.extend_from_slice(part);
            if left == 0 {
                return Ok(Some(Part::Message(kind, std::mem::take(&mut self.message))));
            }
        }
    }

    /// Whether the bytes so far end where a frame does.
    pub fn is_between_frames(&self) -> bool {
        self.current.is_none() && self.header_filled == 0
    }

    /// Fills the header. `false` if it needs more than there is.
    fn take_header(&mut self, input: &mut &[u8]) -> bool {
        let missing = HEADER_LENGTH - self.header_filled;
        let (part, rest) = input.split_at(missing.min(input.len()));
        *input = rest;
        self.header[self.header_filled..][..part.len()].copy_from_slice(part);
        self.header_filled += part.len();
        self.header_filled == HEADER_LENGTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that a decoder makes of `pieces`, neighbouring data joined.
    fn decode(pieces: &[&[u8]]) -> Result<Vec<(Kind, Vec<u8>)>, FrameError> {
        let mut decoder = Decoder::new();
        let mut parts: Vec<(Kind, Vec<u8>)> = Vec::new();
        let mut joins = false;
        for mut piece in pieces.iter().copied() {
            while let Some(part) = decoder.next(&mut piece)? {
                match part {
                    Part::Data(kind, data) => {
                        assert!(!data.is_empty());
                        match parts.last_mut() {
                            Some((last, all)) if joins && *last == kind => all.extend(data),
                            _ => parts.push((kind, data.to_vec())),
                        }
                        joins = true;
                        continue;
                    }
                    Part::End(kind) => parts.push((kind, Vec::new())),
                    Part::Message(kind, message) => parts.push((kind, message)),
                }
                joins = false;
            }
            assert!(piece.is_empty());
        }
        Ok(parts)
    }

    #[test]
    fn header_when_encoded_then_as_docker_has_it() {
        let header = Header {
            kind: Kind::Stderr,
            length: 0x0102_0304,
        };
        assert_eq!(header.encode(), [2, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(Header::decode(header.encode()), Ok(header));
    }

    #[test]
    fn header_when_not_one_of_ours_then_refused() {
        let refused = |bytes| Header::decode(bytes).expect_err("refused");
        assert_eq!(refused([8, 0, 0, 0, 0, 0, 0, 1]), FrameError::Kind(8));
        let bytes = [0, 0, 1, 0, 0, 0, 0, 1];
        assert_eq!(refused(bytes), FrameError::Malformed(bytes));
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_message()) {
            let header = Header {
                kind,
                length: MAX_MESSAGE as u32 + 1,
            };
            assert_eq!(refused(header.encode()), FrameError::TooLong(header));
        }
    }

    #[test]
    fn data_when_its_frame_is_endless_then_handed_on_and_not_kept() {
        let mut decoder = Decoder::new();
        let header = Header {
            kind: Kind::Stdin,
            length: u32::MAX,
        };
        let bytes = header.encode();
        let mut input = &bytes[..];
        assert_eq!(decoder.next(&mut input), Ok(None));
        for _ in 0..100 {
            let mut input = &[7; 1000][..];
            let part = decoder.next(&mut input);
            assert_eq!(part, Ok(Some(Part::Data(Kind::Stdin, &[7; 1000]))));
        }
        assert_eq!(decoder.message.capacity(), 0);
    }

    fn frames() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
        let kind = (0u8..6).prop_map(|k| Kind::of(k).expect("kind"));
        let payload = proptest::collection::vec(any::<u8>(), 0..40);
        proptest::collection::vec((kind, payload), 0..20)
    }

    proptest! {
        #[test]
        fn frames_when_cut_anywhere_then_come_out_as_they_went_in(
            frames in frames(),
            cuts in proptest::collection::vec(1usize..30, 1..40),
        ) {
            let wire: Vec<u8> = frames.iter().flat_map(|(k, p)| encode(*k, p)).collect();
            let mut pieces = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let whole = decode(&[&wire])?;
            prop_assert_eq!(decode(&pieces)?, whole);
            let flat = |frames: &[(Kind, Vec<u8>)]| {
                frames.iter().flat_map(|(_, p)| p.clone()).collect::<Vec<u8>>()
            };
            prop_assert_eq!(flat(&decode(&[&wire])?), flat(&frames));
        }

        #[test]
        fn any_bytes_when_decoded_then_no_panic_and_bounded(
            input in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut decoder = Decoder::new();
            let mut rest = &input[..];
            while let Ok(Some(_)) = decoder.next(&mut rest) {}
            prop_assert!(decoder.message.len() <= MAX_MESSAGE);
        }
    }
}
