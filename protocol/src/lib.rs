//! The types of the vsock API, version 1: what the guest's agent and the host say to each other.
//!
//! The agent serves HTTP/1.1 with JSON bodies on vsock port [`API_PORT`]; `docs/api.md` is its
//! manual and `docs/api.schema.json` its schema. When the agent starts it also dials the host on
//! [`READY_PORT`] and writes one line, a [`Ready`].
//!
//! Within a version fields are only ever added: a reader ignores what it does not know, and a field
//! that came later is optional to it. Texts are [`Cow`]s, so that the agent can say "ready" without
//! an allocation and the host can keep what it read as `Ready<'static>`.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The version of the API, the `1` of its `/v1` paths.
pub const API_VERSION: u32 = 1;
/// The vsock port the agent serves the API on, in the guest.
pub const API_PORT: u32 = 1024;
/// The vsock port of the host (CID 2) that the agent writes [`Ready`] to.
pub const READY_PORT: u32 = 1025;

/// The paths of the API.
pub mod path {
    /// `GET`: [`super::Health`].
    pub const HEALTH: &str = "/v1/health";
    /// `GET`: [`super::Info`].
    pub const INFO: &str = "/v1/info";
    /// `POST` [`super::Shutdown`]: stops every process and powers the guest off.
    pub const SHUTDOWN: &str = "/v1/shutdown";
}

/// What the agent writes to the host, as one line of JSON, once its API can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready<'a> {
    /// [`API_VERSION`] of the agent.
    pub api: u32,
    /// The agent's own version.
    pub agent_version: Cow<'a, str>,
    /// `uname -r`.
    pub kernel_release: Cow<'a, str>,
    /// How long the guest took.
    pub timings: BootTimings,
}

/// When the guest reached the stations of its boot, in nanoseconds of its `CLOCK_BOOTTIME`.
///
/// That clock starts at 0 when the guest kernel sets up its timekeeping, a little after its first
/// instruction. The host, which knows when it started the VM and when [`Ready`] arrived, derives
/// the rest: the time of arrival minus `ready_ns` is the kernel's zero on the host's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimings {
    /// The first instructions of PID 1.
    pub init_start_ns: u64,
    /// The API can be connected to, the host has been reached, and [`Ready`] is about to be written.
    pub ready_ns: u64,
}

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

/// The body of every answer whose status is 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError<'a> {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one sentence.
    pub message: Cow<'a, str>,
}

/// What kind of failure an [`ApiError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not HTTP, or its body is not the JSON that the path takes (400).
    BadRequest,
    /// No such path (404).
    NotFound,
    /// The path does not take this method (405).
    MethodNotAllowed,
    /// The body is larger than any request needs (413).
    PayloadTooLarge,
    /// The request line and headers are longer than any request needs (431).
    HeadersTooLarge,
    /// A part of HTTP that this server does not speak (501, 505).
    NotSupported,
    /// The agent could not do it (500).
    Internal,
    /// A code of a later agent.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_with_fields_of_a_later_agent_when_read_then_they_are_ignored() {
        let line = r#"{"api":1,"agent_version":"9","kernel_release":"7.0","spin":"up",
            "timings":{"init_start_ns":1,"ready_ns":2,"moon_ns":3}}"#;
        let ready: Ready<'static> = serde_json::from_str(line).expect("ready");
        assert_eq!(ready.kernel_release, "7.0");
        assert_eq!(ready.timings.ready_ns, 2);
    }

    #[test]
    fn error_code_of_a_later_agent_when_read_then_unknown() {
        let e: ApiError<'static> =
            serde_json::from_str(r#"{"code":"on_fire","message":"Hot."}"#).expect("error");
        assert_eq!(e.code, ErrorCode::Unknown);
    }

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
