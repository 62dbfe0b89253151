//! What a guest that goes on from a snapshot is told: that it is another one now, and how late it is.

use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_protocol::Restored;
use serde::Deserialize;

use crate::error::{Error, cannot};
use crate::http::{self, Answer};
use crate::names;

/// How long an answer of the VMM may take, which has nothing to wait for.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);
/// Random bytes for a clone: more than its kernel's generator takes at a time.
const ENTROPY: usize = 64;

#[derive(Deserialize)]
struct Vm {
    restored: Origin,
}

/// What the VMM says of where a restored machine comes from.
#[derive(Debug, Deserialize)]
pub struct Origin {
    /// How long it has slept, in nanoseconds.
    pub asleep_ns: u64,
    /// Whether the VMM knew what it would need of its memory.
    pub prefetched: bool,
}

impl Origin {
    /// Reads the VMM's answer to `GET /v1/vm`.
    pub fn of(answer: &Answer) -> Result<Self, Error> {
        let vm: Vm = serde_json::from_slice(&answer.body).map_err(cannot("understand the VMM"))?;
        Ok(vm.restored)
    }

    /// Has the VMM behind the socket `control` write down what the machine has needed until now, if it is the first
    /// that goes on from there.
    pub fn keep_working_set(&self, control: &Path) {
        if !self.prefetched {
            // Where that does not work, the next one is as slow as this one was.
            let _ = http::ask(control, "PUT", "/v1/working-set", "", CONTROL_LIMIT);
        }
    }
}

/// The body of `PUT /v1/restored`, with random numbers that no other guest gets. There are new devices in
/// `windows`.
pub fn message(asleep_ns: u64, windows: Vec<u32>) -> Result<String, Error> {
    let mut entropy = [0; ENTROPY];
    names::random(&mut entropy).map_err(cannot("get random numbers"))?;
    let restored = Restored {
        asleep_ns,
        entropy: STANDARD.encode(entropy).into(),
        windows,
    };
    serde_json::to_string(&restored)
        .map_err(io::Error::from)
        .map_err(cannot("ask the agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_when_it_was_not_restored_has_no_sleep_to_tell_of() {
        let answer = |body: &str| Answer {
            status: 200,
            body: body.into(),
        };
        let vm = r#"{"state": "running", "restored": {"asleep_ns": 7, "prefetched": true}}"#;
        let origin = Origin::of(&answer(vm)).expect("it was restored");
        assert_eq!((origin.asleep_ns, origin.prefetched), (7, true));
        Origin::of(&answer(r#"{"state": "running"}"#)).expect_err("it has booted");
    }

    #[test]
    fn message_has_other_random_numbers_each_time() {
        let message = || message(1, Vec::new()).expect("message");
        assert_ne!(message(), message());
    }
}
