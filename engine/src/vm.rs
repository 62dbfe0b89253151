//! The virtual machine of a container: its devices, and its process.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bulkhead_protocol::API_PORT;
use bulkhead_vmm::config::{
    AssistConfig, ConsoleConfig, DiskConfig, KernelConfig, MAX_CPUS, PortConfig, VmConfig,
    VsockConfig,
};

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

/// The machine's document.
pub fn describe(config: &Config, files: &Files, volumes: &Attached) -> Result<VmConfig, Missing> {
    let disk = |path: &Path, read_only, serial: Option<&str>| DiskConfig {
        path: path.to_owned(),
        read_only,
        serial: serial.map(str::to_owned),
        rate_limit: None,
    };
    let mut disks = vec![
        disk(&Artifact::AgentImage.find()?, true, None),
        disk(&config.disk, true, Some(IMAGE_SERIAL)),
    ];
    if let Upper::Disk { .. } = config.upper {
        disks.push(disk(&files.upper(), false, Some(UPPER_SERIAL)));
    }
    disks.extend(volumes.disks.iter().cloned());
    Ok(VmConfig {
        cpus: config.machine.cpus,
        memory_mib: config.machine.memory_mib,
        kernel: KernelConfig {
            path: Artifact::Kernel.find()?,
            initrd: None,
            cmdline: "rootfstype=erofs init=/init root=/dev/vda ro".to_owned(),
        },
        disks,
        nets: Vec::new(),
        shares: volumes.shares.clone(),
        vsock: Some(VsockConfig {
            cid: 3,
            path: files.vsock(),
            ports: vec![PortConfig {
                port: API_PORT,
                path: files.api(),
            }],
        }),
        console: ConsoleConfig::Stdio,
        console_size: None,
        serial: false,
        rng: true,
        balloon: None,
        spare_slots: 0,
        control_socket: Some(files.control()),
        assist: AssistConfig::Auto,
    })
}

/// Starts the machine. It ends with this thread.
pub fn spawn(config: &Config, files: &Files, volumes: &Attached) -> Result<Child, Error> {
    let machine = describe(config, files, volumes)?;
    let document = serde_json::to_vec(&machine).map_err(cannot("describe the machine"))?;
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
    let mut vmm = Command::new(&program)
        .args(["--config", "-", "--die-with-parent"])
        .stdin(Stdio::piped())
        .stdout(file(&files.console(), false)?)
        .stderr(file(&files.complaints(), true)?)
        .spawn()
        .map_err(cannot(starting()))?;
    // A machine that ends before it has read this says why itself.
    match vmm.stdin.take().map(|mut pipe| pipe.write_all(&document)) {
        Some(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => Err(cannot(starting())(e)),
        _ => Ok(vmm),
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
