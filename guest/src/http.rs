//! HTTP/1.1 as far as the API needs it (RFC 9112): one request out of a buffer, one response into one.
//!
//! No I/O here. Bodies come with `Content-Length` only; nothing the API takes is streamed. A missing
//! `Host` is forgiven: there is one host here, and `printf 'GET /v1/info HTTP/1.1\r\n\r\n'` is a
//! fair client.

use std::io::Write;

use bulkhead_protocol::{ApiError, ErrorCode};
use serde::Serialize;

/// The longest request line and headers, in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// The most headers a request may have.
pub const MAX_HEADERS: usize = 64;
/// The longest body, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// A request, whole, borrowed from the bytes it came in.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// As sent: methods are case-sensitive (RFC 9110 §9.1).
    pub method: &'a str,
    /// The path of the target, without the query.
    pub path: &'a str,
    /// What `Content-Length` counted.
    pub body: &'a [u8],
    /// Whether the client wants to send more requests on this connection.
    pub keep_alive: bool,
}

/// What the bytes received so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The beginning of a request.
    Partial {
        /// The head is complete and the client waits for `100 Continue` before it sends the body.
        wants_continue: bool,
    },
    /// A request, and how many bytes of the input it takes up.
    Complete(Request<'a>, usize),
}

/// Why bytes are no request this server answers. The connection ends with it, because nobody knows
/// where the next request would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP, or contradicts itself.
    Malformed,
    /// More than [`MAX_HEAD`] bytes or [`MAX_HEADERS`] headers.
    HeadTooLarge,
    /// More than [`MAX_BODY`] bytes.
    BodyTooLarge,
    /// A transfer coding.
    TransferEncoding,
    /// Not HTTP/1.x.
    Version,
}

impl Refusal {
    /// The answer that tells the client.
    pub fn response(self) -> Response {
        let (status, code, message) = match self {
            Refusal::Malformed => (400, ErrorCode::BadRequest, "This is not an HTTP request."),
            Refusal::HeadTooLarge => (
                431,
                ErrorCode::HeadersTooLarge,
                "The request line and headers may be 8 KiB and 64 headers long.",
            ),
            Refusal::BodyTooLarge => (
                413,
                ErrorCode::PayloadTooLarge,
                "The body may be 64 KiB long.",
            ),
            Refusal::TransferEncoding => (
                501,
                ErrorCode::NotSupported,
                "Bodies come with Content-Length here, not with Transfer-Encoding.",
            ),
            Refusal::Version => (505, ErrorCode::NotSupported, "HTTP/1.0 and 1.1 only."),
        };
        Response::error(status, code, message)
    }
}

/// Parses the request at the start of `input`.
pub fn parse(input: &[u8]) -> Result<Parsed<'_>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    // Bounded before it is parsed, so that neither a long head nor one that trickles in costs more.
    let visible = &input[..input.len().min(MAX_HEAD)];
    let head_length = match head.parse(visible) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if visible.len() == MAX_HEAD => {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(httparse::Status::Partial) => {
            return Ok(Parsed::Partial {
                wants_continue: false,
            });
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Malformed),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(Refusal::Malformed);
    };
    let framing = Framing::of(head.headers, version)?;
    let rest = &input[head_length..];
    match rest.get(..framing.body_length) {
        None => Ok(Parsed::Partial {
            wants_continue: framing.wants_continue,
        }),
        Some(body) => Ok(Parsed::Complete(
            Request {
                method,
                path: path_of(target)?,
                body,
                keep_alive: framing.keep_alive,
            },
            head_length + framing.body_length,
        )),
    }
}

/// What the headers say about where the request ends and what comes after it.
struct Framing {
    body_length: usize,
    keep_alive: bool,
    wants_continue: bool,
}

impl Framing {
    fn of(headers: &[httparse::Header<'_>], version: u8) -> Result<Self, Refusal> {
        let mut length = None;
        let mut keep_alive = version >= 1;
        let mut wants_continue = false;
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
                return Err(Refusal::TransferEncoding);
            } else if name.eq_ignore_ascii_case("connection") {
                if has_token(header.value, "close") {
                    keep_alive = false;
                } else if has_token(header.value, "keep-alive") {
                    keep_alive = true;
                }
            } else if name.eq_ignore_ascii_case("expect") && version >= 1 {
                wants_continue = has_token(header.value, "100-continue");
            }
        }
        let body_length = length.unwrap_or(0);
        if body_length > MAX_BODY {
            return Err(Refusal::BodyTooLarge);
        }
        Ok(Framing {
            body_length,
            keep_alive,
            wants_continue,
        })
    }
}

fn content_length(value: &[u8]) -> Result<usize, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed);
    }
    Ok(value.iter().fold(0usize, |n, digit| {
        n.saturating_mul(10)
            .saturating_add(usize::from(digit - b'0'))
    }))
}

fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|&b| b == b',')
        .any(|t| t.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The path of a request target in origin form (`/a?b`) or absolute form (`http://host/a?b`).
fn path_of(target: &str) -> Result<&str, Refusal> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let path = path.split('?').next().unwrap_or(path);
    // `*` is the one other form that means anything to a server, and it means no path of ours.
    if path.starts_with('/') || path == "*" {
        Ok(path)
    } else {
        Err(Refusal::Malformed)
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The methods the path takes, for a 405.
    pub allow: Option<&'static str>,
    /// The connection ends with this answer, whatever the client would like.
    pub last: bool,
    /// JSON, with a newline at its end for the sake of terminals.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer with `value` as its body.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Response {
                    status,
                    allow: None,
                    last: false,
                    body,
                }
            }
            // The API's types are plain structs, which serialise. An empty 500 is the honest rest.
            Err(_) => Response {
                status: 500,
                allow: None,
                last: false,
                body: Vec::new(),
            },
        }
    }

    /// An answer that says what went wrong.
    pub fn error(status: u16, code: ErrorCode, message: &str) -> Self {
        let message = message.into();
        Response::json(status, &ApiError { code, message })
    }

    /// Appends the answer as it goes over the wire. `with_body` is false for an answer to `HEAD`,
    /// which has the length of what it does not carry.
    pub fn write_to(&self, output: &mut Vec<u8>, with_body: bool, keep_alive: bool) {
        // Writing to a Vec does not fail.
        let _ = write!(
            output,
            "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            self.status,
            reason(self.status),
            self.body.len()
        );
        if let Some(methods) = self.allow {
            let _ = write!(output, "Allow: {methods}\r\n");
        }
        // Said either way: HTTP/1.0 closes unless told otherwise, 1.1 stays open.
        output.extend_from_slice(if keep_alive {
            b"Connection: keep-alive\r\n\r\n"
        } else {
            b"Connection: close\r\n\r\n"
        });
        if with_body {
            output.extend_from_slice(&self.body);
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(input: &str) -> (Request<'_>, usize) {
        match parse(input.as_bytes()) {
            Ok(Parsed::Complete(request, n)) => (request, n),
            other => panic!("{input:?}: {other:?}"),
        }
    }

    fn refusal(input: &str) -> Refusal {
        parse(input.as_bytes()).expect_err(input)
    }

    #[test]
    fn request_when_followed_by_another_then_ends_where_it_ends() {
        let one = "POST /v1/shutdown?x=1 HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
        let both = format!("{one}GET / HTTP/1.1\r\n\r\n");
        let (request, length) = complete(&both);
        assert_eq!(length, one.len());
        assert_eq!(
            request,
            Request {
                method: "POST",
                path: "/v1/shutdown",
                body: b"{}",
                keep_alive: true
            }
        );
    }

    #[test]
    fn every_prefix_of_a_request_when_parsed_then_partial() {
        let whole = "POST /v1/shutdown HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{   }";
        for end in 0..whole.len() {
            let parsed = parse(&whole.as_bytes()[..end]);
            assert!(matches!(parsed, Ok(Parsed::Partial { .. })), "{end}");
        }
        assert_eq!(complete(whole).1, whole.len());
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
        let chunked = "Content-Length: 1\r\nTransfer-Encoding: chunked";
        assert_eq!(with(chunked), Refusal::TransferEncoding);
    }

    #[test]
    fn body_when_longer_than_allowed_then_refused_before_it_comes() {
        for length in ["65537", "18446744073709551616", &"9".repeat(400)] {
            let request = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(refusal(&request), Refusal::BodyTooLarge);
        }
        let request = "POST / HTTP/1.1\r\nContent-Length: 65536\r\n\r\n";
        assert!(matches!(
            parse(request.as_bytes()),
            Ok(Parsed::Partial { .. })
        ));
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

    #[test]
    fn response_to_head_when_written_then_has_the_length_but_no_body() {
        let response = Response::json(200, &[1, 2]);
        let (mut head, mut get) = (Vec::new(), Vec::new());
        response.write_to(&mut head, false, true);
        response.write_to(&mut get, true, true);
        assert!(head.ends_with(b"\r\n\r\n"));
        assert_eq!(get, [&head[..], b"[1,2]\n"].concat());
        assert!(String::from_utf8_lossy(&head).contains("Content-Length: 6\r\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_when_parsed_then_no_panic_and_within_bounds(
            input in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(Parsed::Complete(request, n)) = parse(&input) {
                prop_assert!(n <= input.len() && request.body.len() <= n);
            }
        }

        #[test]
        fn near_requests_when_parsed_then_no_panic(
            input in "(GET|POST|X) (/|http://|[*a]){1,3} HTTP/[0-3].[0-3]\r\n((Content-Length|Connection|Expect|[A-z ]{0,4}):[ 0-9a-z,]{0,30}\r?\n){0,4}\r\n.{0,40}",
        ) {
            let _ = parse(input.as_bytes());
        }
    }
}
