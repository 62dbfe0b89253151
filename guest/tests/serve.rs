//! The agent's program, as an ordinary process that serves its API on a Unix socket: what a client
//! on the host meets, without a VM.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown::Write as Outgoing;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bulkhead_protocol::{ApiError, ErrorCode, Health, HealthStatus, Info};

const AGENT: &str = env!("CARGO_BIN_EXE_bulkhead-agent");
/// Far more than anything here takes; only so that a bug does not hang the tests.
const PATIENCE: Duration = Duration::from_secs(60);

struct Agent {
    process: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("api.sock");
        let process = Command::new(AGENT)
            .args(["--listen", &format!("unix:{}", socket.display())])
            .spawn()
            .expect("agent");
        let agent = Agent {
            process,
            socket,
            _dir: dir,
        };
        let start = Instant::now();
        while UnixStream::connect(&agent.socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream
    }

    /// Sends `request`, ends, and returns all that comes back.
    fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // The agent may refuse and stop reading before all is written.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Outgoing);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answer");
        String::from_utf8(answer).expect("UTF-8")
    }

    fn is_well(&self) {
        let answer = self.exchange(b"GET /v1/health HTTP/1.0\r\n\r\n");
        let health: Health = body(&answer);
        assert_eq!(health.status, HealthStatus::Ok);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn body<'a, T: serde::Deserialize<'a>>(answer: &'a str) -> T {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

/// Reads one answer of a connection that stays open.
fn read_answer(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("UTF-8");
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("Content-Length: "))
        .and_then(|n| n.parse().ok())
        .expect("length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("body");
    head + &String::from_utf8(body).expect("UTF-8")
}

#[test]
fn version_when_asked_then_printed_and_without_arguments_refused() {
    let version = Command::new(AGENT).arg("--version").output().expect("run");
    let line = format!("bulkhead-agent {}\n", env!("CARGO_PKG_VERSION"));
    assert!(version.status.success());
    assert_eq!(String::from_utf8_lossy(&version.stdout), line);

    let bare = Command::new(AGENT).output().expect("run");
    assert_eq!(bare.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bare.stderr).starts_with("bulkhead-agent: "));
}

#[test]
fn socket_path_when_taken_then_one_sentence_and_status_1() {
    let out = Command::new(AGENT)
        .args(["--listen", "unix:/proc/nowhere"])
        .output()
        .expect("run");
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&out.stderr).lines().count(), 1);
}

#[test]
fn info_when_asked_then_what_uname_says() {
    let agent = Agent::start();
    let answer = agent.exchange(b"GET /v1/info HTTP/1.1\r\nHost: guest\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    let info: Info<'_> = body(&answer);
    let uname = |flag| {
        let out = Command::new("uname").arg(flag).output().expect("uname");
        String::from_utf8(out.stdout)
            .expect("UTF-8")
            .trim()
            .to_owned()
    };
    assert_eq!(info.kernel.release, uname("-r"));
    assert_eq!(info.kernel.version, uname("-v"));
    assert_eq!(info.hostname, uname("-n"));
    assert!(info.uptime_ns > info.timings.ready_ns);
}

#[test]
fn connection_when_kept_then_serves_request_after_request() {
    let agent = Agent::start();
    let mut stream = agent.connect();
    for _ in 0..100 {
        stream
            .write_all(b"GET /v1/health HTTP/1.1\r\n\r\n")
            .expect("request");
        assert!(read_answer(&mut stream).ends_with("{\"status\":\"ok\",\"api\":1}\n"));
    }
}

#[test]
fn requests_when_pipelined_then_answered_in_order() {
    let agent = Agent::start();
    let requests: String = (0..300)
        .map(|i| format!("GET /{i} HTTP/1.1\r\n\r\n"))
        .collect();
    let answers = agent.exchange(requests.as_bytes());
    let mut rest = answers.as_str();
    for i in 0..300 {
        let said = format!("There is no /{i}.");
        let at = rest.find(&said).unwrap_or_else(|| panic!("{i}: {rest}"));
        rest = &rest[at + said.len()..];
    }
}

#[test]
fn hostile_requests_when_sent_then_refused_and_the_agent_lives() {
    let agent = Agent::start();
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let endless = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(100_000));
    let cases: [(&[u8], u16, ErrorCode); 8] = [
        (b"\0\xff\xfe\r\n\r\n", 400, ErrorCode::BadRequest),
        (
            b"GET / HTTP/1.1\r\n broken\r\n\r\n",
            400,
            ErrorCode::BadRequest,
        ),
        (b"GET /v1/health HTTP/1.1\r\nA:", 400, ErrorCode::BadRequest),
        (b"GET / HTTP/3.0\r\n\r\n", 505, ErrorCode::NotSupported),
        (
            b"POST /v1/shutdown HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            ErrorCode::NotSupported,
        ),
        (
            b"POST /v1/shutdown HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            413,
            ErrorCode::PayloadTooLarge,
        ),
        (long_path.as_bytes(), 431, ErrorCode::HeadersTooLarge),
        (endless.as_bytes(), 431, ErrorCode::HeadersTooLarge),
    ];
    for (request, status, code) in cases {
        let answer = agent.exchange(request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert_eq!(body::<ApiError<'_>>(&answer).code, code);
        assert!(answer.contains("Connection: close\r\n"));
    }
    agent.is_well();
}

#[test]
fn clients_when_too_many_sit_silent_then_new_ones_are_still_served() {
    let agent = Agent::start();
    let mut silent: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = agent.connect();
            stream.write_all(b"GET /v1/hea").expect("write");
            stream
        })
        .collect();
    agent.is_well();
    // The earliest was shown the door, the latest still has its place.
    match silent[0].read(&mut [0]) {
        Ok(0) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    let last = silent.last_mut().expect("some");
    last.write_all(b"lth HTTP/1.1\r\n\r\n").expect("write");
    assert!(read_answer(last).starts_with("HTTP/1.1 200 "));
}

#[test]
fn client_when_it_never_reads_then_only_it_waits() {
    let agent = Agent::start();
    let mut greedy = agent.connect();
    greedy.set_nonblocking(true).expect("nonblocking");
    let requests = b"GET /v1/info HTTP/1.1\r\n\r\n".repeat(1000);
    // Until neither side's buffers take any more.
    let stuck = Instant::now();
    loop {
        match greedy.write(&requests) {
            Ok(_) => agent.is_well(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
        assert!(stuck.elapsed() < PATIENCE, "the agent reads without end");
    }
    agent.is_well();
}

#[test]
fn shutdown_when_posted_then_answered_and_the_agent_ends() {
    let mut agent = Agent::start();
    let answer = agent
        .exchange(b"POST /v1/shutdown HTTP/1.1\r\nContent-Length: 14\r\n\r\n{\"grace_ms\":1}\n");
    assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
    assert!(agent.process.wait().expect("wait").success());
    assert!(!agent.socket.exists());
}
