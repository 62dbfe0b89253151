//! What is bounded: connections, half-open ones, time, descriptors, memory.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::guest::{Guest, listen, reply};
use crate::virtio::vsock::packet::op;
use crate::virtio::vsock::{Limits, Vsock, VsockConfig, VsockError};

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn cid_with_another_meaning_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32] {
        let result = Vsock::new(VsockConfig {
            name: "vsock".to_owned(),
            guest_cid: cid,
            uds_path: dir.path().join("v"),
            direct: Vec::new(),
        });
        assert!(matches!(result, Err(VsockError::BadCid(c)) if c == cid));
    }
}

#[test]
fn socket_file_goes_with_the_device() {
    let g = Guest::new();
    let path = g.path();
    assert!(path.exists());
    let Guest { driver, dir, .. } = g;
    drop(driver);
    assert!(!path.exists());
    drop(dir);
}

#[test]
fn connections_beyond_the_limit_are_refused_both_ways() {
    let mut g = Guest::with_limits(Limits {
        max_connections: 2,
        ..Limits::default()
    });
    let (first, _) = g.connect_from_host(1);
    let (_second, _) = g.connect_from_guest((2, 2));
    let mut third = g.client(1);
    assert_eq!(g.read_to_end_or_reset(&mut third), b"");
    g.request((3, 2));
    g.run();
    assert!(g.sockets[&(3, 2)].reset);
    assert_eq!(g.metric("connections"), 2);
    drop(first);
    g.run();
    g.connect_from_host(4);
}

#[test]
fn half_open_connections_are_bounded() {
    let mut g = Guest::with_limits(Limits {
        max_half_open: 3,
        ..Limits::default()
    });
    let silent: Vec<_> = (0..3)
        .map(|_| UnixStream::connect(g.path()).unwrap())
        .collect();
    g.run();
    assert_eq!(g.metric("connections"), 3);
    let mut fourth = g.client(1);
    assert_eq!(g.read_to_end_or_reset(&mut fourth), b"");
    drop(silent);
    g.run();
    g.connect_from_host(4);
}

#[test]
fn client_that_says_nothing_is_closed_in_time() {
    let mut g = Guest::with_limits(Limits {
        handshake_timeout: SHORT,
        ..Limits::default()
    });
    let mut client = UnixStream::connect(g.path()).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(b"CONN").unwrap();
    assert_eq!(g.read_to_end_or_reset(&mut client), b"");
    assert_eq!(g.log, []);
}

#[test]
fn request_the_guest_does_not_answer_is_given_up() {
    let mut g = Guest::with_limits(Limits {
        request_timeout: SHORT,
        ..Limits::default()
    });
    g.mute = true;
    let mut client = g.client(1);
    assert_eq!(g.read_to_end_or_reset(&mut client), b"");
    g.run();
    let operations: Vec<u16> = g.log.iter().map(|h| h.op).collect();
    assert_eq!(operations, [op::REQUEST, op::RST]);
    assert_eq!(g.metric("connections"), 0);
}

#[test]
fn listener_that_never_has_room_is_given_up() {
    let mut g = Guest::with_limits(Limits {
        request_timeout: SHORT,
        ..Limits::default()
    });
    let _listener = listen(&g.dir.path().join("v_80"), 0);
    for port in 0..4 {
        g.request((port, 80));
    }
    g.wait("an answer for all", |g| {
        g.sockets.values().all(|s| s.open || s.reset)
    });
    assert!(g.sockets[&(0, 80)].open);
    assert!(g.sockets[&(3, 80)].reset);
}

#[test]
fn end_the_guest_does_not_confirm_is_final_in_time() {
    let mut g = Guest::with_limits(Limits {
        close_timeout: SHORT,
        ..Limits::default()
    });
    let (stream, key) = g.connect_from_host(1);
    g.mute = true;
    drop(stream);
    g.run();
    assert_eq!(g.metric("connections"), 1);
    g.wait("the end", |g| g.metric("connections") == 0);
    g.run();
    let operations = g.operations(key);
    assert_eq!(
        operations[operations.len() - 2..],
        [(op::SHUTDOWN, 3), (op::RST, 0)]
    );
}

#[test]
fn backlog_of_all_connections_is_bounded() {
    let limit = 1 << 20;
    let mut g = Guest::with_limits(Limits {
        max_backlog: limit,
        ..Limits::default()
    });
    let listener = UnixListener::bind(g.dir.path().join("v_80")).unwrap();
    let mut readers = Vec::new();
    for port in 0..20 {
        g.request((port, 80));
        g.run();
        readers.push(listener.accept().unwrap());
        loop {
            let n = g.write((port, 80), &[1; 64 << 10]);
            g.run();
            assert!(g.metric("backlog_bytes") <= limit as u64);
            if n == 0 || g.sockets[&(port, 80)].reset {
                break;
            }
        }
    }
    assert!(g.sockets.values().any(|s| s.reset));
    assert!(g.metric("backlog_bytes") > 0);
}

#[test]
fn accept_when_out_of_descriptors_pauses_and_goes_on() {
    const CHILD: &str = "BULKHEAD_VSOCK_TEST_CHILD";
    // The limit is the whole process's, so this test has one of its own.
    if std::env::var_os(CHILD).is_none() {
        let name = std::thread::current().name().unwrap().to_owned();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&name, "--exact", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let mut g = Guest::new();
    g.listening.push(1);
    let mut client = g.client(1);
    let next = std::fs::File::open("/dev/null").unwrap();
    let lowest_free = std::os::fd::AsRawFd::as_raw_fd(&next) as libc::rlim_t;
    drop(next);
    let before = set_descriptor_limit(lowest_free);
    g.run();
    assert_eq!(g.metric("connections"), 0);
    let start = Instant::now();
    let mut turns = 0;
    while start.elapsed() < 4 * SHORT {
        turns += u128::from(g.device_has_events());
        g.run();
    }
    let allowed = start.elapsed().as_millis() / 100 + 1;
    assert!(turns <= allowed, "{turns} turns, {allowed} allowed");
    set_descriptor_limit(before);
    assert!(g.read_line(&mut client).starts_with("OK "));
}

#[test]
fn requests_for_the_same_ports_over_and_over_leave_nothing_behind() {
    let mut g = Guest::new();
    let _listener = UnixListener::bind(g.dir.path().join("v_80")).unwrap();
    g.starve = true;
    for _ in 0..2000 {
        g.send_raw(reply((1, 80), op::REQUEST), &[]);
        g.send_raw(reply((1, 80), op::RST), &[]);
    }
    g.run();
    assert_eq!(g.metric("connections"), 0);
}

/// Sets the soft limit on descriptors, and returns what it was.
fn set_descriptor_limit(count: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one rlimit, borrowed for the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, count);
    // SAFETY: as above.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
    before
}

impl Guest {
    /// Like `read_to_end`, for a socket that may be closed with something unread in it.
    #[track_caller]
    fn read_to_end_or_reset(&mut self, stream: &mut UnixStream) -> Vec<u8> {
        let mut all = Vec::new();
        self.wait("the end of a stream", |_| {
            let mut buffer = [0; 64];
            match stream.read(&mut buffer) {
                Ok(0) => true,
                Ok(n) => {
                    all.extend_from_slice(&buffer[..n]);
                    false
                }
                Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        });
        all
    }
}
