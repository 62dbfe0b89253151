//! Containers in a VM, through the vsock API: its requests, and the frames of its streams.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::vm::{Setup, Vm};
use crate::{artifacts, http};

/// The agent's port.
const API_PORT: u32 = 1024;
/// The serial of the disk that containers are made of.
const SERIAL: &str = "image";

/// The kinds of frames.
pub mod kind {
    /// Bytes for standard input.
    pub const STDIN: u8 = 0;
    /// Bytes of standard output.
    pub const STDOUT: u8 = 1;
    /// Bytes of standard error.
    pub const STDERR: u8 = 2;
    /// Why a program cannot be run.
    pub const ERROR: u8 = 3;
    /// How it ended.
    pub const EXIT: u8 = 4;
    /// The terminal's size.
    pub const RESIZE: u8 = 5;
}

/// A VM whose agent can make containers of busybox.
#[derive(Debug)]
pub struct Host {
    /// The VM.
    pub vm: Vm,
}

impl Host {
    /// Boots one.
    pub fn boot() -> Self {
        let disk =
            json!({"path": artifacts::test_container(), "read_only": true, "serial": SERIAL});
        let mut vm = Setup::agent().disk(disk).start();
        vm.wait_ready();
        Host { vm }
    }

    /// Asks the agent something.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = (!body.is_null()).then_some(body);
        http::request(self.vm.connect(API_PORT), method, path, body)
            .unwrap_or_else(|e| self.vm.fail(&format!("{method} {path}: {e}")))
    }

    /// Asks what must succeed.
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        match self.ask(method, path, body) {
            (status, answer) if status < 300 => answer,
            other => self.vm.fail(&format!("{method} {path}: {other:?}")),
        }
    }

    /// Sends a request whose answer is read by the caller.
    pub fn begin(&self, head: &str, body: &[u8]) -> UnixStream {
        let mut stream = self.vm.connect(API_PORT);
        let length = body.len();
        let head = format!("{head} HTTP/1.1\r\nContent-Length: {length}\r\nConnection: ");
        let rest = "close\r\n\r\n";
        let request = [head.as_bytes(), rest.as_bytes(), body].concat();
        stream.write_all(&request).expect("send a request");
        stream
    }

    /// Creates a container; `change` has a look at the request first.
    pub fn create(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Value {
        let mut wanted = json!({
            "id": id,
            "rootfs": {"lower": {"serial": SERIAL}, "upper": {"tmpfs": {"size_bytes": 64 << 20}}},
            "spec": {
                "ociVersion": "1.2.0",
                "process": process(args),
                "root": {"path": "rootfs"},
                "hostname": id,
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                    {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                     "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
                ],
                "linux": {"namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "network"}, {"type": "cgroup"},
                ]},
            },
        });
        change(&mut wanted);
        self.must("POST", "/v1/containers", &wanted)
    }

    /// Starts a container.
    pub fn start(&self, id: &str) {
        self.must("POST", &format!("/v1/containers/{id}/start"), &Value::Null);
    }

    /// Attaches to a container.
    pub fn attach(&self, id: &str, query: &str) -> Stream {
        self.upgrade(&format!("/v1/containers/{id}/attach{query}"), "")
    }

    /// Executes a program in a container.
    pub fn exec(&self, id: &str, args: &[&str], stdin: bool) -> Stream {
        let wanted = json!({"process": process(args), "stdin": stdin});
        self.upgrade(&format!("/v1/containers/{id}/exec"), &wanted.to_string())
    }

    /// Executes a script in a container and returns all it said.
    pub fn sh(&self, id: &str, script: &str) -> Said {
        self.exec(id, &["sh", "-c", script], false).read_to_end()
    }

    /// Posts with `Upgrade` and returns the connection behind the 101.
    pub fn upgrade(&self, path: &str, body: &str) -> Stream {
        upgrade(self.vm.connect(API_PORT), path, body).unwrap_or_else(|e| self.vm.fail(&e))
    }
}

/// Executes a script in a container whose agent is at the other end, and returns all it said. An error is what is
/// there instead.
pub fn sh(agent: UnixStream, id: &str, script: &str) -> Result<Said, String> {
    let wanted = json!({"process": process(&["sh", "-c", script]), "stdin": false});
    let path = format!("/v1/containers/{id}/exec");
    Ok(upgrade(agent, &path, &wanted.to_string())?.read_to_end())
}

/// Posts with `Upgrade` and returns the connection behind the 101.
fn upgrade(mut socket: UnixStream, path: &str, body: &str) -> Result<Stream, String> {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: bulkhead-stream\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    let failed = |e| format!("POST {path}: {e}");
    socket.write_all(request.as_bytes()).map_err(failed)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => return Err(format!("POST {path}: {other:?} after {head:?}")),
        }
    }
    match head.starts_with(b"HTTP/1.1 101 ") {
        true => Ok(Stream { socket }),
        false => Err(String::from_utf8_lossy(&head).into_owned()),
    }
}

/// A program for a container.
fn process(args: &[&str]) -> Value {
    json!({"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
}

/// A connection that carries frames.
#[derive(Debug)]
pub struct Stream {
    /// The connection.
    pub socket: UnixStream,
}

/// All that a stream brought.
#[derive(Debug, Default)]
pub struct Said {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Why it could not be run.
    pub error: String,
    /// How it ended.
    pub exit: Value,
}

impl Said {
    /// Standard output.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Stream {
    /// Sends a frame.
    pub fn send(&mut self, kind: u8, payload: &[u8]) {
        self.socket
            .write_all(&header(kind, payload.len()))
            .expect("send a frame");
        self.socket.write_all(payload).expect("send a frame");
    }

    /// The next frame; `None` at the end.
    pub fn frame(&mut self, payload: &mut Vec<u8>) -> Option<u8> {
        let mut header = [0; 8];
        match self.socket.read(&mut header).expect("read a frame") {
            0 => return None,
            n => self
                .socket
                .read_exact(&mut header[n..])
                .expect("read a frame"),
        }
        let [kind, 0, 0, 0, a, b, c, d] = header else {
            panic!("{header:?} is no frame's header");
        };
        payload.resize(u32::from_be_bytes([a, b, c, d]) as usize, 0);
        self.socket.read_exact(payload).expect("read a frame");
        Some(kind)
    }

    /// Reads until `enough`, or to the end.
    pub fn read_until(&mut self, enough: impl Fn(&Said) -> bool) -> Said {
        let mut said = Said::default();
        let mut payload = Vec::new();
        while !enough(&said) {
            match self.frame(&mut payload) {
                Some(kind::STDOUT) => said.stdout.append(&mut payload),
                Some(kind::STDERR) => said.stderr.append(&mut payload),
                Some(kind::ERROR) => said.error = String::from_utf8_lossy(&payload).into_owned(),
                Some(kind::EXIT) => said.exit = serde_json::from_slice(&payload).expect("an exit"),
                Some(other) => panic!("a frame of type {other}"),
                None => break,
            }
        }
        said
    }

    /// Reads to the end.
    pub fn read_to_end(&mut self) -> Said {
        self.read_until(|_| false)
    }
}

/// The beginning of a frame.
pub fn header(kind: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(length).expect("a short frame").to_be_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}
