//! Bundles of busybox, and the runtime to run them by.

// Each test program uses a part.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A bundle, and a runtime that knows no other. Containers end with it.
pub struct Runtime {
    root: tempfile::TempDir,
    bundle: tempfile::TempDir,
    /// Whose mounts it sees.
    mounts_of: Option<u32>,
}

impl Runtime {
    pub fn new() -> Runtime {
        let bundle = tempfile::tempdir().unwrap();
        busybox(&bundle.path().join("rootfs"));
        Runtime {
            root: tempfile::tempdir().unwrap(),
            bundle,
            mounts_of: None,
        }
    }

    /// One that sees the mounts of a process.
    pub fn among_mounts_of(process: u32) -> Runtime {
        let mut runtime = Runtime::new();
        runtime.mounts_of = Some(process);
        runtime
    }

    pub fn bundle(&self) -> &Path {
        self.bundle.path()
    }

    /// A path in the container's root filesystem, outside.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.bundle().join("rootfs").join(path)
    }

    pub fn read(&self, path: &str) -> String {
        let path = self.inside(path);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn configure(&self, config: &Value) {
        fs::write(self.bundle().join("config.json"), config.to_string()).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_bulkhead-runc");
        let mut command = match self.mounts_of {
            None => Command::new(program),
            Some(process) => {
                let mut command = Command::new("nsenter");
                let mounts = format!("--mount=/proc/{process}/ns/mnt");
                let folder = format!("--wd={}", self.bundle().display());
                command.args([&mounts, &folder, "--", program]);
                command
            }
        };
        command.arg("--root").arg(self.root.path()).args(arguments);
        command.current_dir(self.bundle());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        // Files, since the container keeps what `create` has open: the end of a pipe would come with its own.
        let [stdout, stderr] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        let status = self
            .command(arguments)
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .status()
            .unwrap();
        let [stdout, stderr] = [stdout, stderr].map(|mut file| {
            let mut text = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut text).unwrap();
            text
        });
        Output {
            status,
            stdout,
            stderr,
        }
    }

    /// What it writes to standard error is returned.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The message of the error.
    pub fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!message.is_empty(), "{arguments:?}");
        message
    }

    pub fn state(&self, id: &str) -> Value {
        let output = self.run(&["state", id]);
        assert!(output.status.success(), "{output:?}");
        let mut state: Value = serde_json::from_slice(&output.stdout).unwrap();
        // What the specification does not know of.
        for member in ["rootfs", "created", "owner"] {
            assert!(state.as_object_mut().unwrap().remove(member).is_some());
        }
        state
    }

    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().into()
    }

    pub fn await_end(&self, id: &str) {
        wait_for(|| self.status(id) == "stopped");
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for container in fs::read_dir(self.root.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let id = container.file_name();
            self.run(&["delete", "--force", &id.to_string_lossy()]);
        }
    }
}

/// Makes a root filesystem of busybox.
pub fn busybox(rootfs: &Path) {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    let program =
        std::env::var_os("BULKHEAD_BUSYBOX").map_or_else(|| "/bin/busybox".into(), PathBuf::from);
    fs::copy(&program, rootfs.join("bin/busybox"))
        .unwrap_or_else(|e| panic!("{}: {e}; run scripts/setup", program.display()));
    for name in [
        "sh", "cat", "echo", "env", "false", "id", "ls", "readlink", "sleep", "stty", "true", "tty",
    ] {
        symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
}

/// The configuration of a shell command.
pub fn config(command: &str) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh", "-c", command], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}],
        "annotations": {"org.example.key": "value"},
        "linux": {"namespaces": [
            {"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]}
    })
}

/// Whether there is no such process, or only somebody who has not waited for it yet.
pub fn has_ended(pid: &str) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    text.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Waits for what is sure to come; a minute is for machines that have much else to do.
pub fn wait_for(mut condition: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("it did not come to pass");
}
