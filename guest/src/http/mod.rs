//! HTTP/1.1 as far as the API needs it (RFC 9112). No I/O here: bytes in, requests and bodies out, and
//! answers into bytes.
//!
//! A missing `Host` is forgiven: there is one host here, and `printf 'GET /v1/info HTTP/1.1\r\n\r\n'`
//! is a fair client.

mod body;
mod chunks;
mod head;
mod query;
mod response;

pub use body::BodyDecoder;
pub use chunks::{Chunks, LAST_CHUNK, chunk_size_line};
pub use head::{Framing, Head, MAX_HEAD, MAX_HEADERS, parse_head};
pub use query::Query;
pub use response::{Refusal, Response, start_chunked, start_upgraded};
