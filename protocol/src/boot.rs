//! What a guest says of its boot.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

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
}
