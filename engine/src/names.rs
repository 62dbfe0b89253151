//! IDs, and names for containers that were given none.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// A new ID: 64 hexadecimal digits, as Docker's.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0; 32];
    random(&mut bytes)?;
    let mut id = String::with_capacity(64);
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            id.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    // A short ID of digits alone would be read as a number by some.
    if id[..12].bytes().all(|b| b.is_ascii_digit()) {
        return new_id();
    }
    Ok(id)
}

/// A name that is easy to say; with more to it if the ones before were taken.
pub fn suggest(attempt: u32) -> io::Result<String> {
    let mut bytes = [0; 3];
    random(&mut bytes)?;
    let adjective = ADJECTIVES[usize::from(bytes[0]) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(bytes[1]) % NOUNS.len()];
    Ok(match attempt {
        0 => format!("{adjective}_{noun}"),
        _ => format!("{adjective}_{noun}{}", bytes[2]),
    })
}

/// Whether `name` can be a container's, as Docker has it.
pub fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 128
        && name.len() >= 2
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Fills `bytes` with random numbers.
pub(crate) fn random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = getrandom(&mut *bytes, GetRandomFlags::empty())?;
        bytes = &mut bytes[n..];
    }
    Ok(())
}

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ample", "arctic", "azure", "bold", "brave", "breezy", "bright", "brisk",
    "calm", "clear", "coastal", "cobalt", "coral", "crisp", "daring", "deep", "eager", "early",
    "fair", "fleet", "fresh", "gentle", "golden", "grand", "hardy", "hearty", "jolly", "keen",
    "kind", "lively", "lucid", "lucky", "merry", "mighty", "misty", "nimble", "noble", "open",
    "patient", "placid", "polar", "proud", "quick", "quiet", "rapid", "rugged", "salty", "serene",
    "sharp", "silver", "sleek", "smooth", "snug", "solid", "steady", "stout", "sturdy", "sunny",
    "swift", "tidal", "trusty", "windy",
];

const NOUNS: [&str; 64] = [
    "albatross",
    "anchor",
    "atoll",
    "barge",
    "barque",
    "bay",
    "beacon",
    "bollard",
    "bosun",
    "bow",
    "breaker",
    "brig",
    "buoy",
    "cabin",
    "canoe",
    "cape",
    "capstan",
    "clipper",
    "compass",
    "cove",
    "crew",
    "current",
    "cutter",
    "deck",
    "dinghy",
    "dock",
    "dolphin",
    "ferry",
    "fjord",
    "galley",
    "gull",
    "gunwale",
    "halyard",
    "harbour",
    "hawser",
    "helm",
    "hull",
    "island",
    "jetty",
    "keel",
    "ketch",
    "lagoon",
    "lighthouse",
    "lugger",
    "mast",
    "mooring",
    "osprey",
    "otter",
    "pelican",
    "pilot",
    "porthole",
    "puffin",
    "quay",
    "reef",
    "rudder",
    "sail",
    "schooner",
    "sextant",
    "sloop",
    "sounding",
    "spar",
    "tide",
    "tiller",
    "yawl",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_differ() {
        let (a, b) = (new_id().expect("id"), new_id().expect("id"));
        assert!(a.len() == 64 && a.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }

    #[test]
    fn names_when_suggested_are_valid_and_lists_hold_no_word_twice() {
        for attempt in 0..3 {
            assert!(is_valid(&suggest(attempt).expect("name")));
        }
        for mut list in [ADJECTIVES, NOUNS] {
            let all = list.len();
            list.sort_unstable();
            assert_eq!(
                list.to_vec()
                    .iter()
                    .collect::<std::collections::BTreeSet<_>>()
                    .len(),
                all
            );
        }
        for wrong in ["", "a", "-ab", "a b", "a/b", "ä1", "..", &"x".repeat(129)] {
            assert!(!is_valid(wrong), "{wrong}");
        }
    }
}
