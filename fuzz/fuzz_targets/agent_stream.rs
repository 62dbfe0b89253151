//! The frames of streams: any bytes in any pieces decode to the same whatever the pieces are, and to
//! what was encoded; nothing long is kept.
#![no_main]

use arbitrary::Arbitrary;
use bulkhead_protocol::frame::{Decoder, FrameError, Kind, MAX_MESSAGE, Part, encode};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Item {
    Raw(Vec<u8>),
    Frame(u8, Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Input {
    items: Vec<Item>,
    cuts: Vec<u8>,
}

/// What came, data joined, up to the first error.
fn decode<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<(Kind, bool, Vec<u8>)>, Option<FrameError>) {
    let mut decoder = Decoder::new();
    let mut parts: Vec<(Kind, bool, Vec<u8>)> = Vec::new();
    for mut piece in pieces {
        loop {
            match decoder.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Part::Data(kind, data))) => {
                    assert!(!data.is_empty());
                    match parts.last_mut() {
                        Some((last, true, all)) if *last == kind => all.extend_from_slice(data),
                        _ => parts.push((kind, true, data.to_vec())),
                    }
                }
                Ok(Some(Part::End(kind))) => parts.push((kind, false, Vec::new())),
                Ok(Some(Part::Message(kind, message))) => {
                    assert!(kind.is_message() && message.len() <= MAX_MESSAGE);
                    parts.push((kind, false, message));
                }
                Err(e) => return (parts, Some(e)),
            }
        }
        assert!(piece.is_empty());
    }
    (parts, None)
}

fuzz_target!(|input: Input| {
    let mut wire = Vec::new();
    let mut sent = Vec::new();
    let mut whole = true;
    for item in &input.items {
        match item {
            Item::Raw(bytes) => {
                whole &= bytes.is_empty();
                wire.extend_from_slice(bytes);
            }
            Item::Frame(kind, payload) => {
                let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
                whole &= !kind.is_message() || payload.len() <= MAX_MESSAGE;
                wire.extend(encode(kind, payload));
                sent.extend_from_slice(payload);
            }
        }
    }
    let at_once = decode(std::iter::once(&wire[..]));
    let mut rest = &wire[..];
    let cuts = input
        .cuts
        .iter()
        .map(|&cut| usize::from(cut).max(1))
        .chain(std::iter::repeat(7));
    let pieces = cuts.map_while(|cut| {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(decode(pieces), at_once);
    if whole {
        assert_eq!(at_once.1, None);
        let received: Vec<u8> = at_once
            .0
            .into_iter()
            .flat_map(|(_, _, data)| data)
            .collect();
        assert_eq!(received, sent);
    }
});
