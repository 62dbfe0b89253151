//! The program that measures: where it is on this host, and in a container.

use std::fs;
use std::path::PathBuf;

use bulkhead_engine::artifacts::Artifact;

/// Where it lies in the images that `compare` makes.
pub const IN_CONTAINER: &str = "/bulkhead-bench";

/// Where it is on this host.
pub fn on_host() -> Result<PathBuf, String> {
    Artifact::Bench.find().map_err(|e| e.to_string())
}

/// A word that no process has in its command line yet.
pub fn token() -> Result<String, String> {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid");
    let random = random.map_err(|e| format!("cannot get a random number: {e}"))?;
    Ok(random.trim().replace('-', ""))
}
