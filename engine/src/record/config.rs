//! What a container is: fixed when it is created, but for its name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bulkhead_container::spec::Spec;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::State;
use crate::volumes::VolumeMount;

/// A container, as it was asked for. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the agent calls it, if that is not its ID: a container that was copied from a checkpoint has in the
    /// guest the ID of the container that the checkpoint was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_id: Option<String>,
    /// When it was created.
    pub created: Timestamp,
    /// What it was made from.
    pub image: Image,
    /// The image as one EROFS file.
    pub disk: PathBuf,
    /// The image as a folder of its files, for a container on the host of who may not mount the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<PathBuf>,
    /// The wall around it.
    #[serde(default)]
    pub isolation: Isolation,
    /// Where its changes go.
    pub upper: Upper,
    /// What it gets of the host.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// Its virtual machine, if it has one.
    pub machine: Machine,
    /// Whether its machine boots even if it could be restored from a template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// The template of the user's own that its machine is restored from. It neither boots nor has another one then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether its standard input is a stream.
    pub stdin: bool,
    /// Whether its first process is one that reaps, and its program that one's child.
    #[serde(default)]
    pub init: bool,
    /// Whether it goes when it ends.
    pub auto_remove: bool,
    /// The signal that asks it to stop.
    pub stop_signal: u8,
    /// How long it gets for that, in seconds.
    pub stop_timeout_s: u64,
    /// What was said of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The OCI runtime specification, without the volumes, which are found when the container starts.
    pub spec: Spec,
}

impl Config {
    /// What the agent calls it.
    pub fn guest_id(&self) -> &str {
        self.guest_id.as_deref().unwrap_or(&self.id)
    }

    /// Whether it was copied from a checkpoint and has never gone on from there: it is nothing then.
    pub fn is_stillborn(&self, state: &State) -> bool {
        self.guest_id.is_some() && state.starts == 0
    }

    /// The program and its arguments.
    pub fn command(&self) -> &[String] {
        let process = self.spec.process.as_ref();
        process.map(|process| &process.args[..]).unwrap_or_default()
    }

    /// Whether its standard streams are a terminal.
    pub fn has_terminal(&self) -> bool {
        let process = self.spec.process.as_ref();
        process.is_some_and(|process| process.terminal)
    }
}

/// The image a container was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As it was called.
    pub name: String,
    /// The digest of its configuration.
    pub id: String,
    /// The digest of its manifest.
    pub manifest: String,
}

/// The wall around a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A microVM of its own.
    #[default]
    Vm,
    /// Namespaces and control groups on the host's kernel.
    Container,
}

impl Isolation {
    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Vm => "vm",
            Isolation::Container => "container",
        }
    }
}

/// Where a container's changes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// Memory, the guest's if there is one: they are gone when it ends.
    Memory,
    /// An ext4 in a file that takes the room it needs, up to so many bytes.
    Disk {
        /// Its size.
        size_bytes: u64,
    },
}

/// The size of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors.
    pub cpus: u32,
    /// Memory, what its kernel and agent need included, in MiB.
    pub memory_mib: u64,
}
