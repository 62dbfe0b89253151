//! What a request that cannot be served is answered.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The body of every answer whose status is 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError<'a> {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one sentence.
    pub message: Cow<'a, str>,
}

/// What kind of failure an [`ApiError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not HTTP, or its body is not the JSON that the path takes (400).
    BadRequest,
    /// No such path (404).
    NotFound,
    /// The path does not take this method (405).
    MethodNotAllowed,
    /// What the thing is at the moment does not allow it: an id that is taken, a program that has
    /// ended (409).
    Conflict,
    /// The body is larger than any request needs (413).
    PayloadTooLarge,
    /// The configuration is refused; the message names the field (422).
    Unprocessable,
    /// The request line and headers are longer than any request needs (431).
    HeadersTooLarge,
    /// A part of HTTP that this server does not speak (501, 505).
    NotSupported,
    /// The agent could not do it (500).
    Internal,
    /// The agent has its hands full: too many streams or copies at a time (503).
    Unavailable,
    /// A code of a later agent.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_code_of_a_later_agent_when_read_then_unknown() {
        let e: ApiError<'static> =
            serde_json::from_str(r#"{"code":"on_fire","message":"Hot."}"#).expect("error");
        assert_eq!(e.code, ErrorCode::Unknown);
    }
}
