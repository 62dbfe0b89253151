//! What a VM is made of: one JSON document.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::console::WindowSize;
pub use bulkhead_devices::virtio::fs::MAX_TAG;
use bulkhead_devices::virtio::vsock::DirectSocket;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::memory;

/// The most vCPUs a VM can have: an MP table describes no more with room to spare, and the kernel is
/// built for as many.
pub const MAX_CPUS: u32 = 32;
/// The least memory with which a Linux guest gets anywhere, in MiB.
pub const MIN_MEMORY_MIB: u64 = 32;
/// The most virtio devices a VM can have: each takes an interrupt line of the one IOAPIC.
pub const MAX_VIRTIO_DEVICES: usize = 16;

/// A VM, whole. Fields are only ever added; an unknown one is an error, because a setting that is
/// silently ignored is worse than one that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    #[serde(default = "one")]
    pub cpus: u32,
    /// Guest memory in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u64,
    /// What to boot.
    pub kernel: KernelConfig,
    /// Block devices, in the order the guest sees them: `vda`, `vdb`...
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network cards, in the order the guest sees them: `eth0`, `eth1`...
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Folders that file servers share with the guest.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// The socket device.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Where the virtio console `hvc0` goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The console's window at the start; unknown if not given.
    #[serde(default)]
    pub console_size: Option<WindowConfig>,
    /// Whether there is a 16550 serial port, on the process's standard streams.
    #[serde(default)]
    pub serial: bool,
    /// Whether there is an entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// The memory balloon.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// Windows without a device, behind those of the devices. What is restored from a snapshot of this
    /// VM can have devices there.
    #[serde(default)]
    pub spare_slots: usize,
    /// Unix socket to be controlled through.
    #[serde(default)]
    pub control_socket: Option<PathBuf>,
    /// Whether to finish supervisor instructions that a software-assisted KVM cannot.
    #[serde(default)]
    pub assist: AssistConfig,
}

/// What is different in a VM that is restored from a snapshot. All else is as it was in the VM that the
/// snapshot was taken of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// Block devices for the spare windows. They come first there.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network cards for the spare windows, behind the disks.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Shares for the spare windows, behind the network cards.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// Where disks are now that were elsewhere, by their numbers: those that the VM was made with come first,
    /// those that were added to it when it was itself restored behind them.
    #[serde(default)]
    pub replaced_disks: BTreeMap<usize, PathBuf>,
    /// Disks that are taken out, by their numbers: what is left of each is an empty drive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emptied_disks: Vec<usize>,
    /// The socket device's address and sockets. Needed if the snapshot has such a device.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Unix socket to be controlled through.
    #[serde(default)]
    pub control_socket: Option<PathBuf>,
    /// When all of the snapshot's memory is read and compared with its checksums.
    #[serde(default)]
    pub verify: Verify,
}

/// When all of a snapshot's memory is read first and compared with its checksums. Otherwise it is read as the
/// guest needs it, and only its size is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// Each time.
    #[default]
    Always,
    /// If the host has booted since the snapshot was taken: until then it is what was written, as its
    /// reader gets it from the memory of the host that wrote it, and not from a disk.
    AfterReboot,
}

impl RestoreConfig {
    /// Reads the document at `path` (`-`: standard input).
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read(path)
    }

    /// Checks everything that can be checked without touching the host's devices or files.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate_tags(&self.shares)?;
        validate_cid(self.vsock.as_ref())
    }

    /// How many devices it adds.
    pub fn virtio_devices(&self) -> usize {
        self.disks.len() + self.nets.len() + self.shares.len()
    }
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// An ELF `vmlinux` or a `bzImage`.
    pub path: PathBuf,
    /// An initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// What follows the VMM's own parameters on the kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

/// A block device on a raw file or a host block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The file. None: an empty drive, which a VM that is restored from a snapshot can have a disk in.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest reads as serial number, at most 20 bytes.
    #[serde(default)]
    pub serial: Option<String>,
    /// A bound on its speed.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
}

/// A network card on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name of the tap. Made, for as long as the VM lives, if it is not there.
    pub tap: String,
    /// The card's address, `02:00:00:00:00:01`. A random one if not given.
    #[serde(default)]
    pub mac: Option<String>,
    /// The largest packet the guest should send, in bytes.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// A bound on its speed, for each direction.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
}

/// A virtio-fs device, whose requests a file server (`virtiofsd`) answers by the vhost-user protocol.
/// With one of these, guest memory is a memfd, as the server maps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The name under which the guest mounts it, 1 to [`MAX_TAG`] bytes.
    pub tag: String,
    /// The socket that the server listens on.
    pub socket: PathBuf,
}

/// The socket device and its Unix sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, 3 or more.
    #[serde(default = "first_cid")]
    pub cid: u64,
    /// Socket at which the host connects to the guest (`CONNECT <port>\n`). What the guest connects
    /// to on port P arrives at this path with `_P` appended.
    pub path: PathBuf,
    /// Sockets at which the host is connected straight to a port of the guest.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
}

/// A Unix socket that leads to one port of the guest, for programs that cannot say `CONNECT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// The port, in the guest.
    pub port: u32,
    /// The socket, on the host.
    pub path: PathBuf,
}

impl From<&PortConfig> for DirectSocket {
    fn from(config: &PortConfig) -> Self {
        DirectSocket {
            port: config.port,
            path: config.path.clone(),
        }
    }
}

/// Where a console goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleConfig {
    /// The process's standard input and output.
    #[default]
    Stdio,
    /// There is no such device.
    None,
}

/// The size of a console's window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl From<WindowConfig> for WindowSize {
    fn from(size: WindowConfig) -> Self {
        WindowSize {
            columns: size.columns,
            rows: size.rows,
        }
    }
}

/// The memory balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Memory taken from the guest at the start, in MiB.
    #[serde(default)]
    pub size_mib: u32,
    /// Whether the guest reports pages it has freed, so that they go back to the host.
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// Whether the guest may take memory back rather than run out of it.
    #[serde(default = "yes")]
    pub deflate_on_oom: bool,
}

/// Whether the assist is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AssistConfig {
    /// When the probe finds a software-assisted KVM, and only then.
    #[default]
    Auto,
    /// Never: what KVM cannot do ends the VM.
    Off,
}

fn one() -> u32 {
    1
}
fn default_memory() -> u64 {
    128
}
fn yes() -> bool {
    true
}
fn first_cid() -> u64 {
    3
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The document could not be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// It is not a configuration.
    #[error("the configuration {path} is not valid: {source}")]
    Parse {
        /// Where it came from.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A number of vCPUs that cannot be.
    #[error("{0} CPUs cannot be had: give 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Too little memory.
    #[error("{0} MiB of memory is too little for Linux: give at least {MIN_MEMORY_MIB} MiB")]
    TooLittleMemory(u64),
    /// More memory than the host has.
    #[error("{asked} MiB of memory is more than the {host} MiB this host has: give less")]
    TooMuchMemory {
        /// In MiB.
        asked: u64,
        /// In MiB.
        host: u64,
    },
    /// More devices than there are interrupt lines.
    #[error("{0} virtio devices are too many: a VM has at most {MAX_VIRTIO_DEVICES}")]
    TooManyDevices(usize),
    /// A share's name that no guest could ask for.
    #[error("`{0}` cannot be a share's tag: give 1 to {MAX_TAG} bytes, and each share its own")]
    Tag(String),
    /// A guest address that is taken by the host or reserved.
    #[error("vsock CID {0} is reserved: give one from 3 to 4294967294")]
    Cid(u64),
}

fn validate_tags(shares: &[ShareConfig]) -> Result<(), ConfigError> {
    for (index, ShareConfig { tag, .. }) in shares.iter().enumerate() {
        let is_taken = shares[..index].iter().any(|other| other.tag == *tag);
        if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') || is_taken {
            return Err(ConfigError::Tag(tag.clone()));
        }
    }
    Ok(())
}

fn validate_cid(vsock: Option<&VsockConfig>) -> Result<(), ConfigError> {
    match vsock {
        Some(vsock) if !(3..u64::from(u32::MAX)).contains(&vsock.cid) => {
            Err(ConfigError::Cid(vsock.cid))
        }
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = read.map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

impl VmConfig {
    /// Reads the document at `path` (`-`: standard input) and checks it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: VmConfig = read(path)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks everything that can be checked without touching the host's devices or files.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(ConfigError::TooLittleMemory(self.memory_mib));
        }
        if let Some(host) = memory::host_memory().map(|bytes| bytes >> 20)
            && self.memory_mib > host
        {
            return Err(ConfigError::TooMuchMemory {
                asked: self.memory_mib,
                host,
            });
        }
        let devices = self.virtio_devices().saturating_add(self.spare_slots);
        if devices > MAX_VIRTIO_DEVICES {
            return Err(ConfigError::TooManyDevices(devices));
        }
        validate_tags(&self.shares)?;
        validate_cid(self.vsock.as_ref())
    }

    /// How many virtio devices this VM has.
    pub fn virtio_devices(&self) -> usize {
        self.disks.len()
            + self.nets.len()
            + self.shares.len()
            + usize::from(self.vsock.is_some())
            + usize::from(self.console == ConsoleConfig::Stdio)
            + usize::from(self.rng)
            + usize::from(self.balloon.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VmConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn minimal() -> VmConfig {
        parse(r#"{"kernel": {"path": "vmlinux"}}"#).expect("minimal")
    }

    #[test]
    fn minimal_document_has_sensible_defaults() {
        let config = minimal();
        assert_eq!((config.cpus, config.memory_mib), (1, 128));
        assert_eq!(config.console, ConsoleConfig::Stdio);
        assert!(config.rng && !config.serial && config.balloon.is_none());
        config.validate().expect("valid");
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let error = parse(r#"{"kernel": {"path": "k"}, "memroy_mib": 1}"#).expect_err("typo");
        assert!(error.to_string().contains("memroy_mib"), "{error}");
    }

    #[test]
    fn document_when_written_and_read_again_is_the_same() {
        let mut config = minimal();
        config.balloon = Some(BalloonConfig {
            size_mib: 4,
            free_page_reporting: false,
            deflate_on_oom: true,
        });
        let text = serde_json::to_string(&config).expect("json");
        assert_eq!(parse(&text).expect("again"), config);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (cpus, memory_mib) in [(0, 128), (33, 128), (1000, 128), (1, 1), (1, 10 << 20)] {
            let config = VmConfig {
                cpus,
                memory_mib,
                ..minimal()
            };
            assert!(config.validate().is_err(), "{cpus} CPUs, {memory_mib} MiB");
        }
        let share = |tag: &str| ShareConfig {
            tag: tag.to_owned(),
            socket: "s".into(),
        };
        for (tags, good) in [
            (&["a", "b"][..], true),
            (&["a", "a"], false),
            (&[""], false),
            (&["a\0"], false),
            (&[&"x".repeat(36)], true),
            (&[&"x".repeat(37)], false),
        ] {
            let config = VmConfig {
                shares: tags.iter().map(|tag| share(tag)).collect(),
                ..minimal()
            };
            assert_eq!(config.validate().is_ok(), good, "{tags:?}");
        }
        let config = VmConfig {
            vsock: Some(VsockConfig {
                cid: 2,
                path: "v".into(),
                ports: Vec::new(),
            }),
            ..minimal()
        };
        assert!(config.validate().is_err());
    }
}
