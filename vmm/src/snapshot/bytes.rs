//! KVM's structures as text: their bytes in hexadecimal, since nobody but KVM knows what is in them.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// For `#[serde(with = "...")]` on a structure that is nothing but integers.
pub mod plain {
    use super::*;

    pub fn serialize<T, S>(value: &T, to: S) -> Result<S::Ok, S::Error>
    where
        T: IntoBytes + Immutable,
        S: Serializer,
    {
        to.serialize_str(&encode(value.as_bytes()))
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromBytes,
        D: Deserializer<'de>,
    {
        let bytes = from.deserialize_str(Hexadecimal)?;
        T::read_from_bytes(&bytes).map_err(|_| {
            let wanted = size_of::<T>();
            D::Error::custom(format!("{} bytes, where {wanted} belong", bytes.len()))
        })
    }
}

/// For `#[serde(with = "...")]` on several such structures.
pub mod list {
    use super::*;

    pub fn serialize<T, S>(values: &[T], to: S) -> Result<S::Ok, S::Error>
    where
        T: IntoBytes + Immutable,
        S: Serializer,
    {
        to.serialize_str(&encode(values.as_bytes()))
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: FromBytes,
        D: Deserializer<'de>,
    {
        let bytes = from.deserialize_str(Hexadecimal)?;
        let entries = bytes.chunks(size_of::<T>()).map(|entry| {
            T::read_from_bytes(entry).map_err(|_| {
                let size = size_of::<T>();
                D::Error::custom(format!("{} bytes are no entries of {size}", bytes.len()))
            })
        });
        entries.collect()
    }
}

struct Hexadecimal;

impl Visitor<'_> for Hexadecimal {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("bytes in hexadecimal")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        decode(text).ok_or_else(|| E::custom("these are no bytes in hexadecimal"))
    }
}

/// Two lower-case digits for each byte.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

/// What [`encode`] made, and nothing else.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_when_written_and_read_again_are_the_same() {
        let all: Vec<u8> = (0..=255).collect();
        let text = encode(&all);
        assert!(text.starts_with("000102") && text.ends_with("fdfeff"));
        assert_eq!(decode(&text), Some(all));
        assert_eq!(decode(""), Some(Vec::new()));
    }

    #[test]
    fn text_when_it_is_not_hexadecimal_is_refused() {
        for text in ["0", "0g", "0A", " 0", "ä"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }
}
