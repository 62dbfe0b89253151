//! The part of a request's target behind the question mark.

/// A query, `a=1&b=2`.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a>(pub &'a str);

impl Query<'_> {
    /// The value of the first `name`, without its escapes; empty if it has none.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let mut pairs = self
            .0
            .split('&')
            .map(|p| p.split_once('=').unwrap_or((p, "")));
        pairs
            .find(|(n, _)| *n == name)
            .map(|(_, value)| decode(value))
    }

    /// A switch: `?name`, `=true`, `=1` or `=false`, `=0`; `default` if it is absent. An error
    /// names it.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.get(name).as_deref() {
            None => Ok(default),
            Some(b"" | b"1" | b"true") => Ok(true),
            Some(b"0" | b"false") => Ok(false),
            Some(_) => Err(format!("The query's {name} is true or false.")),
        }
    }
}

/// Undoes percent-encoding (RFC 3986 §2.1). What is no escape stays as it is.
fn decode(value: &str) -> Vec<u8> {
    let hex = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                decoded.push(first);
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_when_escaped_then_as_it_was_meant() {
        let query = Query("path=/a%20b%26c%3D%25%C3%A9&force=%zz%4&path=2&flag");
        assert_eq!(query.get("path").as_deref(), Some("/a b&c=%é".as_bytes()));
        assert_eq!(query.get("force").as_deref(), Some(&b"%zz%4"[..]));
        assert_eq!(query.get("flag").as_deref(), Some(&b""[..]));
        assert_eq!(query.get("pat"), None);
    }

    #[test]
    fn switch_when_read_then_true_false_or_refused() {
        let query = Query("a&b=1&c=true&d=false&e=0&f=yes");
        let flags: Vec<_> = ["a", "b", "c", "d", "e", "z"]
            .map(|n| query.flag(n, true).expect(n))
            .into();
        assert_eq!(flags, [true, true, true, false, false, true]);
        assert!(query.flag("f", true).is_err());
    }

    #[test]
    fn value_when_encoded_by_the_protocol_then_decoded_here() {
        let path: String = (1..300).filter_map(char::from_u32).collect();
        let encoded = bulkhead_protocol::path::encode(&path);
        assert_eq!(decode(&encoded), path.as_bytes());
    }
}
