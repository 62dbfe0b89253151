//! What happens in a guest, as it happens.

use serde::{Deserialize, Serialize};

use crate::Exit;

/// A line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub event: EventKind,
    /// When, nanoseconds since 1970 by the guest's clock.
    pub time_ns: u64,
    /// To which container; absent if it is about the stream of events itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// To which program in it, if it was executed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
    /// How it ended, for [`EventKind::Exited`] and [`EventKind::ExecExited`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// What an [`Event`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The first line: from here on nothing is missed.
    Listening,
    /// A container was created.
    Created,
    /// Its program was started.
    Started,
    /// Its program has ended.
    Exited,
    /// It was paused.
    Paused,
    /// It was resumed.
    Resumed,
    /// The kernel has killed a process of it for want of memory.
    Oom,
    /// It was deleted.
    Deleted,
    /// A program was executed in it.
    ExecStarted,
    /// That program has ended.
    ExecExited,
    /// The client was too slow, and events before this one were left out.
    Lost,
    /// An event of a later agent.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_of_a_later_agent_when_read_then_unknown() {
        let line = r#"{"event":"levitated","time_ns":1,"container_id":"a","height":3}"#;
        let event: Event = serde_json::from_str(line).expect("event");
        assert_eq!(event.event, EventKind::Unknown);
    }
}
