//! Messages of D-Bus, as far as systemd is asked anything: written whole, and of those that come, what they answer
//! (D-Bus Specification, "Message Protocol").

/// Bytes before the length of the header's fields are known.
pub const FIXED: usize = 16;
/// The longest message that is taken. The specification allows 128 MiB; systemd's answers and signals are some hundred bytes.
const MAX_MESSAGE: usize = 1 << 20;

const METHOD_CALL: u8 = 1;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Numbers(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Text(_) => "s",
            Value::Flag(_) => "b",
            Value::Number(_) => "t",
            Value::Numbers(_) => "au",
        }
    }
}

/// A name and a value.
pub type Property = (&'static str, Value);

/// Bytes as D-Bus aligns them, counted from the first.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
    signature: String,
}

impl Body {
    pub fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        self.put_text(text);
        self
    }

    pub fn flag(mut self, flag: bool) -> Self {
        self.signature.push('b');
        self.put_u32(u32::from(flag));
        self
    }

    pub fn properties(mut self, properties: &[Property]) -> Self {
        self.signature.push_str("a(sv)");
        self.put_array(8, |body| {
            for (name, value) in properties {
                body.align(8);
                body.put_text(name);
                body.put_variant(value);
            }
        });
        self
    }

    /// No units besides the one that is started.
    pub fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        self.put_array(8, |_| {});
        self
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn put_u32(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn put_text(&mut self, text: &str) {
        self.put_u32(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn put_signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    fn put_variant(&mut self, value: &Value) {
        self.put_signature(value.signature());
        match value {
            Value::Text(text) => self.put_text(text),
            Value::Flag(flag) => self.put_u32(u32::from(*flag)),
            Value::Number(number) => {
                self.align(8);
                self.bytes.extend(number.to_le_bytes());
            }
            Value::Numbers(numbers) => self.put_array(4, |body| {
                for number in numbers {
                    body.put_u32(*number);
                }
            }),
        }
    }

    /// The length that comes before does not count what aligns the first element.
    fn put_array(&mut self, alignment: usize, put: impl FnOnce(&mut Self)) {
        self.put_u32(0);
        let length = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        put(self);
        let bytes = (self.bytes.len() - start) as u32;
        self.bytes[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
    }
}

/// A call of a method of systemd's manager.
pub fn call(serial: u32, method: &str, body: &Body) -> Vec<u8> {
    let mut message = Body::default();
    message.bytes.extend([b'l', METHOD_CALL, 0, 1]);
    message.put_u32(body.bytes.len() as u32);
    message.put_u32(serial);
    message.put_array(8, |header| {
        for (field, kind, text) in [
            (FIELD_PATH, "o", "/org/freedesktop/systemd1"),
            (FIELD_DESTINATION, "s", "org.freedesktop.systemd1"),
            (FIELD_INTERFACE, "s", "org.freedesktop.systemd1.Manager"),
            (FIELD_MEMBER, "s", method),
        ] {
            header.align(8);
            header.bytes.push(field);
            header.put_signature(kind);
            header.put_text(text);
        }
        header.align(8);
        header.bytes.push(FIELD_SIGNATURE);
        header.put_signature("g");
        header.put_signature(&body.signature);
    });
    message.align(8);
    message.bytes.extend(&body.bytes);
    message.bytes
}

/// What somebody says to us.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    /// Texts and paths of its body, in their order.
    pub texts: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// The call with this number was done.
    Return(u32),
    /// It was refused, under this name.
    Error(u32, String),
    /// Something happened.
    Signal(String),
    /// A call, or something newer.
    Other,
}

/// How many bytes a message has that begins with these; none if it is no message, or too long a one.
pub fn length(fixed: &[u8; FIXED]) -> Option<usize> {
    let number = |at: usize| u32_at(fixed, at).map(|number| number as usize);
    if fixed[0] != b'l' || fixed[3] != 1 {
        return None;
    }
    let header = FIXED
        .checked_add(number(12)?)?
        .checked_next_multiple_of(8)?;
    let whole = header.checked_add(number(4)?)?;
    (whole <= MAX_MESSAGE).then_some(whole)
}

/// Reads a message of that length; none if it is none.
pub fn read(message: &[u8]) -> Option<Message> {
    let fields = u32_at(message, 12)? as usize;
    let end = FIXED.checked_add(fields)?;
    let mut at = Cursor {
        bytes: message.get(..end)?,
        at: FIXED,
    };
    let (mut reply, mut member, mut error, mut signature) = (0, "", "", "");
    while at.at < end {
        at.align(8);
        let field = at.byte()?;
        match at.signature()? {
            "s" | "o" => {
                let text = at.text()?;
                match field {
                    FIELD_MEMBER => member = text,
                    FIELD_ERROR_NAME => error = text,
                    _ => {}
                }
            }
            "g" if field == FIELD_SIGNATURE => signature = at.signature()?,
            "u" => {
                let number = at.u32()?;
                if field == FIELD_REPLY_SERIAL {
                    reply = number;
                }
            }
            _ => return None,
        }
    }
    let kind = match message.get(1)? {
        2 => Kind::Return(reply),
        &ERROR => Kind::Error(reply, error.to_owned()),
        &SIGNAL => Kind::Signal(member.to_owned()),
        _ => Kind::Other,
    };
    let mut at = Cursor {
        bytes: message.get(end.next_multiple_of(8)..)?,
        at: 0,
    };
    let mut texts = Vec::new();
    for kind in signature.chars() {
        match kind {
            's' | 'o' => texts.push(at.text()?.to_owned()),
            'u' | 'b' | 'i' => drop(at.u32()?),
            // Nothing that we wait for has more.
            _ => break,
        }
    }
    Some(Message { kind, texts })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        u32_at(self.take(4)?, 0)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        self.ended(len)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let len = usize::from(self.byte()?);
        self.ended(len)
    }

    fn ended(&mut self, len: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(len)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal with three texts and a number, as systemd sends it when a job is done.
    fn signal() -> Vec<u8> {
        let mut body = Body::default();
        body.signature.push_str("uoss");
        body.put_u32(7);
        for text in ["/org/freedesktop/systemd1/job/7", "a.scope", "done"] {
            body.put_text(text);
        }
        let mut message = call(1, "JobRemoved", &body);
        message[1] = SIGNAL;
        message
    }

    fn fixed(message: &[u8]) -> [u8; FIXED] {
        message[..FIXED].try_into().expect("long enough")
    }

    #[test]
    fn message_when_written_then_read_again() {
        let message = signal();
        assert_eq!(length(&fixed(&message)), Some(message.len()));
        let read = read(&message).expect("a message");
        assert_eq!(read.kind, Kind::Signal("JobRemoved".to_owned()));
        assert_eq!(read.texts[1..], ["a.scope", "done"]);
    }

    #[test]
    fn arrays_when_their_elements_are_aligned_then_the_length_is_of_the_elements() {
        let body = Body::default().properties(&[("Delegate", Value::Flag(true))]);
        // The length, what aligns, the name, its end, the signature, what aligns, the value.
        assert_eq!(body.bytes.len(), 4 + 4 + (4 + 8 + 1) + (1 + 1 + 1) + 4);
        assert_eq!(u32_at(&body.bytes, 0), Some(13 + 3 + 4));
        let empty = Body::default().no_units();
        assert_eq!(empty.bytes, [0; 8]);
        let body = Body::default().properties(&[("PIDs", Value::Numbers(vec![9, 10]))]);
        assert_eq!(
            body.bytes[body.bytes.len() - 12..],
            [8, 0, 0, 0, 9, 0, 0, 0, 10, 0, 0, 0]
        );
    }

    #[test]
    fn message_when_cut_or_changed_anywhere_then_another_or_none_and_no_panic() {
        let whole = signal();
        for len in 0..whole.len() {
            assert_eq!(read(&whole[..len]), None, "{len}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = (length(&fixed(&changed)), read(&changed));
            }
        }
        let mut long = whole;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(length(&fixed(&long)), None);
    }
}
