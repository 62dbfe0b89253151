//! Where the parts that Bulkhead needs are: the VMM, the guest kernel, the agent's root image.
//!
//! Each can be named by a variable of the environment. Otherwise it is looked for beside the
//! executable, as in a build directory, and then under the installation's `lib/bulkhead`.

use std::env;
use std::path::{Path, PathBuf};

/// A part of Bulkhead outside this executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artifact {
    /// The program that runs a VM.
    Vmm,
    /// The guest kernel.
    Kernel,
    /// The root image of Bulkhead's own guest.
    AgentImage,
    /// The program that `compare` measures with.
    Bench,
}

/// It is nowhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot find {what} `{file}`: run `make build`, or set {variable} to its path (looked in {looked})"
)]
pub struct Missing {
    what: &'static str,
    file: &'static str,
    variable: &'static str,
    looked: String,
}

impl Artifact {
    /// What it is called in sentences, its file's name, and the variable that overrides both.
    fn describe(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Artifact::Vmm => ("the VMM", "bulkhead-vmm", "BULKHEAD_VMM"),
            Artifact::Kernel => ("the guest kernel", "vmlinux", "BULKHEAD_KERNEL"),
            Artifact::AgentImage => ("the agent's image", "agent.erofs", "BULKHEAD_AGENT_IMAGE"),
            Artifact::Bench => ("the measuring program", "bulkhead-bench", "BULKHEAD_BENCH"),
        }
    }

    /// Finds it.
    pub fn find(self) -> Result<PathBuf, Missing> {
        let (what, file, variable) = self.describe();
        if let Some(path) = env::var_os(variable) {
            // Whoever sets it means it: a wrong path is reported when it is opened.
            return Ok(path.into());
        }
        let directories = search_path();
        directories
            .iter()
            .map(|directory| directory.join(file))
            .find(|path| path.exists())
            .ok_or_else(|| Missing {
                what,
                file,
                variable,
                looked: directories
                    .iter()
                    .map(|d| d.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

fn search_path() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Ok(executable) = env::current_exe()
        && let Some(bin) = executable.parent()
    {
        directories.push(bin.to_owned());
        // `<prefix>/bin/bulkhead` has its parts in `<prefix>/lib/bulkhead`.
        if let Some(prefix) = bin.parent() {
            directories.push(prefix.join("lib/bulkhead"));
            // `target/<triple>/release/bulkhead`, as `make build` leaves it, in `target/guest`.
            if let Some(target) = prefix.parent() {
                directories.push(target.join("guest"));
            }
        }
    }
    for system in ["/usr/local/lib/bulkhead", "/usr/lib/bulkhead"] {
        let system = Path::new(system).to_owned();
        if !directories.contains(&system) {
            directories.push(system);
        }
    }
    directories
}
