//! Programs to run at points of a container's life (runtime-spec config.md#posix-platform-hooks).

use serde::{Deserialize, Serialize};

/// All hooks, each list in the order in which it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hooks {
    /// In the runtime's namespaces, when the container's are made and mounted; the older name of the next.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, when the container's are made and mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces after that, with the runtime's root filesystem.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// In the container, before its program is started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, when the program was started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, when the container is gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Hooks::default()
    }
}

/// One program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// An absolute path.
    pub path: String,
    /// All arguments, beginning with its name; none: the path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `NAME=value`, nothing else is in its environment; none: that of the runtime, in the container that of its program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}
