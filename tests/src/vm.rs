//! A VM under test: one `bulkhead-vmm` process, its sockets, and everything it says.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lane::{note, patience};
use crate::{artifacts, http, process, vsock};

/// The host's port on which a guest reports that it is ready.
const READY_PORT: u32 = 1025;

/// A VM's document, and the folder its files and sockets are in.
#[derive(Debug)]
pub struct Setup {
    config: Value,
    dir: TempDir,
}

impl Setup {
    /// A VM with the project's kernel, 128 MiB, a socket device and a control socket, but no root.
    pub fn bare() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("make a folder for the VM");
        let config = json!({
            "kernel": {"path": artifacts::kernel(), "cmdline": ""},
            "memory_mib": 128,
            "disks": [],
            "nets": [],
            "vsock": {"cid": 3, "path": dir.path().join("vsock.sock")},
            "control_socket": dir.path().join("control.sock"),
        });
        Setup { config, dir }
    }

    /// A VM whose PID 1 is the test guest.
    pub fn test_guest() -> Self {
        // Warnings are shown: they cost nothing where there are none.
        Self::bare()
            .root(&artifacts::test_image())
            .cmdline("loglevel=5")
    }

    /// A VM whose PID 1 is the agent.
    pub fn agent() -> Self {
        Self::bare().root(&artifacts::agent_image())
    }

    /// Gives the VM a read-only root.
    fn root(self, image: &Path) -> Self {
        self.disk(json!({"path": image, "read_only": true}))
            .cmdline("root=/dev/vda ro")
    }

    /// Sets one top-level field.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Adds to the kernel's command line.
    pub fn cmdline(mut self, more: &str) -> Self {
        let cmdline = self.config["kernel"]["cmdline"].as_str().unwrap_or("");
        self.config["kernel"]["cmdline"] = format!("{cmdline} {more}").trim().into();
        self
    }

    /// Boots another kernel.
    pub fn kernel(mut self, path: &Path) -> Self {
        self.config["kernel"]["path"] = json!(path);
        self
    }

    /// Boots with an initial RAM disk.
    pub fn initrd(mut self, path: &Path) -> Self {
        self.config["kernel"]["initrd"] = json!(path);
        self
    }

    /// Adds a disk.
    pub fn disk(self, disk: Value) -> Self {
        self.push("disks", disk)
    }

    /// Adds a network card.
    pub fn net(self, net: Value) -> Self {
        self.push("nets", net)
    }

    fn push(mut self, list: &str, item: Value) -> Self {
        if let Some(items) = self.config[list].as_array_mut() {
            items.push(item);
        }
        self
    }

    /// A path for a file of the VM's; it goes when the VM does.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The document.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Starts the VMM. It runs in the network namespace of this thread, and ends with this thread.
    pub fn start(self) -> Vm {
        let ready = vsock::listen(&self.path("vsock.sock"), READY_PORT).expect("listen for ready");
        let file = self.path("vm.json");
        fs::write(&file, self.config.to_string()).expect("write the configuration");
        Vm {
            process: Process::start(&file, None),
            ready,
            dir: self.dir,
        }
    }
}

/// A VM that goes on from a snapshot: what is different in it, and the folder its sockets are in.
#[derive(Debug)]
pub struct Restore {
    config: Value,
    dir: TempDir,
}

impl Restore {
    /// With the sockets that VMs of [`Setup`] have, in a folder of its own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("make a folder for the VM");
        let config = json!({
            "vsock": {"cid": 3, "path": dir.path().join("vsock.sock")},
            "control_socket": dir.path().join("control.sock"),
        });
        Restore { config, dir }
    }

    /// Sets one top-level field.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// A path for a file of the VM's; it goes when the VM does.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the VMM on the snapshot in `folder`. It ends with this thread.
    pub fn start(self, folder: &Path) -> Vm {
        let ready = vsock::listen(&self.path("vsock.sock"), READY_PORT).expect("listen for ready");
        let file = self.path("vm.json");
        fs::write(&file, self.config.to_string()).expect("write the configuration");
        Vm {
            process: Process::start(&file, Some(folder)),
            ready,
            dir: self.dir,
        }
    }
}

/// A started VM. Dropping it kills its process and removes its folder.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    ready: UnixListener,
    dir: TempDir,
}

/// A `bulkhead-vmm` and all it says.
#[derive(Debug)]
struct Process {
    child: Child,
    started: Instant,
    stdin: Option<ChildStdin>,
    console: Transcript,
    stderr: Transcript,
}

impl Process {
    fn start(config: &Path, snapshot: Option<&Path>) -> Self {
        let mut command = Command::new(artifacts::vmm());
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(folder) = snapshot {
            command.arg("--restore").arg(folder);
        }
        process::die_with_parent(&mut command);
        let started = Instant::now();
        let mut child = command.spawn().expect("start bulkhead-vmm");
        Process {
            started,
            stdin: child.stdin.take(),
            console: Transcript::of(child.stdout.take()),
            stderr: Transcript::of(child.stderr.take()),
            child,
        }
    }
}

impl Vm {
    /// Kills the process and starts another with the same document in the same folder, where the
    /// sockets of the killed one still lie.
    pub fn kill_and_start_again(&mut self) {
        self.kill();
        self.process = Process::start(&self.path("vm.json"), None);
    }

    /// Waits for PID 1's report, and returns it and how long it took from the process's start.
    pub fn wait_ready(&mut self) -> (Value, Duration) {
        let deadline = Instant::now() + patience();
        let stream = loop {
            match vsock::accept_now(&self.ready, patience()) {
                Ok(Some(stream)) => break stream,
                Ok(None) => std::thread::sleep(Duration::from_millis(4)),
                Err(e) => self.fail(&format!("waiting for the guest: {e}")),
            }
            if let Ok(Some(status)) = self.process.child.try_wait() {
                self.fail(&format!(
                    "the VMM ended with {status} before the guest was ready"
                ));
            }
            if Instant::now() > deadline {
                self.fail("the guest is not ready");
            }
        };
        let took = self.process.started.elapsed();
        let line = read_line(stream);
        match line.as_ref().map(|line| serde_json::from_str(line)) {
            Ok(Ok(report)) => (report, took),
            other => self.fail(&format!("the guest's report cannot be read: {other:?}")),
        }
    }

    /// Takes a snapshot into `folder`.
    pub fn snapshot(&self, folder: &Path) {
        self.control("PUT", "/v1/snapshot", Some(&json!({"path": folder})));
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// A path in the VM's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The socket device's path.
    pub fn vsock_path(&self) -> PathBuf {
        self.path("vsock.sock")
    }

    /// Connects to a port of the guest.
    pub fn connect(&self, port: u32) -> UnixStream {
        let deadline = Instant::now() + patience();
        // One that was just restored has its sockets in a moment, if it could be.
        while !self.vsock_path().exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        vsock::connect_when_listening(&self.vsock_path(), port, patience())
            .unwrap_or_else(|e| self.fail(&format!("connecting to port {port}: {e}")))
    }

    /// Asks the VMM something over its control socket; anything but success fails the test.
    pub fn control(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        match self.try_control(method, path, body) {
            Ok((status, answer)) if status < 300 => answer,
            other => self.fail(&format!("{method} {path}: {other:?}")),
        }
    }

    /// Asks the VMM something over its control socket.
    pub fn try_control(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        self.control_within(patience(), method, path, body)
    }

    fn control_within(
        &self,
        timeout: Duration,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        let stream = UnixStream::connect(self.path("control.sock"))?;
        stream.set_read_timeout(Some(timeout))?;
        http::request(stream, method, path, body)
    }

    /// Types on the console.
    pub fn type_in(&mut self, text: &str) {
        let result = match &mut self.process.stdin {
            Some(stdin) => stdin.write_all(text.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        result.unwrap_or_else(|e| self.fail(&format!("typing on the console: {e}")));
    }

    /// Waits until the console has shown `text`.
    pub fn wait_console(&self, text: &str) {
        if !self.process.console.wait_for(text, patience()) {
            self.fail(&format!("the console has not shown {text:?}"));
        }
    }

    /// What the console has shown.
    pub fn console(&self) -> String {
        self.process.console.text()
    }

    /// What the VMM has said on its stderr.
    pub fn stderr(&self) -> String {
        self.process.stderr.text()
    }

    /// Waits for the process's end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + patience();
        loop {
            match self.process.child.try_wait() {
                Ok(Some(status)) => {
                    self.process.console.wait_end();
                    self.process.stderr.wait_end();
                    return status;
                }
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => self.fail("the VMM has not ended"),
                Err(e) => self.fail(&format!("waiting for the VMM: {e}")),
            }
        }
    }

    /// Waits for the process's end and fails unless its exit code is `code`.
    pub fn expect_exit(&mut self, code: i32) {
        let status = self.wait_exit();
        if status.code() != Some(code) {
            self.fail(&format!(
                "the VMM ended with {status}, not with code {code}"
            ));
        }
    }

    /// Kills the process as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.process.child.kill();
        let _ = self.process.child.wait();
    }

    /// Fails the test, with all that was heard of the VM.
    pub fn fail(&self, what: &str) -> ! {
        // At once, and not with the summary at the end: there may be no end.
        let soon = Duration::from_secs(10);
        let metrics = match self.control_within(soon, "GET", "/v1/metrics", None) {
            Ok((_, metrics)) => metrics.to_string(),
            // The process may be gone, and then its end says more.
            Err(e) => e.to_string(),
        };
        note(&format!(
            "{what}\n--- console ---\n{}\n--- bulkhead-vmm ---\n{}\n--- metrics ---\n{metrics}\n---",
            tail(&self.console()),
            tail(&self.stderr()),
        ));
        panic!("{what}");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last part of a long text.
fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(8 << 10);
    let from = (from..).find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[from..]
}

fn read_line(mut stream: UnixStream) -> io::Result<String> {
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    Ok(line)
}

/// All that a stream has said so far, read by a thread of its own.
#[derive(Clone, Debug)]
struct Transcript(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let shared = Arc::new(Shared {
            said: Mutex::default(),
            changed: Condvar::new(),
        });
        let transcript = Transcript(Arc::clone(&shared));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            if let Some(mut stream) = stream {
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let mut said = shared.said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.bytes.extend_from_slice(&buffer[..n]);
                    shared.changed.notify_all();
                }
            }
            let mut said = shared.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.ended = true;
            shared.changed.notify_all();
        });
        transcript
    }

    fn text(&self) -> String {
        let said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said.bytes).into_owned()
    }

    fn wait_for(&self, text: &str, timeout: Duration) -> bool {
        let has = |said: &Said| {
            said.bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        let said = self.wait_until(timeout, |said| has(said) || said.ended);
        said && has(&self.0.said.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait_end(&self) {
        // Bounded, in case a child of the process still holds the stream.
        self.wait_until(Duration::from_secs(10), |said| said.ended);
    }

    fn wait_until(&self, timeout: Duration, condition: impl Fn(&Said) -> bool) -> bool {
        let said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self
            .0
            .changed
            .wait_timeout_while(said, timeout, |said| !condition(said));
        let (_said, timed_out) = result.unwrap_or_else(PoisonError::into_inner);
        !timed_out.timed_out()
    }
}
