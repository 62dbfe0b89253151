//! As much of HTTP/1.1 (RFC 9112) as a control socket needs: requests with a small body, parsed as
//! their bytes come in, and replies in JSON.

/// The most bytes a request may have, headers and body.
pub const MAX_REQUEST: usize = 64 << 10;
const MAX_HEADERS: usize = 32;

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`...
    pub method: String,
    /// Path, without what follows a `?`.
    pub path: String,
    /// The body, empty if there is none.
    pub body: Vec<u8>,
    /// Whether the client wants the connection to stay open.
    pub keep_alive: bool,
}

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More must come.
    Partial,
    /// A request, and how many bytes it took.
    Request(Request, usize),
    /// No request can become of it: a status and a sentence. The connection should then be closed.
    Bad(u16, &'static str),
}

/// Looks for one request at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Bad(431, "the request's headers are too large");
        }
        Err(_) => return Parsed::Bad(400, "the request is not HTTP/1.1"),
    };

    let mut length = 0usize;
    let mut keep_alive = request.version == Some(1);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(header.value).ok();
            match value.and_then(|v| v.trim().parse().ok()) {
                Some(n) => length = n,
                None => return Parsed::Bad(400, "Content-Length is not a number"),
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Parsed::Bad(501, "send a Content-Length; chunked bodies are not taken");
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = header.value.eq_ignore_ascii_case(b"keep-alive")
                || keep_alive && !header.value.eq_ignore_ascii_case(b"close");
        }
    }
    if length > MAX_REQUEST - head.min(MAX_REQUEST) {
        return Parsed::Bad(413, "the request's body is too large");
    }
    let Some(body) = bytes.get(head..head + length) else {
        return Parsed::Partial;
    };
    let target = request.path.unwrap_or("/");
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    Parsed::Request(
        Request {
            method: request.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            body: body.to_vec(),
            keep_alive,
        },
        head + length,
    )
}

/// A reply: a status and a JSON body, or none with 204.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Option<serde_json::Value>,
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: serde_json::Value) -> Self {
        Reply {
            status: 200,
            body: Some(body),
        }
    }

    /// 204: done, nothing to say.
    pub fn done() -> Self {
        Reply {
            status: 204,
            body: None,
        }
    }

    /// An error, and a sentence that says what to do.
    pub fn error(status: u16, message: impl Into<String>) -> Self {
        // As the agent's API has it.
        let code = match status {
            404 => "not_found",
            405 => "method_not_allowed",
            409 => "conflict",
            413 => "payload_too_large",
            _ => "bad_request",
        };
        Reply {
            status,
            body: Some(serde_json::json!({ "code": code, "message": message.into() })),
        }
    }

    /// The reply's bytes.
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let body = self.body.as_ref().map(|b| b.to_string() + "\n");
        let body = body.as_deref().unwrap_or_default();
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        if self.status != 204 {
            head += "Content-Type: application/json\r\n";
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        if !keep_alive {
            head += "Connection: close\r\n";
        }
        head += "\r\n";
        head += body;
        head.into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        _ => "Bad Request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_when_it_comes_byte_by_byte_is_partial_until_whole() {
        let bytes = b"PUT /v1/balloon?x=1 HTTP/1.1\r\nContent-Length: 4\r\n\r\n{  }GET";
        let whole = bytes.len() - 3;
        for n in 0..whole {
            assert_eq!(parse(&bytes[..n]), Parsed::Partial, "{n}");
        }
        let Parsed::Request(request, used) = parse(bytes) else {
            panic!("not a request");
        };
        assert_eq!(used, whole);
        assert_eq!((&*request.method, &*request.path), ("PUT", "/v1/balloon"));
        assert_eq!(request.body, b"{  }");
        assert!(request.keep_alive);
    }

    #[test]
    fn request_when_it_cannot_be_one_is_bad() {
        let cases: &[(&[u8], u16)] = &[
            (b"\x00\x01\x02\x03 / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (
                b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                400,
            ),
            (b"GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", 413),
            (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        ];
        for (bytes, status) in cases {
            assert!(matches!(parse(bytes), Parsed::Bad(s, _) if s == *status));
        }
        let long = [b"GET /".as_slice(), &vec![b'a'; MAX_REQUEST]].concat();
        assert!(matches!(parse(&long), Parsed::Bad(431, _)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(40));
        assert!(matches!(parse(many.as_bytes()), Parsed::Bad(431, _)));
    }

    #[test]
    fn connection_when_asked_to_close_is_not_kept() {
        for (text, keep) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            let Parsed::Request(request, _) = parse(text.as_bytes()) else {
                panic!("not a request");
            };
            assert_eq!(request.keep_alive, keep, "{text}");
        }
    }
}
