//! Bulkhead's own parts, and the tools it calls.

use std::env;
use std::path::PathBuf;

use super::Finding;
use bulkhead_engine::artifacts::Artifact;

/// Programs that a command calls, the package they come in on Debian, and what needs them.
const TOOLS: [(&str, &str, &str); 1] = [(
    "ip",
    "iproute2",
    "to make taps and network namespaces for `--net`",
)];

/// Looks for parts and tools.
pub fn look() -> Vec<Finding> {
    let parts = [
        ("VMM", Artifact::Vmm),
        ("guest kernel", Artifact::Kernel),
        ("agent's image", Artifact::AgentImage),
    ];
    let parts = parts
        .into_iter()
        .map(|(what, artifact)| match artifact.find() {
            Ok(path) if path.exists() => Finding::good(what, path.display().to_string()),
            Ok(path) => Finding::missing(
                what,
                format!("{} is not there", path.display()),
                "mend the variable that names it",
            ),
            Err(e) => Finding::missing(what, "not found", e.to_string()),
        });
    let tools = TOOLS
        .into_iter()
        .map(|(tool, package, purpose)| match on_path(tool) {
            Some(path) => Finding::good(format!("tool {tool}"), path.display().to_string()),
            None => Finding::warning(
                format!("tool {tool}"),
                "not found",
                format!("`apt-get install {package}`, {purpose}"),
            ),
        });
    parts.chain(tools).collect()
}

fn on_path(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(tool))
        .find(|candidate| candidate.is_file())
}
