//! What a guest that goes on from a snapshot is told: that it is another one now, and how late it is.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_protocol::Restored;
use serde::Deserialize;

use crate::error::{Error, cannot};
use crate::http::Answer;
use crate::names;

/// Random bytes for a clone: more than its kernel's generator takes at a time.
const ENTROPY: usize = 64;

/// What the VMM says of a restored machine.
#[derive(Deserialize)]
struct Vm {
    restored: Asleep,
}

#[derive(Deserialize)]
struct Asleep {
    asleep_ns: u64,
}

/// How long the machine has slept, in nanoseconds, by the VMM's answer to `GET /v1/vm`.
pub fn asleep_ns(answer: &Answer) -> Result<u64, Error> {
    let vm: Vm = serde_json::from_slice(&answer.body).map_err(cannot("understand the VMM"))?;
    Ok(vm.restored.asleep_ns)
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
        let vm = r#"{"state": "running", "restored": {"asleep_ns": 7}}"#;
        assert_eq!(asleep_ns(&answer(vm)).ok(), Some(7));
        asleep_ns(&answer(r#"{"state": "running"}"#)).expect_err("it has booted");
    }

    #[test]
    fn message_has_other_random_numbers_each_time() {
        let message = || message(1, Vec::new()).expect("message");
        assert_ne!(message(), message());
    }
}
