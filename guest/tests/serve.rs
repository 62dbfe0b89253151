//! The agent's program, as an ordinary process that serves its API on a Unix socket: what a client
//! on the host meets, without a VM.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use bulkhead_protocol::{ApiError, ErrorCode, Health, HealthStatus, Info};
use common::{AGENT, Agent, PATIENCE, read_head};
use serde_json::{Value, json};

trait Asks {
    fn exchange_text(&self, request: &[u8]) -> String;
    fn is_well(&self);
}

impl Asks for Agent {
    fn exchange_text(&self, request: &[u8]) -> String {
        String::from_utf8(self.exchange(request)).expect("UTF-8")
    }

    fn is_well(&self) {
        let answer = self.exchange_text(b"GET /v1/health HTTP/1.0\r\n\r\n");
        let health: Health = body(&answer);
        assert_eq!(health.status, HealthStatus::Ok);
    }
}

fn body<'a, T: serde::Deserialize<'a>>(answer: &'a str) -> T {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

/// Reads one answer of a connection that stays open.
fn read_answer(stream: &mut UnixStream) -> String {
    let head = read_head(stream);
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
    let answer = agent.exchange_text(b"GET /v1/info HTTP/1.1\r\nHost: guest\r\n\r\n");
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
    let answers = agent.exchange_text(requests.as_bytes());
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
    let cases: [(&[u8], u16, ErrorCode); 10] = [
        (
            b"POST /v1/shutdown HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
            400,
            ErrorCode::BadRequest,
        ),
        (
            b"PUT /v1/containers/x/files?path=/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz",
            404,
            ErrorCode::NotFound,
        ),
        (b"\0\xff\xfe\r\n\r\n", 400, ErrorCode::BadRequest),
        (
            b"GET / HTTP/1.1\r\n broken\r\n\r\n",
            400,
            ErrorCode::BadRequest,
        ),
        (b"GET /v1/health HTTP/1.1\r\nA:", 400, ErrorCode::BadRequest),
        (b"GET / HTTP/3.0\r\n\r\n", 505, ErrorCode::NotSupported),
        (
            b"POST /v1/shutdown HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
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
        let answer = agent.exchange_text(request);
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
    let answer = agent.exchange_text(
        b"POST /v1/shutdown HTTP/1.1\r\nContent-Length: 14\r\n\r\n{\"grace_ms\":1}\n",
    );
    assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
    assert!(agent.process.wait().expect("wait").success());
    assert!(!agent.socket.exists());
}

#[test]
fn body_when_chunked_then_read_as_any_other() {
    let agent = Agent::start();
    let answer = agent.exchange_text(
        b"POST /v1/containers/x/kill HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
          6\r\n{\"sign\r\n6;x=y\r\nal\":9}\r\n0\r\n\r\n",
    );
    assert_eq!(body::<ApiError<'_>>(&answer).code, ErrorCode::NotFound);
    assert!(answer.contains("There is no container x."), "{answer}");
}

#[test]
fn events_when_subscribed_then_the_first_line_says_so_and_the_end_is_an_end() {
    let agent = Agent::start();
    let mut stream = agent.connect();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\n\r\n")
        .expect("request");
    let head = read_head(&mut stream);
    assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
    let mut first = vec![0; 4 + 39];
    stream.read_exact(&mut first).expect("chunk");
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(first.contains("{\"event\":\"listening\""), "{first}");
    drop(agent);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("end");
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "{rest}");
}

#[test]
fn subscribers_when_they_come_and_go_then_their_places_are_free_again() {
    let agent = Agent::start();
    let subscribe = || {
        let mut stream = agent.connect();
        stream
            .write_all(b"GET /v1/events HTTP/1.1\r\n\r\n")
            .expect("request");
        let head = read_head(&mut stream);
        (head.starts_with("HTTP/1.1 200 "), stream)
    };
    let mut subscribed = Vec::new();
    while let (true, stream) = subscribe() {
        subscribed.push(stream);
    }
    assert_eq!(subscribed.len(), 256);
    drop(subscribed);
    let start = Instant::now();
    while !subscribe().0 {
        assert!(start.elapsed() < PATIENCE, "no place becomes free");
    }
}

#[test]
fn clock_when_asked_then_the_time_and_bad_ones_are_refused() {
    let agent = Agent::start();
    let clock = agent.must("GET", "/v1/clock", &Value::Null);
    assert!(clock["unix_ns"].as_u64().expect("number") > 1_700_000_000_000_000_000);
    let (status, _) = agent.ask("PUT", "/v1/clock", &json!({"unix_ns": -1}));
    assert_eq!(status, 400);
    let (status, _) = agent.ask("POST", "/v1/entropy", &json!({"base64": "!"}));
    assert_eq!(status, 422);
}
