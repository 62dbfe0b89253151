//! The configuration of a container: `config.json` of the OCI runtime specification, version 1.2.
//!
//! The types are ours because the guest's agent holds them too: the published crate of them adds 1.6 MB to its program,
//! these a tenth of that. Names in JSON are the specification's; what a runtime does not know it must ignore, so unknown
//! members are no error. Members for other systems (Windows, Solaris, z/OS, VMs) are not read.

mod hooks;
mod linux;
mod process;
mod scheduling;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use hooks::{Hook, Hooks};
pub use linux::{
    BlockIo, BlockIoDevice, Cpu, Device, DeviceKind, DeviceRule, HugepageLimit, IdMapping,
    InterfacePriority, Linux, LinuxPids, Memory, MemoryPolicy, Namespace, NamespaceKind, NetDevice,
    Network, Personality, Rdma, Resources, Seccomp, SeccompAction, SeccompArgument,
    SeccompOperator, SeccompRule, Throttle, TimeOffset,
};
pub use process::{Capabilities, ConsoleSize, CpuAffinity, Process, Rlimit, User};
pub use scheduling::{IoPriority, Scheduler};

/// The version of the specification that is followed here.
pub const VERSION: &str = "1.2.0";

/// A container's configuration (runtime-spec config.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// The version of the specification it follows, `1.x.y`.
    pub oci_version: String,
    /// The root filesystem. Where it comes from is not read here but given to `Container::create`; whether it is
    /// read-only is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// What is mounted, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// The program. Without one a container can be created but not started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The host name in its UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The NIS domain name in its UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Programs to run at points of its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Whatever its user wants to remember with it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The root filesystem (runtime-spec config.md#root).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Root {
    /// Where it lies on the host; not read here.
    pub path: String,
    /// The program cannot change it.
    #[serde(skip_serializing_if = "is_false")]
    pub readonly: bool,
}

/// One mount (runtime-spec config.md#mounts).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mount {
    /// An absolute path inside the container.
    pub destination: String,
    /// The filesystem's type; not needed for a bind mount.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A device, a name, or for a bind mount an absolute path outside the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// As mount(8) and the specification name them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Users of the source as users of the mount. Refused unless empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Groups likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

// Serde hands a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}
