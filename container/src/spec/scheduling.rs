//! When a program gets processors and disks (runtime-spec config.md#linux-process).

use serde::{Deserialize, Serialize};

/// How the kernel gives it processors (sched(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER` and the like.
    pub policy: String,
    /// -20 to 19; less is more.
    pub nice: i32,
    /// 1 to 99 with `SCHED_FIFO` and `SCHED_RR`; more is more.
    pub priority: i32,
    /// `SCHED_FLAG_RESET_ON_FORK` and the like.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Nanoseconds in each period, with `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds from a period's begin, likewise.
    pub deadline: u64,
    /// Nanoseconds, likewise.
    pub period: u64,
}

/// How the kernel gives it disks (ioprio_set(2)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 to 7; less is more.
    pub priority: i32,
}
