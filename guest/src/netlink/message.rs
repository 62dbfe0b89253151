//! The messages of netlink(7), built and taken apart. Numbers are in the machine's own order.

use std::io;

/// The end of a dump.
pub const DONE: u16 = 3;
/// A failure, or, with the number 0, none.
pub const ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
pub const REQUEST_ACK: u16 = 0x1 | 0x4;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
pub const DUMP: u16 = 0x1 | 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`.
pub const CREATE: u16 = 0x400 | 0x200;

const HEADER: usize = 16;

/// A message to the kernel.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
    kind: u16,
    flags: u16,
}

impl Request {
    /// A message of a kind, with the structure that the kind begins with.
    pub fn new(kind: u16, structure: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(structure);
        Request {
            bytes,
            kind,
            flags: 0,
        }
    }

    /// Makes what it names, which must not be there.
    pub fn creating(mut self) -> Self {
        self.flags |= CREATE;
        self
    }

    /// Adds an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // What is added here are addresses, numbers and names: far less than 64 KiB.
        let length = (4 + value.len()) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// The message as it is sent.
    pub fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&(self.flags | flags).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is.
    pub kind: u16,
    /// What it answers.
    pub sequence: u32,
    /// What follows its header.
    pub content: &'a [u8],
}

impl Message<'_> {
    /// What an [`ERROR`] says.
    pub fn error(&self) -> io::Result<()> {
        match u32_at(self.content, 0).map(|n| n as i32) {
            Some(0) => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The messages of a datagram.
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Takes a datagram apart.
    pub fn of(datagram: &'a [u8]) -> Self {
        Messages(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32_at(self.0, 0)? as usize;
        let content = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            sequence: u32_at(self.0, 8)?,
            content,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// The attributes behind a message's structure.
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those behind the first `structure` bytes.
    pub fn behind(content: &'a [u8], structure: usize) -> Self {
        Attributes(content.get(structure..).unwrap_or(&[]))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_at(self.0, 0)?);
        // Two bits of a type are flags.
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// A number in a structure.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number in a structure.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A text, which the kernel ends with a NUL.
pub fn text(value: &[u8]) -> String {
    let text = value.split(|&b| b == 0).next().unwrap_or(value);
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_when_taken_apart_then_what_was_put_in() {
        let request = Request::new(16, &[7; 8]).attribute(3, b"eth0\0");
        let bytes = request.attribute(4, &1500u32.to_ne_bytes()).finish(DUMP, 9);
        let messages: Vec<Message<'_>> = Messages::of(&bytes).collect();
        assert_eq!(
            (messages.len(), messages[0].kind, messages[0].sequence),
            (1, 16, 9)
        );
        let attributes: Vec<_> = Attributes::behind(messages[0].content, 8).collect();
        assert_eq!(
            attributes,
            [(3, &b"eth0\0"[..]), (4, &1500u32.to_ne_bytes()[..])]
        );
        assert_eq!(text(attributes[0].1), "eth0");
    }

    proptest! {
        #[test]
        fn any_bytes_when_taken_apart_then_no_panic_and_an_end(
            bytes in proptest::collection::vec(0u8..40, 0..200),
        ) {
            for message in Messages::of(&bytes) {
                let _ = message.error();
                prop_assert!(Attributes::behind(message.content, 8).count() <= 50);
            }
        }
    }
}
