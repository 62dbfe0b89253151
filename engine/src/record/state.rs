//! How a container is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// How a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it is doing.
    pub status: Status,
    /// When its program last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The program's end as a shell has it.
    #[serde(default)]
    pub exit_code: u8,
    /// Whether the kernel killed a process of it for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// What went wrong, if it was not the program's own doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The checkpoint that it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpointed: Option<String>,
    /// How often it has been started.
    #[serde(default)]
    pub starts: u32,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing yet.
    #[default]
    Created,
    /// Its program runs.
    Running,
    /// Its program is held.
    Paused,
    /// Its program has ended.
    Exited,
}

impl Status {
    /// Whether there is a program, held or not.
    pub fn is_up(self) -> bool {
        matches!(self, Status::Running | Status::Paused)
    }

    /// As Docker says it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Exited => "exited",
        }
    }
}

/// The processes of a sandbox that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Its monitor.
    pub monitor: Process,
    /// What ends all of it when it is killed: its virtual machine or, where it has none, the container's
    /// first process.
    pub vmm: Process,
}
