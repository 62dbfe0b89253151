//! Another VMM, to measure ours against: Firecracker, told what to do over its API socket.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lane::patience;
use crate::{artifacts, http, process, socket, vsock};

/// The host's port on which the agent reports that it is ready.
const READY_PORT: u32 = 1025;

/// The binary to measure, if there is one: `BULKHEAD_FIRECRACKER`.
pub fn binary() -> Option<PathBuf> {
    std::env::var_os("BULKHEAD_FIRECRACKER").map(PathBuf::from)
}

/// A `firecracker`, and the folder its sockets are in. Dropping it kills the one and removes the other.
#[derive(Debug)]
pub struct Firecracker {
    child: Child,
    dir: TempDir,
}

/// A guest of Firecracker's at rest.
#[derive(Debug)]
pub struct Snapshot {
    state: PathBuf,
    memory: PathBuf,
}

impl Firecracker {
    /// Starts `binary`, which then waits to be told what to run. It ends with this thread.
    fn start(binary: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()?;
        let log = File::create(dir.path().join("log"))?;
        let mut command = Command::new(binary);
        command
            // Ours installs no filter, and so takes no time for it.
            .args(["--no-seccomp", "--level", "Error", "--api-sock"])
            .arg(dir.path().join("api.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        process::die_with_parent(&mut command);
        let child = command.spawn()?;
        Ok(Firecracker { child, dir })
    }

    /// Boots the agent's guest, until it is ready: the kernel, the root, the memory and the devices that
    /// [`Setup::agent`](crate::vm::Setup::agent) has, as far as Firecracker has them too, and `cmdline`, with
    /// which our VMM booted it.
    pub fn boot(binary: &Path, cmdline: &str) -> io::Result<Self> {
        let mut vm = Self::start(binary)?;
        let ready = vsock::listen(&vm.vsock_path(), READY_PORT)?;
        for (path, body) in [
            (
                "/boot-source",
                json!({"kernel_image_path": artifacts::kernel(), "boot_args": parameters(cmdline)}),
            ),
            (
                "/machine-config",
                json!({"vcpu_count": 1, "mem_size_mib": 128}),
            ),
            (
                "/drives/root",
                json!({
                    "drive_id": "root",
                    "path_on_host": artifacts::agent_image(),
                    "is_root_device": true,
                    "is_read_only": true,
                }),
            ),
            (
                "/vsock",
                json!({"guest_cid": 3, "uds_path": vm.vsock_path()}),
            ),
            ("/entropy", json!({})),
            ("/actions", json!({"action_type": "InstanceStart"})),
        ] {
            vm.ask("PUT", path, &body)?;
        }
        let deadline = Instant::now() + patience();
        while vsock::accept_now(&ready, patience())?.is_none() {
            vm.expect_alive()?;
            if Instant::now() > deadline {
                return Err(io::Error::other("Firecracker's guest is not ready"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(vm)
    }

    /// Saves the guest, whole, in `folder`, which is there already, and ends it.
    pub fn snapshot(mut self, folder: &Path) -> io::Result<Snapshot> {
        let snapshot = Snapshot {
            state: folder.join("state"),
            memory: folder.join("memory"),
        };
        self.ask("PATCH", "/vm", &json!({"state": "Paused"}))?;
        let create = json!({
            "snapshot_type": "Full",
            "snapshot_path": snapshot.state,
            "mem_file_path": snapshot.memory,
        });
        self.ask("PUT", "/snapshot/create", &create)?;
        Ok(snapshot)
    }

    /// Goes on from a snapshot, in a process of its own. The guest runs when this returns.
    pub fn restore(binary: &Path, snapshot: &Snapshot) -> io::Result<Self> {
        let mut vm = Self::start(binary)?;
        let load = json!({
            "snapshot_path": snapshot.state,
            "mem_backend": {"backend_type": "File", "backend_path": snapshot.memory},
            "vsock_override": {"uds_path": vm.vsock_path()},
            "resume_vm": true,
        });
        vm.ask("PUT", "/snapshot/load", &load)?;
        Ok(vm)
    }

    /// The socket device's path; `CONNECT <port>` there leads to the guest, as with ours.
    pub fn vsock_path(&self) -> PathBuf {
        self.dir.path().join("vsock.sock")
    }

    /// Asks something over the API socket, as soon as that is there.
    fn ask(&mut self, method: &str, path: &str, body: &Value) -> io::Result<()> {
        let api = self.dir.path().join("api.sock");
        let stream = loop {
            match socket::connect_when_there(&api, Duration::from_secs(5)) {
                Ok(stream) => break stream,
                Err(_) => self.expect_alive()?,
            }
        };
        stream.set_read_timeout(Some(patience()))?;
        let answer = http::request(stream, method, path, Some(body));
        match answer {
            Ok((200..300, _)) => Ok(()),
            other => Err(self.failure(&format!("{method} {path}: {other:?}"))),
        }
    }

    fn expect_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failure(&format!("it ended with {status}"))),
        }
    }

    /// What happened, and what it said itself.
    fn failure(&self, what: &str) -> io::Error {
        let said = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        io::Error::other(format!("Firecracker: {what}\n{}", said.trim_end()))
    }
}

impl Drop for Firecracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Snapshot {
    /// What it takes of the disk, in KiB.
    pub fn kib(&self) -> u64 {
        let files = [&self.state, &self.memory];
        let blocks = |file: &PathBuf| fs::metadata(file).map_or(0, |m| m.blocks());
        files.into_iter().map(blocks).sum::<u64>() / 2
    }
}

/// Of a command line of ours, what Firecracker's machine can be told, too: not where devices are, which it adds
/// itself with the root, not of our port, and no console that it does not have.
fn parameters(cmdline: &str) -> String {
    let is_ours = |word: &&str| {
        let (name, _) = word.split_once('=').unwrap_or((word, ""));
        matches!(
            name,
            "virtio_mmio.device" | "bulkhead.exit_port" | "console" | "root" | "ro"
        )
    };
    let words: Vec<&str> = cmdline
        .split_whitespace()
        .filter(|word| !is_ours(word))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_when_they_name_devices_of_ours_then_they_are_left_out() {
        assert_eq!(
            parameters(
                "quiet reboot=k bulkhead.exit_port=0x501 console=hvc0 8250.nr_uarts=0 \
                 virtio_mmio.device=4K@0xd0000000:5 root=/dev/vda ro"
            ),
            "quiet reboot=k 8250.nr_uarts=0"
        );
    }
}
