//! The virtual machine of a container: its devices, and its process.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bulkhead_protocol::API_PORT;
use bulkhead_vmm::config::{
    AssistConfig, ConsoleConfig, DiskConfig, KernelConfig, MAX_CPUS, PortConfig, RestoreConfig,
    Verify, VmConfig, VsockConfig,
};
use serde::Serialize;

use crate::artifacts::{Artifact, Missing};
use crate::error::{Error, cannot};
use crate::record::{Config, Files, Machine, Upper};
use crate::volumes::Attached;

/// Serial of the disk with the image.
pub const IMAGE_SERIAL: &str = "image";
/// Serial of the disk that changes go to.
pub const UPPER_SERIAL: &str = "upper";

/// Memory of a machine whose container has no limit, in MiB. The host gives it as it is touched.
const DEFAULT_MEMORY_MIB: u64 = 512;
/// What the guest's kernel and agent need beside the container, in MiB.
const OVERHEAD_MIB: u64 = 64;
/// The kernel's record of each page takes a 64th of all memory.
const PAGE_RECORDS: u64 = 64;
/// The address of a guest on its vsock that nobody tells from others by it.
const FIRST_CID: u32 = 3;

impl Machine {
    /// A machine for a container with these limits: processors, of which a part takes a whole one,
    /// and bytes.
    pub fn for_limits(cpus: Option<f64>, memory_bytes: Option<u64>) -> Self {
        let cpus = cpus.unwrap_or(1.0).ceil().clamp(1.0, f64::from(MAX_CPUS));
        let memory_mib = match memory_bytes {
            None => DEFAULT_MEMORY_MIB,
            Some(bytes) => {
                let mib = bytes.div_ceil(1 << 20);
                mib + mib / PAGE_RECORDS + OVERHEAD_MIB
            }
        };
        Machine {
            cpus: cpus as u32,
            memory_mib,
        }
    }
}

/// What every machine's kernel is told.
pub const CMDLINE: &str = "rootfstype=erofs init=/init root=/dev/vda ro";
/// Serial of the disk that the agent is on, where somebody asks for it.
pub const AGENT_SERIAL: &str = "agent";
/// Windows of a template for what its clones have besides an image: an upper, a share or a few volumes, network cards.
/// Each costs the template's boot a little.
pub const SPARE_SLOTS: usize = 7;
/// The drive of a template that its clones have their image in: a disk that is put into a drive costs the guest's kernel a
/// tenth of one that is new to it.
pub const IMAGE_DRIVE: usize = 1;

/// The Unix sockets of a machine.
pub struct Sockets {
    /// Any port of the guest.
    pub vsock: PathBuf,
    /// The agent's API.
    pub api: PathBuf,
    /// The VMM's control.
    pub control: PathBuf,
}

impl Sockets {
    /// A container's.
    pub fn of(files: &Files) -> Self {
        Self::in_folder(&files.sandbox)
    }

    /// Those in a folder, by the names that a sandbox's have.
    pub fn in_folder(folder: &Path) -> Self {
        let files = Files {
            folder: PathBuf::new(),
            sandbox: folder.to_owned(),
        };
        Sockets {
            vsock: files.vsock(),
            api: files.api(),
            control: files.control(),
        }
    }

    /// Where what the guest connects to on the host's port arrives.
    pub fn of_port(&self, port: u32) -> PathBuf {
        let mut path = self.vsock.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }

    fn device(&self, cid: u32) -> VsockConfig {
        VsockConfig {
            cid: cid.into(),
            path: self.vsock.clone(),
            ports: vec![PortConfig {
                port: API_PORT,
                path: self.api.clone(),
            }],
        }
    }
}

fn disk(path: &Path, read_only: bool, serial: &str) -> DiskConfig {
    DiskConfig {
        path: Some(path.to_owned()),
        read_only,
        serial: Some(serial.to_owned()),
        rate_limit: None,
    }
}

/// The disks of a container: its image, what changes go to, its volumes.
pub fn disks(config: &Config, files: &Files, volumes: &Attached) -> Vec<DiskConfig> {
    let mut disks = vec![disk(&config.disk, true, IMAGE_SERIAL)];
    if let Upper::Disk { .. } = config.upper {
        disks.push(disk(&files.upper(), false, UPPER_SERIAL));
    }
    disks.extend(volumes.disks.iter().cloned());
    disks
}

/// A machine with nothing but an agent in it.
fn bare(machine: Machine, sockets: &Sockets) -> Result<VmConfig, Missing> {
    Ok(VmConfig {
        cpus: machine.cpus,
        memory_mib: machine.memory_mib,
        kernel: KernelConfig {
            path: Artifact::Kernel.find()?,
            initrd: None,
            cmdline: CMDLINE.to_owned(),
        },
        disks: vec![disk(&Artifact::AgentImage.find()?, true, AGENT_SERIAL)],
        nets: Vec::new(),
        shares: Vec::new(),
        vsock: Some(sockets.device(FIRST_CID)),
        console: ConsoleConfig::Stdio,
        console_size: None,
        serial: false,
        rng: true,
        balloon: None,
        spare_slots: 0,
        control_socket: Some(sockets.control.clone()),
        assist: AssistConfig::Auto,
    })
}

/// The document of a machine that boots with all that its container has.
pub fn describe(config: &Config, files: &Files, volumes: &Attached) -> Result<VmConfig, Missing> {
    let mut machine = bare(config.machine, &Sockets::of(files))?;
    machine.disks.extend(disks(config, files, volumes));
    machine.shares = volumes.shares.clone();
    Ok(machine)
}

/// The document of a machine that becomes a template.
pub fn describe_template(machine: Machine, sockets: &Sockets) -> Result<VmConfig, Missing> {
    let mut template = bare(machine, sockets)?;
    let drive = DiskConfig {
        path: None,
        read_only: true,
        serial: Some(IMAGE_SERIAL.to_owned()),
        rate_limit: None,
    };
    template.disks.insert(IMAGE_DRIVE, drive);
    template.spare_slots = SPARE_SLOTS;
    Ok(template)
}

/// What is different in a template's machine that goes on without the image that was in its drive.
pub fn describe_emptied(sockets: &Sockets) -> RestoreConfig {
    RestoreConfig {
        emptied_disks: vec![IMAGE_DRIVE],
        vsock: Some(sockets.device(FIRST_CID)),
        control_socket: Some(sockets.control.clone()),
        verify: Verify::AfterReboot,
        ..RestoreConfig::default()
    }
}

/// How many devices the machine of a container has that a template has not.
pub fn devices(config: &Config, files: &Files, volumes: &Attached) -> usize {
    disks(config, files, volumes).len() - 1 + volumes.shares.len()
}

/// What the machine of a container has that a template has not, and the windows that it is in.
pub fn describe_clone(
    config: &Config,
    files: &Files,
    volumes: &Attached,
    cid: u32,
) -> Result<(RestoreConfig, Vec<u32>), Missing> {
    let sockets = Sockets::of(files);
    let mut disks = disks(config, files, volumes);
    let image = disks.remove(0).path.unwrap_or_default();
    let clone = RestoreConfig {
        disks,
        shares: volumes.shares.clone(),
        nets: Vec::new(),
        replaced_disks: BTreeMap::from([(IMAGE_DRIVE, image)]),
        vsock: Some(sockets.device(cid)),
        control_socket: Some(sockets.control.clone()),
        verify: Verify::AfterReboot,
        ..RestoreConfig::default()
    };
    // They come behind the template's own.
    let first = describe_template(config.machine, &sockets)?.virtio_devices();
    let windows = first..first + devices(config, files, volumes);
    let windows = windows.filter_map(|window| u32::try_from(window).ok());
    Ok((clone, windows.collect()))
}

/// What is different in a container's machine that goes on from a checkpoint: its address, its sockets, and where its
/// disks are, by their numbers.
pub fn describe_restored(
    files: &Files,
    cid: u32,
    replaced_disks: BTreeMap<usize, PathBuf>,
) -> RestoreConfig {
    let sockets = Sockets::of(files);
    RestoreConfig {
        replaced_disks,
        vsock: Some(sockets.device(cid)),
        control_socket: Some(sockets.control.clone()),
        // It may be old, and nothing takes its place.
        verify: Verify::Always,
        ..RestoreConfig::default()
    }
}

/// A VMM that is to be started.
pub struct Launch<'a> {
    /// A snapshot to restore the machine from, if it is not to boot.
    pub restore: Option<&'a Path>,
    /// Where what the guest's console says goes.
    pub console: &'a Path,
    /// Where what the VMM has to complain about goes.
    pub complaints: &'a Path,
}

impl Launch<'_> {
    /// Starts the machine that this document describes. It ends with this thread.
    pub fn start(&self, document: &impl Serialize) -> Result<Child, Error> {
        let document = serde_json::to_vec(document).map_err(cannot("describe the machine"))?;
        let program = Artifact::Vmm.find()?;
        let starting = || format!("start {}", program.display());
        let file = |path: &Path, append| {
            OpenOptions::new()
                .append(append)
                .write(true)
                .create(true)
                .truncate(!append)
                .mode(0o600)
                .open(path)
                .map_err(cannot(format!("open {}", path.display())))
        };
        let mut command = Command::new(&program);
        if let Some(snapshot) = self.restore {
            command.arg("--restore").arg(snapshot);
        }
        let mut vmm = command
            .args(["--config", "-", "--die-with-parent"])
            .stdin(Stdio::piped())
            .stdout(file(self.console, false)?)
            .stderr(file(self.complaints, true)?)
            .spawn()
            .map_err(cannot(starting()))?;
        // A machine that ends before it has read this says why itself.
        match vmm.stdin.take().map(|mut pipe| pipe.write_all(&document)) {
            Some(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => Err(cannot(starting())(e)),
            _ => Ok(vmm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_has_whole_processors_and_room_for_its_kernel() {
        let machine = |cpus, memory_mib| Machine { cpus, memory_mib };
        assert_eq!(Machine::for_limits(None, None), machine(1, 512));
        let mib64 = Some(64 << 20);
        assert_eq!(Machine::for_limits(Some(0.5), mib64), machine(1, 129));
        assert_eq!(Machine::for_limits(Some(1.5), Some(1)), machine(2, 65));
        assert_eq!(Machine::for_limits(Some(1e9), None).cpus, MAX_CPUS);
    }
}
