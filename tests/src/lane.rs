//! The two kinds of KVM the tests run on.

use std::env;
use std::io::{self, Write};
use std::time::Duration;

/// Where a test is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// On this machine's own KVM, whichever that is.
    Own,
    /// In the outer machine, on a software-emulated `kvm-amd`: kernels are quick, programs slow.
    Faithful,
}

impl Lane {
    /// The lane of this process.
    pub fn current() -> Self {
        match env::var("BULKHEAD_LANE").as_deref() {
            Ok("faithful") => Lane::Faithful,
            _ => Lane::Own,
        }
    }

    /// A size of work for each lane.
    pub fn pick<T>(own: T, faithful: T) -> T {
        match Lane::current() {
            Lane::Own => own,
            Lane::Faithful => faithful,
        }
    }

    /// Says that a test does not run in this lane, and whether that is so.
    pub fn is_not(lane: Lane, why: &str) -> bool {
        let skip = Lane::current() != lane;
        if skip {
            // Past the capture of the test's output: what did not run should be seen.
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            note(&format!("{name}: not in this lane: {why}"));
        }
        skip
    }
}

/// Writes a line to the real stderr, even from a test whose output is captured.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// For a whole boot, or a whole transfer. Never tight: a build machine boots a guest in ten seconds
/// when idle, and it seldom is. `BULKHEAD_TEST_TIMEOUT` (seconds) replaces it.
pub fn patience() -> Duration {
    let seconds = env::var("BULKHEAD_TEST_TIMEOUT")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1200);
    Duration::from_secs(seconds)
}
