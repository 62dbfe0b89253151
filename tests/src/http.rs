//! One HTTP/1.1 request with JSON both ways: what the VMM's control socket and the agent speak.

use std::io::{self, Read, Write};

use serde_json::Value;

/// Sends `method path` with `body` over `stream` and reads the whole answer: status and document. It ends where it says so itself,
/// for the connection may stay open, or else with the connection.
pub fn request(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> io::Result<(u16, Value)> {
    send(&mut stream, method, path, body)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&answer) {
        match stream.read(&mut buffer)? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    parse(&answer)
}

fn send(stream: &mut impl Write, method: &str, path: &str, body: Option<&Value>) -> io::Result<()> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}

/// Whether an answer has its head, and as much behind it as the head says.
fn is_whole(answer: &[u8]) -> bool {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|bytes| bytes == END) else {
        return false;
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    match length {
        Some(length) => answer.len() - end - END.len() >= length,
        // There is no document.
        None => head.starts_with("HTTP/1.1 204"),
    }
}

fn parse(answer: &[u8]) -> io::Result<(u16, Value)> {
    let text = std::str::from_utf8(answer).map_err(io::Error::other)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(bad)?;
    let body = match body.trim() {
        "" => Value::Null,
        body => serde_json::from_str(body)?,
    };
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_when_answered_with_a_body_then_it_is_a_document() {
        let (status, body) = parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{\"a\": 1}\n").expect("parse");
        assert_eq!((status, body["a"].as_u64()), (200, Some(1)));
        let (status, body) = parse(b"HTTP/1.1 204 No Content\r\n\r\n").expect("parse");
        assert_eq!((status, body), (204, Value::Null));
        assert!(parse(b"OK 3\n").is_err());
    }

    #[test]
    fn is_whole_when_what_the_head_tells_is_there_then_true() {
        assert!(is_whole(b"HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n"));
        let answer = b"HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}";
        assert!(is_whole(answer));
        assert!((0..answer.len()).all(|end| !is_whole(&answer[..end])));
        assert!(!is_whole(
            "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n\u{2026}"
                .as_bytes()
                .split_last()
                .expect("a byte")
                .1
        ));
        assert!(!is_whole(b"HTTP/1.1 200 \r\nConnection: close\r\n\r\n{}"));
    }
}
