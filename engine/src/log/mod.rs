//! A container's log: lines of JSON as Docker's `json-file` has them, `log`, `stream` and `time`.
//!
//! A line of output is a line of the log; one longer than [`MAX_LINE`] is several, of which only the
//! last ends in a newline. The log is bounded: at [`MAX_FILE`] bytes it is put aside as
//! `log.ndjson.1`, in place of the one that was there.

mod read;
mod write;

pub use read::{Reader, Select};
pub use write::Writer;

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The longest part of a line that is one entry, in bytes.
pub const MAX_LINE: usize = 16 << 10;
/// How large a log's file grows, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// What was written, with its newline. What is not UTF-8 was replaced.
    pub log: Cow<'a, str>,
    /// Where to.
    pub stream: Stream,
    /// When.
    pub time: Timestamp,
}
