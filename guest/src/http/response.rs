//! Answers.

use std::io::Write;

use bulkhead_protocol::{ApiError, EXEC_ID_HEADER, ErrorCode, frame};
use serde::Serialize;

/// Why bytes are no request this server answers. The connection ends with it, because nobody knows
/// where the next request would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP, or contradicts itself.
    Malformed,
    /// More than [`super::MAX_HEAD`] bytes or [`super::MAX_HEADERS`] headers.
    HeadTooLarge,
    /// A body of more than so many bytes.
    BodyTooLarge(usize),
    /// A transfer coding other than `chunked`.
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
            Refusal::BodyTooLarge(limit) => {
                let message = format!("The body may be {} KiB long.", limit >> 10);
                return Response::error(413, ErrorCode::PayloadTooLarge, &message);
            }
            Refusal::TransferEncoding => (
                501,
                ErrorCode::NotSupported,
                "Bodies come with Content-Length or chunked here.",
            ),
            Refusal::Version => (505, ErrorCode::NotSupported, "HTTP/1.0 and 1.1 only."),
        };
        Response::error(status, code, message)
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

    /// An answer that says nothing but that it is done.
    pub fn done() -> Self {
        Response {
            status: 200,
            allow: None,
            last: false,
            body: b"{}\n".to_vec(),
        }
    }

    /// An answer that says what went wrong.
    pub fn error(status: u16, code: ErrorCode, message: &str) -> Self {
        let message = message.into();
        Response::json(status, &ApiError { code, message })
    }

    /// 404.
    pub fn not_found(message: &str) -> Self {
        Response::error(404, ErrorCode::NotFound, message)
    }

    /// 400.
    pub fn bad_request(message: &str) -> Self {
        Response::error(400, ErrorCode::BadRequest, message)
    }

    /// 409.
    pub fn conflict(message: &str) -> Self {
        Response::error(409, ErrorCode::Conflict, message)
    }

    /// 422.
    pub fn unprocessable(message: &str) -> Self {
        Response::error(422, ErrorCode::Unprocessable, message)
    }

    /// 500.
    pub fn internal(message: &str) -> Self {
        Response::error(500, ErrorCode::Internal, message)
    }

    /// 503.
    pub fn unavailable(message: &str) -> Self {
        Response::error(503, ErrorCode::Unavailable, message)
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

/// The head of an answer whose body comes in chunks, until the connection's end.
pub fn start_chunked(content_type: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n"
    )
    .into_bytes()
}

/// The answer after which the connection carries frames, with the exec's id if there is one.
pub fn start_upgraded(exec_id: Option<u64>) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {}\r\n",
        frame::UPGRADE
    );
    if let Some(id) = exec_id {
        head += &format!("{EXEC_ID_HEADER}: {id}\r\n");
    }
    head += "\r\n";
    head.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
