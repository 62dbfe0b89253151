//! Takes a snapshot of a machine that runs, with the disks that it writes to.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_protocol::{API_PORT, path};
use bulkhead_vmm::config::{DiskConfig, RestoreConfig, VmConfig};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::copy::{copy_disk, interrupted};
use super::record::{Disk, FORMAT, Record, Stamp};
use crate::agent::check;
use crate::error::{Error, cannot};
use crate::folder::bytes_in;
use crate::http;

/// How long an answer of the VMM may take that has nothing to wait for.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to write all of a guest's memory to a slow disk.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(3600);
/// How long an agent gets to answer, if there is one.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// How long a VM gets to end once it was told to.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What a snapshot is to be taken of, and how.
pub struct Request<'a> {
    /// The directory with the machine's sockets.
    pub directory: &'a Path,
    /// Whether the machine ends with it.
    pub stop: bool,
    /// Whether the container in it was paused by its user.
    pub paused: bool,
    /// Whether somebody has asked for it to be given up.
    pub is_interrupted: &'a dyn Fn() -> bool,
}

/// What the VMM says of its machine.
#[derive(Deserialize)]
struct Vm {
    state: String,
    pid: u32,
    config: VmConfig,
    restored: Option<Restored>,
}

#[derive(Deserialize)]
struct Restored {
    added: RestoreConfig,
}

impl Vm {
    /// Its disks, of which none that it writes to is a block device.
    fn disks(&self) -> Result<Vec<Disk>, Error> {
        let added = self.restored.iter().flat_map(|it| &it.added.disks);
        let disks = self.config.disks.iter().chain(added).enumerate();
        disks
            .filter_map(|(index, disk)| Some((index, disk, disk.path.as_ref()?)))
            .map(|(index, disk, path)| self.describe(index, disk, path))
            .collect()
    }

    fn describe(&self, index: usize, disk: &DiskConfig, path: &Path) -> Result<Disk, Error> {
        let path = self.absolute(path)?;
        let metadata = fs::metadata(&path)
            .map_err(cannot(format!("find the VM's disk {}", path.display())))?;
        if metadata.file_type().is_block_device() && !disk.read_only {
            return Err(Error::Invalid(format!(
                "the VM writes to {}, which is a block device and cannot be part of a snapshot: give \
                 the VM an image in a file, or the device with `:ro`",
                path.display()
            )));
        }
        Ok(Disk {
            index,
            path,
            read_only: disk.read_only,
            stamp: (disk.read_only && metadata.is_file()).then(|| Stamp::from(&metadata)),
        })
    }

    /// A path as the VMM means it.
    fn absolute(&self, path: &Path) -> Result<PathBuf, Error> {
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        let link = format!("/proc/{}/cwd", self.pid);
        let folder = fs::read_link(link).map_err(cannot("find the folder that the VMM is in"))?;
        Ok(folder.join(path))
    }

    /// Whether our agent answers in the guest.
    fn has_agent(&self) -> Result<bool, Error> {
        let Some(vsock) = &self.config.vsock else {
            return Ok(false);
        };
        let connected = match vsock.ports.iter().find(|port| port.port == API_PORT) {
            Some(api) => {
                let socket = self.absolute(&api.path)?;
                http::connect(&socket, Some(AGENT_LIMIT))
            }
            // Nobody has asked for a socket of its own for it.
            None => {
                let socket = self.absolute(&vsock.path)?;
                http::connect_guest(&socket, API_PORT, Some(AGENT_LIMIT))
            }
        };
        let answer = connected.and_then(|stream| http::ask_on(stream, "GET", path::HEALTH, ""));
        Ok(answer.is_ok_and(|answer| answer.status < 300))
    }
}

/// A machine that stands still, and goes on when this is dropped.
struct Pause<'a> {
    control: &'a Path,
    goes_on: bool,
}

impl Pause<'_> {
    fn end(mut self) -> Result<(), Error> {
        if !std::mem::replace(&mut self.goes_on, false) {
            return Ok(());
        }
        tell(self.control, "/v1/resume", "", CONTROL_LIMIT)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if self.goes_on {
            // Something has failed already, and that is told.
            let _ = tell(self.control, "/v1/resume", "", CONTROL_LIMIT);
        }
    }
}

/// Takes a snapshot into `folder`, which must not be there yet, and has `put_in_place` keep it. The machine stands
/// still from its memory to its last disk, so that both are of the same moment.
pub fn take(
    request: &Request<'_>,
    folder: &Path,
    put_in_place: &dyn Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let control = &*request.directory.join("control.sock");
    let answer =
        http::ask(control, "GET", "/v1/vm", "", CONTROL_LIMIT).map_err(cannot(format!(
            "reach a VM whose sockets are in {} (where `bulkhead boot --vsock` has them)",
            request.directory.display()
        )))?;
    let vm: Vm = serde_json::from_slice(&check(answer)?)
        .map_err(io::Error::from)
        .map_err(cannot("understand the VMM"))?;
    let disks = vm.disks()?;
    let was_paused = vm.state == "paused";
    let agent = !was_paused && vm.has_agent()?;
    let go_on = || match (request.is_interrupted)() {
        true => Err(interrupted()),
        false => Ok(()),
    };
    go_on()?;

    if !was_paused {
        tell(control, "/v1/pause", "", CONTROL_LIMIT)?;
    }
    let mut pause = Pause {
        control,
        goes_on: !was_paused,
    };
    let created = Timestamp::now();
    let body = json!({ "path": folder }).to_string();
    tell(control, "/v1/snapshot", &body, SNAPSHOT_LIMIT)?;
    go_on()?;
    for disk in disks.iter().filter(|disk| !disk.read_only) {
        let copy = folder.join(disk.copy_name());
        copy_disk(&disk.path, &copy, request.is_interrupted)?;
    }
    let record = Record {
        format: FORMAT,
        created,
        cpus: vm.config.cpus,
        memory_mib: vm.config.memory_mib,
        size_bytes: bytes_in(folder),
        agent,
        paused: request.paused,
        disks,
    };
    record.write(folder)?;
    if !request.stop {
        // It need not wait for the disk.
        pause.end()?;
        return put_in_place();
    }
    put_in_place()?;
    // From here on what is kept is what counts: the machine must not go beyond it.
    pause.goes_on = false;
    end(control)
}

/// Ends the machine, and waits until it has.
fn end(control: &Path) -> Result<(), Error> {
    // One that does not answer was too quick, or still answers below.
    if let Ok(answer) = http::ask(control, "PUT", "/v1/shutdown", "", CONTROL_LIMIT) {
        check(answer)?;
    }
    let until = Instant::now() + END_LIMIT;
    while UnixStream::connect(control).is_ok() {
        if Instant::now() > until {
            return Err(Error::Invalid(
                "the snapshot is made, but the VM does not end: it stays paused".to_owned(),
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn tell(control: &Path, target: &str, body: &str, limit: Duration) -> Result<(), Error> {
    let answer = http::ask(control, "PUT", target, body, limit)
        .map_err(cannot(format!("ask the VMM for {target}")))?;
    check(answer).map(drop)
}
