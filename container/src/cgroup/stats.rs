//! What a control group uses.

use serde::Serialize;

/// What a control group uses. Without a controller there is no word from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes.
    pub pids: Option<PidsStats>,
    /// Each block device.
    pub io: Vec<IoStats>,
}

/// Processor time, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    /// All of it.
    pub usage_us: u64,
    /// In programs.
    pub user_us: u64,
    /// In the kernel.
    pub system_us: u64,
    /// Periods of a limit that went by.
    pub periods: u64,
    /// Those of them in which it reached the limit.
    pub throttled_periods: u64,
    /// How long it had to wait for that.
    pub throttled_us: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// All of it, with what the kernel caches of files.
    pub current: u64,
    /// The most there was.
    pub peak: Option<u64>,
    /// What it cannot exceed.
    pub limit: Option<u64>,
    /// On swap.
    pub swap: u64,
    /// Of programs.
    pub anonymous: u64,
    /// Cached of files.
    pub file: u64,
    /// Cached of files, and the first to go: what Docker takes off `current`.
    pub inactive_file: u64,
    /// Of the kernel.
    pub kernel: u64,
    /// Page faults, and those that had to read.
    pub page_faults: u64,
    /// See above.
    pub major_page_faults: u64,
    /// Processes that were ended because memory ran out.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there can be.
    pub limit: Option<u64>,
}

/// A block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IoStats {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// The value of a name in a file of lines `name value`.
pub fn value(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    };
    text.lines().find_map(of_line)
}

/// A file that is one number, or `max`.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}
