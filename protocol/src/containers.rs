//! Containers, and the programs that are executed in them.

use serde::{Deserialize, Serialize};

/// The body of `POST /v1/containers`; the answer is 201 and a [`ContainerState`].
///
/// `S` is an OCI runtime specification, as whatever type the reader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateContainer<S> {
    /// 1 to 128 of `A-Za-z0-9_.-`, the first a letter or a digit.
    pub id: String,
    /// The OCI runtime specification's `config.json`. Its `root.path` is not used: see `rootfs`.
    pub spec: S,
    /// What the container's root is made of.
    pub rootfs: Rootfs,
    /// What is mounted in [`VOLUMES`] while the container is made, so that bind mounts of `spec` can
    /// have their sources there. What they took lives and ends with the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Whether the program's standard input is a stream that clients write to; otherwise it is
    /// `/dev/null`. A terminal always is one.
    #[serde(default)]
    pub stdin: bool,
    /// The size of the terminal, if `spec.process.terminal` asks for one; that of
    /// `spec.process.consoleSize` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Whether the container's first process is a small one that reaps, and the program its child.
    #[serde(default)]
    pub init: bool,
}

/// The body of `PUT /v1/spare`: what the next container will probably be like. Its first process is made now, as far as that
/// can be without its root filesystem. A container that turns out to be different has one made of its own.
///
/// `S` is an OCI runtime specification, as in [`CreateContainer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpareProcess<S> {
    /// As of the container. Namespaces, the mounts of the kernel's filesystems, devices, and what of them is hidden or only
    /// read are what counts.
    pub spec: S,
}

/// A root made of a read-only lower layer and a writable upper one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// What is there from the beginning.
    pub lower: Lower,
    /// Where changes go; a tmpfs without a limit of its own if absent.
    #[serde(default)]
    pub upper: Upper,
    /// Files that take the place of what the lower layer has there, whether or not the program may
    /// write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<NewFile>,
}

/// A file of a [`Rootfs`]: root's, and readable to everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// Absolute. Of its folders only the last may be missing.
    pub path: String,
    /// What it holds.
    pub text: String,
}

/// The lower layer of a [`Rootfs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lower {
    /// An EROFS on the virtio block device with this serial.
    Serial(String),
    /// A folder of the agent's own file system. For agents that run on a host.
    Directory(String),
    /// A file with an EROFS in the agent's own file system. For agents that run on a host.
    File(String),
}

/// The upper layer of a [`Rootfs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// Memory.
    Tmpfs {
        /// The most it holds; what the kernel gives (half of the memory) if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
    /// An ext4 on the virtio block device with this serial.
    Disk {
        /// The device's serial.
        serial: String,
    },
    /// A file with an ext4 in the agent's own file system. For agents that run on a host.
    File(String),
}

impl Default for Upper {
    fn default() -> Self {
        Upper::Tmpfs { size_bytes: None }
    }
}

/// The folder of the guest in which a [`Volume`] is mounted under its name.
pub const VOLUMES: &str = "/run/volumes";

/// A file system that containers get parts of by bind mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The name of its folder in [`VOLUMES`], made like a container's `id`.
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub source: VolumeSource,
}

/// Where a [`Volume`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// A virtio-fs device, which has this tag.
    Share(String),
    /// An EROFS on the virtio block device with this serial.
    Erofs(String),
    /// An ext4 on the virtio block device with this serial.
    Ext4(String),
}

/// A terminal's size; also the body of `resize` and the payload of a resize frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What a container is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Made, and its program has not been started.
    Created,
    /// Its program runs.
    Running,
    /// Its program runs, and gets no processor.
    Paused,
    /// Its program has ended.
    Stopped,
}

/// The answer to `GET /v1/containers/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// As created.
    pub id: String,
    /// What it is at the moment.
    pub status: Status,
    /// Of its first process, as the guest counts; 0 once that has ended.
    pub pid: u32,
    /// Nanoseconds since 1970, by the guest's clock.
    pub created_ns: u64,
    /// Nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ns: Option<u64>,
    /// Nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ns: Option<u64>,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// The answer to `GET /v1/containers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerList {
    /// In the order in which they were created.
    pub containers: Vec<ContainerState>,
}

/// How a program ended: the answer to `wait`, and the payload of the exit frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a shell has it: the program's own status, 128 and the signal's number, 126 if it cannot
    /// be executed, 127 if it is not there.
    pub code: u8,
    /// The signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Whether the kernel killed a process of the container for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Why the program could not be executed, if it could not: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The body of `kill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Its number.
    pub signal: u8,
    /// To every process of the container rather than its first.
    #[serde(default)]
    pub all: bool,
}

/// The body of `POST /v1/containers/ID/exec`. With `Upgrade` the answer is 101 and frames, its
/// header `Bulkhead-Exec` the id; without it the program has no streams and the answer is 201 and
/// an [`ExecState`].
///
/// `P` is the OCI runtime specification's `process`, as whatever type the reader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec<P> {
    /// What to execute. What it leaves out of `user`, `env`, `cwd` and the like is not filled in.
    pub process: P,
    /// Whether the program's standard input is what the client sends; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// The size of the terminal, if `process.terminal` asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// The answer to `GET /v1/containers/ID/execs/EID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecState {
    /// Unique in the guest.
    pub exec_id: String,
    /// The container it was executed in.
    pub container_id: String,
    /// As the guest counts; 0 once it has ended.
    pub pid: u32,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// The header of the 101 that has the exec's id.
pub const EXEC_ID_HEADER: &str = "Bulkhead-Exec";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_when_read_then_as_documented() {
        let read = |text: &str| serde_json::from_str::<Volume>(text).expect("volume");
        let volume = |source| Volume {
            name: "a".into(),
            source,
        };
        for (text, source) in [
            (
                r#"{"name":"a","share":"t"}"#,
                VolumeSource::Share("t".into()),
            ),
            (
                r#"{"name":"a","erofs":"s"}"#,
                VolumeSource::Erofs("s".into()),
            ),
            (r#"{"name":"a","ext4":"s"}"#, VolumeSource::Ext4("s".into())),
        ] {
            let volume = volume(source);
            assert_eq!(read(text), volume);
            assert_eq!(serde_json::to_string(&volume).expect("text"), text);
        }
    }

    #[test]
    fn rootfs_when_read_then_as_documented() {
        let read = |text: &str| serde_json::from_str::<Rootfs>(text).expect("rootfs");
        assert_eq!(
            read(r#"{"lower":{"serial":"image"}}"#).upper,
            Upper::Tmpfs { size_bytes: None }
        );
        assert_eq!(
            read(r#"{"lower":{"serial":"image"},"upper":{"disk":{"serial":"upper"}}}"#).upper,
            Upper::Disk {
                serial: "upper".into()
            }
        );
        let sized = read(r#"{"lower":{"directory":"/x"},"upper":{"tmpfs":{"size_bytes":5}}}"#);
        assert_eq!(
            sized.upper,
            Upper::Tmpfs {
                size_bytes: Some(5)
            }
        );
    }
}
