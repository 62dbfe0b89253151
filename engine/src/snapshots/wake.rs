//! Tells the agent of a restored machine what it cannot know by itself.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bulkhead_protocol::path;

use super::store::Snapshot;
use crate::agent::check;
use crate::error::{Error, cannot};
use crate::http;
use crate::wake::{Origin, message};

/// How long the VMM may take to read and verify a snapshot, and to begin to answer.
const VMM_LIMIT: Duration = Duration::from_secs(3600);
/// How long an agent that was there when the snapshot was taken gets to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(60);
/// How long it is tried whether there is one, when none answered then.
const PERHAPS_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Waits until the machine whose sockets are in `directory` goes on from `snapshot`, and tells its agent at the
/// socket `agent`, if it has one: new random numbers, and for how long it has slept. Whether there is such an
/// agent; a guest of another kind is left alone.
pub fn wake(snapshot: Snapshot, directory: &Path, agent: Option<&Path>) -> Result<bool, Error> {
    let control = directory.join("control.sock");
    let until = Instant::now() + VMM_LIMIT;
    let vm = loop {
        match http::ask(&control, "GET", "/v1/vm", "", VMM_LIMIT) {
            Ok(answer) => break answer,
            Err(e) if Instant::now() >= until => return Err(cannot("reach the VMM")(e)),
            // Not there yet.
            Err(_) => sleep(LOOK_AGAIN),
        }
    };
    let is_expected = snapshot.record.agent;
    // The VMM has all of it open now.
    drop(snapshot);
    let Some(agent) = agent else {
        return Ok(false);
    };
    let origin = Origin::of(&vm)?;
    let body = message(origin.asleep_ns, Vec::new())?;
    let limit = match is_expected {
        true => AGENT_LIMIT,
        false => PERHAPS_LIMIT,
    };
    let until = Instant::now() + limit;
    let has_agent = loop {
        // A connection that comes before the guest has noticed that it is somebody else now is cut off. It can be
        // told again: the same a second time is nothing to it.
        match http::ask(agent, "PUT", path::RESTORED, &body, limit) {
            Ok(answer) if is_expected => break check(answer).map(|_| true)?,
            Ok(answer) => break answer.status < 300,
            Err(_) if Instant::now() < until => sleep(LOOK_AGAIN),
            Err(e) if is_expected => {
                return Err(cannot("tell the guest's agent that it was restored")(e));
            }
            Err(_) => return Ok(false),
        }
    };
    origin.keep_working_set(&control);
    Ok(has_agent)
}
