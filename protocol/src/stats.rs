//! What a container uses and what it is made of.

use serde::{Deserialize, Serialize};

/// The answer to `GET /v1/containers/ID/stats`. What the guest's kernel does not count is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// When this was read, nanoseconds since 1970 by the guest's clock.
    pub read_ns: u64,
    /// Processor time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStats>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<PidsStats>,
    /// Block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoStats>,
}

/// Processor time of a container, from its creation on, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All of it.
    pub usage_ns: u64,
    /// Of it in programs.
    pub user_ns: u64,
    /// Of it in the kernel.
    pub system_ns: u64,
    /// Periods in which the container had a quota and wanted processor time.
    pub periods: u64,
    /// Of them, those in which the quota was used up.
    pub throttled_periods: u64,
    /// How long it was held back.
    pub throttled_ns: u64,
}

/// Memory of a container, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, copies of files included.
    pub usage_bytes: u64,
    /// The most that ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The limit, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Of it, the programs' own.
    pub anonymous_bytes: u64,
    /// Of it, copies of files.
    pub file_bytes: u64,
    /// Of it, copies of files that have not been used lately: the first to go.
    pub inactive_file_bytes: u64,
    /// How often a process was killed for want of memory.
    pub oom_kills: u64,
}

/// Processes and threads of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be, if there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// What a container has read from and written to block devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoStats {
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub write_bytes: u64,
    /// Requests.
    pub read_operations: u64,
    /// Requests.
    pub write_operations: u64,
}

/// The answer to `GET /v1/containers/ID/processes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// By their pids.
    pub processes: Vec<ProcessInfo>,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// As the guest counts.
    pub pid: u32,
    /// Its parent's.
    pub parent_pid: u32,
    /// As its container counts.
    pub container_pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// One letter, as in `/proc/PID/stat`: `R`, `S`, `D`, `Z`, `T`, ...
    pub state: String,
    /// When it started, nanoseconds of `CLOCK_BOOTTIME`.
    pub started_boot_ns: u64,
    /// Processor time it has had, nanoseconds.
    pub cpu_ns: u64,
    /// Memory that is its own or shared with others, bytes.
    pub resident_bytes: u64,
    /// Its name, then its arguments; the name in brackets if it has none.
    pub command: Vec<String>,
}
