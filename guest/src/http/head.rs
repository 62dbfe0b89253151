//! The head of a request: its line and its headers.

use bulkhead_protocol::frame;

use super::Refusal;

/// The longest request line and headers, in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// The most headers a request may have.
pub const MAX_HEADERS: usize = 64;

/// A request without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// As sent: methods are case-sensitive (RFC 9110 §9.1).
    pub method: String,
    /// The path of the target, without the query.
    pub path: String,
    /// The query, without its question mark.
    pub query: String,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client wants to send more requests on this connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub wants_continue: bool,
    /// The client wants to go on with [frames](bulkhead_protocol::frame).
    pub wants_upgrade: bool,
}

/// How a request's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By the body's length, 0 if nothing is said.
    Length(u64),
    /// By its last chunk.
    Chunked,
}

/// Parses the head at the start of `input`, and says how long it is. `None` if there is more to come.
pub fn parse_head(input: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    // Bounded before it is parsed, so that neither a long head nor one that trickles in costs more.
    let visible = &input[..input.len().min(MAX_HEAD)];
    let length = match head.parse(visible) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if visible.len() == MAX_HEAD => {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Malformed),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(Refusal::Malformed);
    };
    let fields = Fields::of(head.headers, version)?;
    let (path, query) = split(target)?;
    let head = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        framing: fields.framing,
        keep_alive: fields.keep_alive,
        wants_continue: fields.wants_continue,
        wants_upgrade: fields.wants_upgrade,
    };
    Ok(Some((head, length)))
}

/// What the headers say about where the request ends and what comes after it.
struct Fields {
    framing: Framing,
    keep_alive: bool,
    wants_continue: bool,
    wants_upgrade: bool,
}

impl Fields {
    fn of(headers: &[httparse::Header<'_>], version: u8) -> Result<Self, Refusal> {
        let mut length = None;
        let mut chunked = false;
        let mut fields = Fields {
            framing: Framing::Length(0),
            keep_alive: version >= 1,
            wants_continue: false,
            wants_upgrade: false,
        };
        for header in headers {
            let name = header.name;
            if name.eq_ignore_ascii_case("content-length") {
                let this = content_length(header.value)?;
                // Two that disagree are how requests get smuggled (RFC 9112 §6.3).
                if length.is_some_and(|other| other != this) {
                    return Err(Refusal::Malformed);
                }
                length = Some(this);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::TransferEncoding);
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                if has_token(header.value, "close") {
                    fields.keep_alive = false;
                } else if has_token(header.value, "keep-alive") {
                    fields.keep_alive = true;
                }
            } else if name.eq_ignore_ascii_case("upgrade") {
                fields.wants_upgrade |= has_token(header.value, frame::UPGRADE);
            } else if name.eq_ignore_ascii_case("expect") && version >= 1 {
                fields.wants_continue = has_token(header.value, "100-continue");
            }
        }
        fields.framing = match (length, chunked) {
            (length, false) => Framing::Length(length.unwrap_or(0)),
            (None, true) if version >= 1 => Framing::Chunked,
            // Both, or chunks in HTTP/1.0: whoever wrote this and whoever reads it may differ.
            (_, true) => return Err(Refusal::Malformed),
        };
        Ok(fields)
    }
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed);
    }
    Ok(value.iter().fold(0u64, |n, digit| {
        n.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    }))
}

fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|&b| b == b',')
        .any(|t| t.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The path and the query of a request target in origin form (`/a?b`) or absolute form
/// (`http://host/a?b`).
fn split(target: &str) -> Result<(&str, &str), Refusal> {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // `*` is the one other form that means anything to a server, and it means no path of ours.
    if path.starts_with('/') || path == "*" {
        Ok((path, query))
    } else {
        Err(Refusal::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(input: &str) -> (Head, usize) {
        match parse_head(input.as_bytes()) {
            Ok(Some(parsed)) => parsed,
            other => panic!("{input:?}: {other:?}"),
        }
    }

    fn refusal(input: &str) -> Refusal {
        parse_head(input.as_bytes()).expect_err(input)
    }

    #[test]
    fn head_when_followed_by_more_then_ends_where_it_ends() {
        let head = "POST /v1/shutdown?x=1&y HTTP/1.1\r\nContent-Length: 2\r\n\r\n";
        let (parsed, length) = complete(&format!("{head}{{}}GET / HTTP/1.1\r\n\r\n"));
        assert_eq!(length, head.len());
        assert_eq!(
            parsed,
            Head {
                method: "POST".into(),
                path: "/v1/shutdown".into(),
                query: "x=1&y".into(),
                framing: Framing::Length(2),
                keep_alive: true,
                wants_continue: false,
                wants_upgrade: false,
            }
        );
    }

    #[test]
    fn every_prefix_of_a_head_when_parsed_then_partial() {
        let whole = "POST /v1/shutdown HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";
        for end in 0..whole.len() {
            assert_eq!(parse_head(&whole.as_bytes()[..end]), Ok(None), "{end}");
        }
        assert_eq!(complete(whole).1, whole.len());
    }

    #[test]
    fn upgrade_when_it_is_to_ours_then_wanted() {
        let wants = |headers: &str| {
            let request = format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n");
            complete(&request).0.wants_upgrade
        };
        assert!(wants("Connection: Upgrade\r\nUpgrade: bulkhead-stream"));
        assert!(wants("Upgrade: tcp, Bulkhead-Stream"));
        assert!(!wants("Upgrade: websocket"));
    }

    #[test]
    fn keep_alive_when_version_and_header_differ_then_header_wins() {
        for (request, keep) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", true),
        ] {
            assert_eq!(complete(request).0.keep_alive, keep, "{request:?}");
        }
    }

    #[test]
    fn target_when_absolute_then_its_path_counts() {
        let target = |t: &str| {
            complete(&format!("GET {t} HTTP/1.1\r\n\r\n"))
                .0
                .path
                .to_owned()
        };
        assert_eq!(target("http://guest/v1/info?x"), "/v1/info");
        assert_eq!(target("http://guest"), "/");
        assert_eq!(target("*"), "*");
        assert_eq!(refusal("CONNECT a:1 HTTP/1.1\r\n\r\n"), Refusal::Malformed);
    }

    #[test]
    fn framing_when_it_contradicts_itself_then_refused() {
        let with = |headers: &str| refusal(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n"));
        for bad in [
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: -1",
            "Content-Length: +1",
            "Content-Length: 1, 1",
            "Content-Length: 0x10",
            "Content-Length:",
        ] {
            assert_eq!(with(bad), Refusal::Malformed, "{bad}");
        }
        let both = "Content-Length: 1\r\nTransfer-Encoding: chunked";
        assert_eq!(with(both), Refusal::Malformed);
        for coding in [
            "gzip, chunked",
            "chunked\r\nTransfer-Encoding: chunked",
            "identity",
        ] {
            let header = format!("Transfer-Encoding: {coding}");
            assert_eq!(with(&header), Refusal::TransferEncoding);
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refusal(old), Refusal::Malformed);
    }

    #[test]
    fn body_when_its_length_is_beyond_everything_then_the_most_there_is() {
        for length in ["18446744073709551616", &"9".repeat(400)] {
            let request = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(complete(&request).0.framing, Framing::Length(u64::MAX));
        }
    }

    #[test]
    fn head_when_longer_than_allowed_then_refused() {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD));
        assert_eq!(refusal(&long), Refusal::HeadTooLarge);
        let endless = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(MAX_HEAD));
        assert_eq!(refusal(&endless), Refusal::HeadTooLarge);
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "A: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(refusal(&many), Refusal::HeadTooLarge);
        let enough = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS));
        complete(&enough);
    }

    #[test]
    fn bytes_when_not_http_then_refused() {
        for bad in [
            "\0\0\0\0",
            "GET\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "\x16\x03\x01\x02\x00",
        ] {
            assert_eq!(refusal(bad), Refusal::Malformed, "{bad:?}");
        }
        assert_eq!(refusal("GET / HTTP/2.0\r\n\r\n"), Refusal::Version);
    }

    proptest! {
        #[test]
        fn any_bytes_when_parsed_then_no_panic_and_within_bounds(
            input in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(Some((_, n))) = parse_head(&input) {
                prop_assert!(n <= input.len());
            }
        }

        #[test]
        fn near_requests_when_parsed_then_no_panic(
            input in "(GET|POST|X) (/|http://|[*a]){1,3} HTTP/[0-3].[0-3]\r\n((Content-Length|Connection|Expect|[A-z ]{0,4}):[ 0-9a-z,]{0,30}\r?\n){0,4}\r\n.{0,40}",
        ) {
            let _ = parse_head(input.as_bytes());
        }
    }
}
