//! The agent's program as an ordinary process, and clients of it.
#![allow(dead_code, reason = "each test program uses what it needs")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown::Write as Outgoing;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bulkhead_protocol::Exit;
use bulkhead_protocol::frame::{self, Decoder, Kind, Part};
use serde_json::Value;

pub const AGENT: &str = env!("CARGO_BIN_EXE_bulkhead-agent");
/// Far more than anything here takes; only so that a bug does not hang the tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Agent {
    pub process: Child,
    pub socket: PathBuf,
    pub dir: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("api.sock");
        let process = Command::new(AGENT)
            .args(["--listen", &format!("unix:{}", socket.display())])
            .spawn()
            .expect("agent");
        let agent = Agent {
            process,
            socket,
            dir,
        };
        let start = Instant::now();
        while UnixStream::connect(&agent.socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        stream
    }

    /// Sends `request`, ends, and returns all that comes back.
    pub fn exchange(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The agent may refuse and stop reading before all is written.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Outgoing);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            // What it had said before that counts.
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("answer: {e}"),
        }
        answer
    }

    /// Asks and returns the status and the body.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
        let answer = String::from_utf8(self.exchange(request.as_bytes())).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
        (status.expect("status"), body)
    }

    /// Asks what must succeed.
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// Posts with `Upgrade` and returns the connection, behind the 101.
    pub fn upgrade(&self, path: &str, body: &Value) -> Stream {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut socket = self.connect();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: bulkhead-stream\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        socket.write_all(request.as_bytes()).expect("request");
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let exec = head.lines().find_map(|l| l.strip_prefix("Bulkhead-Exec: "));
        Stream {
            exec: exec.unwrap_or_default().to_owned(),
            socket,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // With its containers.
        if let Ok(mut stream) = UnixStream::connect(&self.socket) {
            let body = "{\"grace_ms\":0}";
            let length = body.len();
            let request =
                format!("POST /v1/shutdown HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(request.as_bytes());
            let start = Instant::now();
            while start.elapsed() < PATIENCE {
                if !matches!(self.process.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("UTF-8")
}

/// A connection that carries frames.
pub struct Stream {
    pub socket: UnixStream,
    pub exec: String,
}

/// All that a stream brought.
#[derive(Debug, Default)]
pub struct Brought {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub error: Option<String>,
    pub exit: Option<Exit>,
    pub started: bool,
}

impl Brought {
    pub fn code(&self) -> u8 {
        self.exit
            .as_ref()
            .unwrap_or_else(|| panic!("no exit: {self:?}"))
            .code
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Stream {
    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        let frame = frame::encode(kind, payload);
        self.socket.write_all(&frame).expect("send a frame");
    }

    /// Reads until `enough` or the end.
    pub fn read_until(&mut self, enough: impl Fn(&Brought) -> bool) -> Brought {
        let mut brought = Brought::default();
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; 256 << 10];
        while !enough(&brought) {
            let n = self.socket.read(&mut buffer).expect("read frames");
            if n == 0 {
                assert!(decoder.is_between_frames());
                break;
            }
            let mut input = &buffer[..n];
            while let Some(part) = decoder.next(&mut input).expect("frames") {
                assert!(brought.exit.is_none(), "something follows the exit");
                match part {
                    Part::Data(Kind::Stdout, data) => brought.stdout.extend(data),
                    Part::Data(Kind::Stderr, data) => brought.stderr.extend(data),
                    Part::Message(Kind::Error, text) => {
                        brought.error = Some(String::from_utf8(text).expect("UTF-8"));
                    }
                    Part::Message(Kind::Exit, exit) => {
                        brought.exit = Some(serde_json::from_slice(&exit).expect("exit"));
                    }
                    Part::Message(Kind::Started, nothing) => {
                        assert!(nothing.is_empty() && !brought.started);
                        brought.started = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        brought
    }

    pub fn read_to_end(&mut self) -> Brought {
        self.read_until(|_| false)
    }
}
