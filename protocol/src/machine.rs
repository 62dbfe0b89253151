//! The guest as a machine: its health, what it is made of, its clock, its end.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::BootTimings;

/// The answer to `GET /v1/health`. There are no other states: an agent that answers is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How the agent is.
    pub status: HealthStatus,
    /// [`API_VERSION`] of the agent.
    pub api: u32,
}

/// See [`Health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Requests are served.
    Ok,
    /// The guest is on its way down.
    ShuttingDown,
}

/// The answer to `GET /v1/info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info<'a> {
    /// [`API_VERSION`] of the agent.
    pub api: u32,
    /// The agent's own version.
    pub agent_version: Cow<'a, str>,
    /// The guest's kernel.
    pub kernel: Kernel<'a>,
    /// `uname -n`.
    pub hostname: Cow<'a, str>,
    /// Processors that are online.
    pub cpus_online: u32,
    /// What its processors are and have done; absent from agents of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu<'a>>,
    /// The guest's memory.
    pub memory: Memory,
    /// Nanoseconds since the guest kernel started, sleep included (`CLOCK_BOOTTIME`).
    pub uptime_ns: u64,
    /// How the boot went.
    pub timings: BootTimings,
}

/// The kernel as `uname` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel<'a> {
    /// `uname -s`.
    pub sysname: Cow<'a, str>,
    /// `uname -r`.
    pub release: Cow<'a, str>,
    /// `uname -v`.
    pub version: Cow<'a, str>,
    /// `uname -m`.
    pub machine: Cow<'a, str>,
}

/// The guest's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the kernel manages: the VM's memory without the kernel itself (`MemTotal`).
    pub total_bytes: u64,
    /// What programs could still get without swapping (`MemAvailable`).
    pub available_bytes: u64,
    /// What nobody uses for anything (`MemFree`).
    #[serde(default)]
    pub free_bytes: u64,
    /// What holds copies of files (`Cached`).
    #[serde(default)]
    pub cached_bytes: u64,
    /// Files of tmpfs and shared memory (`Shmem`).
    #[serde(default)]
    pub shared_bytes: u64,
}

/// The guest's processors, and the time they have spent since the boot, all of them together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu<'a> {
    /// The name the first processor gives itself.
    pub model: Cow<'a, str>,
    /// In programs, nanoseconds.
    pub user_ns: u64,
    /// In the kernel, interrupts included, nanoseconds.
    pub system_ns: u64,
    /// With nothing to do, nanoseconds.
    pub idle_ns: u64,
    /// Wanted, but taken by the host for something else, nanoseconds.
    pub steal_ns: u64,
}

/// The body of `POST /v1/shutdown`; every field may be left out, and so may the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shutdown {
    /// How long processes get between SIGTERM and SIGKILL, in milliseconds; the agent's default
    /// ([`Shutdown::DEFAULT_GRACE_MS`]) if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

impl Shutdown {
    /// Ten seconds, as `docker stop` gives.
    pub const DEFAULT_GRACE_MS: u64 = 10_000;
    /// An hour: no request keeps a guest half down for longer.
    pub const MAX_GRACE_MS: u64 = 3_600_000;

    /// The grace period that holds, in milliseconds.
    pub fn grace_ms(&self) -> u64 {
        self.grace_ms
            .unwrap_or(Self::DEFAULT_GRACE_MS)
            .min(Self::MAX_GRACE_MS)
    }
}

/// The body of `PUT /v1/clock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970 that the guest's `CLOCK_REALTIME` is set to; also the answer to
    /// `GET /v1/clock`.
    pub unix_ns: u64,
}

/// The body of `POST /v1/entropy`: bytes that the guest's kernel is to trust as random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy<'a> {
    /// The bytes, at most [`Entropy::MAX_BYTES`], in base64 (RFC 4648 §4, with padding).
    pub base64: Cow<'a, str>,
}

impl Entropy<'_> {
    /// The most bytes at a time: many times what a seed needs.
    pub const MAX_BYTES: usize = 4096;
}

/// The body of `PUT /v1/restored`: what a guest that goes on from a snapshot cannot know by itself. The same
/// document again changes nothing, so that a client whose connection was lost can repeat it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored<'a> {
    /// Nanoseconds from the moment the snapshot was taken to the one at which the guest's clock went on:
    /// `CLOCK_REALTIME` is moved forward by so many.
    pub asleep_ns: u64,
    /// [`Restored::MIN_ENTROPY`] to [`Entropy::MAX_BYTES`] random bytes that no other guest gets, in base64
    /// (RFC 4648 §4, with padding).
    pub entropy: Cow<'a, str>,
    /// The virtio-mmio windows in which there is a device now and was none before, by their places on the
    /// kernel's command line, the first of which is 0.
    #[serde(default)]
    pub windows: Vec<u32>,
}

impl Restored<'_> {
    /// As many bytes as the kernel's random numbers have for a key.
    pub const MIN_ENTROPY: usize = 32;
    /// More windows than any machine has interrupt lines for.
    pub const MAX_WINDOWS: usize = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_when_absent_then_default_and_when_huge_then_bounded() {
        let s: Shutdown = serde_json::from_str("{}").expect("shutdown");
        assert_eq!(s.grace_ms(), Shutdown::DEFAULT_GRACE_MS);
        let s = Shutdown {
            grace_ms: Some(u64::MAX),
        };
        assert_eq!(s.grace_ms(), Shutdown::MAX_GRACE_MS);
    }
}
