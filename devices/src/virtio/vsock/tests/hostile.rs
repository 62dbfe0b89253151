//! Guests and clients that break the rules.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::guest::{CID, Guest, Key, encode, reply};
use crate::virtio::vsock::packet::{Header, op, shutdown};
use crate::virtio::vsock::{RECEIVE_QUEUE, TRANSMIT_QUEUE};

/// A connection next to the one that is abused has to go on as if nothing were.
struct Bystander(UnixStream, Key);

impl Bystander {
    fn new(g: &mut Guest) -> Self {
        let (stream, key) = g.connect_from_host(999);
        Bystander(stream, key)
    }

    #[track_caller]
    fn check(&mut self, g: &mut Guest) {
        self.0.write_all(b"alive").unwrap();
        g.run();
        assert!(g.sockets[&self.1].received.ends_with(b"alive"));
        assert!(!g.sockets[&self.1].reset);
    }
}

#[test]
fn packets_that_break_the_rules_reset_their_connection_alone() {
    type Abuse = fn(&mut Guest, Key);
    let cases: &[(&str, Abuse)] = &[
        ("unknown operation", |g, key| {
            g.send_raw(reply(key, 77), &[]);
        }),
        ("operation 0", |g, key| g.send_raw(reply(key, 0), &[])),
        ("operation beyond any shift", |g, key| {
            g.send_raw(reply(key, u16::MAX), &[]);
        }),
        ("response nobody asked for", |g, key| {
            g.send_raw(reply(key, op::RESPONSE), &[]);
        }),
        ("second request", |g, key| {
            g.send_raw(reply(key, op::REQUEST), &[]);
        }),
        ("more payload than the chain has", |g, key| {
            let header = Header {
                len: 11,
                buf_alloc: 1000,
                ..reply(key, op::RW)
            };
            g.send_raw(header, &[0; 10]);
        }),
        ("length that overflows", |g, key| {
            let header = Header {
                len: u32::MAX,
                ..reply(key, op::RW)
            };
            g.send_raw(header, &[0; 10]);
        }),
        ("forwarded what was never sent", |g, key| {
            let header = Header {
                buf_alloc: u32::MAX,
                fwd_cnt: 0x7fff_ffff,
                ..reply(key, op::CREDIT_UPDATE)
            };
            g.send_raw(header, &[]);
        }),
        ("payload beyond its credit", |g, key| {
            let data = vec![7; 64 << 10];
            for _ in 0..40 {
                g.send(key, op::RW, 0, &data);
            }
        }),
        ("payload after its end", |g, key| {
            g.send(key, op::SHUTDOWN, shutdown::SEND, &[]);
            g.send(key, op::RW, 0, b"more");
        }),
    ];
    for (what, abuse) in cases {
        let mut g = Guest::new();
        let mut bystander = Bystander::new(&mut g);
        let (mut stream, key) = g.connect_from_host(1024);
        abuse(&mut g, key);
        g.run();
        assert!(g.sockets[&key].reset, "{what}");
        assert_eq!(g.metric("connections"), 1, "{what}");
        let mut rest = Vec::new();
        g.wait("the client's end", |_| {
            super::guest::read_some(&mut stream, &mut rest)
        });
        bystander.check(&mut g);
    }
}

#[test]
fn packets_for_nobody_are_answered_with_a_reset_or_dropped() {
    let mut g = Guest::new();
    let mut bystander = Bystander::new(&mut g);
    g.log.clear();
    let key = (5, 6);
    for (header, answer) in [
        (reply(key, op::RW), Some((2, 1))),
        (reply(key, op::SHUTDOWN), Some((2, 1))),
        (reply(key, op::RST), None),
        (
            Header {
                dst_cid: 9,
                ..reply(key, op::REQUEST)
            },
            Some((9, 1)),
        ),
        (
            Header {
                kind: 2,
                ..reply(key, op::REQUEST)
            },
            Some((2, 2)),
        ),
        (
            Header {
                src_cid: CID + 1,
                ..reply(key, op::REQUEST)
            },
            None,
        ),
    ] {
        g.send_raw(header, &[]);
        g.run();
        let got = g.log.pop();
        assert_eq!(got.map(|h| (h.src_cid, h.kind)), answer, "{header:?}");
        if let Some(h) = got {
            assert_eq!((h.op, h.dst_port, h.src_port), (op::RST, 5, 6));
        }
    }
    bystander.check(&mut g);
}

#[test]
fn chains_of_odd_shapes_do_no_harm() {
    let mut g = Guest::new();
    let mut bystander = Bystander::new(&mut g);
    // Too short for a header, none at all, nothing but writable buffers.
    for len in [0, 1, 43] {
        g.send_bytes(&vec![0xff; len]);
    }
    g.driver.add_chain(TRANSMIT_QUEUE, &[], &[(0x70_0000, 100)]);
    g.driver.kick(TRANSMIT_QUEUE);
    assert!(g.driver.used(TRANSMIT_QUEUE).is_some());
    bystander.check(&mut g);
    assert_eq!(g.metric("packets_dropped"), 4);
}

#[test]
fn receive_buffers_without_room_are_given_back() {
    let mut g = Guest::new();
    let (mut stream, key) = g.connect_from_host(1024);
    // A driver with other buffers: none, too little for a header, room for one byte of payload.
    let driver = &mut g.driver;
    driver.start(u64::MAX, 16);
    g.sockets.clear();
    stream.write_all(b"x").unwrap_err();
    let _ = key;
    let _client = g.client(7);
    for len in [0, 43, 44, 45, 45] {
        g.driver.add_chain(RECEIVE_QUEUE, &[], &[(0x70_0000, len)]);
    }
    g.driver.transport.process_event(0);
    g.driver.transport.process_event(0);
    assert_eq!(g.driver.used(RECEIVE_QUEUE), Some((0, 0)));
    assert_eq!(g.driver.used(RECEIVE_QUEUE), Some((1, 0)));
    assert_eq!(g.driver.used(RECEIVE_QUEUE), Some((2, 44)));
    assert_eq!(g.driver.used(RECEIVE_QUEUE), None);
}

#[test]
fn malformed_chain_stops_the_device_and_a_reset_revives_it() {
    for queue in [RECEIVE_QUEUE, TRANSMIT_QUEUE] {
        let mut g = Guest::new();
        let (mut stream, _) = g.connect_from_host(1024);
        g.starve = true;
        let _ = stream.write(&vec![1; 200_000]);
        // Rings are cleared by a restart, so that the bad chain is the next.
        g.start();
        g.driver.set_available_index(queue, 1000);
        let client = g.client(1024);
        g.driver.kick(queue);
        g.run();
        assert_eq!(g.driver.read(0x70) & 0x40, 0x40, "queue {queue}");
        assert!(!g.device_has_events());
        g.starve = false;
        g.start();
        assert_eq!(g.driver.read(0x70), 0xf);
        drop(client);
        Bystander::new(&mut g).check(&mut g);
    }
}

#[test]
fn resets_owed_are_bounded_when_the_guest_takes_none() {
    let mut g = Guest::with_limits(crate::virtio::vsock::Limits {
        max_pending_resets: 10,
        ..Default::default()
    });
    g.starve = true;
    g.run();
    // Use up the receive buffers, one RST each.
    for _ in 0..256 {
        g.send_raw(reply((1, 1), op::RW), &[]);
        g.run();
    }
    for _ in 0..10 {
        g.send_raw(reply((1, 1), op::RW), &[]);
    }
    assert!(g.transmit_is_idle());
    // From here on the guest's packets wait in its own memory.
    for _ in 0..5 {
        g.send_raw(reply((1, 1), op::RW), &[]);
    }
    assert!(!g.transmit_is_idle());
    g.run();
    assert_eq!(g.metric("resets"), 266);
    assert!(!g.device_has_events());
    g.starve = false;
    g.give_buffers(256);
    g.run();
    assert!(g.transmit_is_idle());
    assert_eq!(g.log.len(), 271);
}

#[test]
fn client_that_says_something_else_is_closed() {
    let mut g = Guest::new();
    for line in ["GET / HTTP/1.1\n", "CONNECT x\n", &"C".repeat(500), "\n"] {
        let mut client = UnixStream::connect(g.path()).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        g.wait("the end", |_| {
            match std::io::Read::read(&mut client, &mut [0; 8]) {
                Ok(n) => n == 0,
                Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        });
        assert_eq!(g.metric("connections"), 0, "{line:?}");
    }
    assert_eq!(g.log, []);
}

fn header() -> impl Strategy<Value = Header> {
    (
        prop_oneof![9 => Just(CID), 1 => any::<u64>()],
        prop_oneof![9 => Just(2), 1 => any::<u64>()],
        0..3u32,
        prop_oneof![Just(80), Just(81), 0x4000_0000..0x4000_0003u32],
        prop_oneof![0..200u32, any::<u32>()],
        prop_oneof![9 => Just(1), 1 => any::<u16>()],
        prop_oneof![9 => 0..9u16, 1 => any::<u16>()],
        any::<u32>(),
        any::<u32>(),
        prop_oneof![Just(0), 0..100u32, any::<u32>()],
    )
        .prop_map(
            |(src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt)| {
                Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    len,
                    kind,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packets_of_any_kind_leave_the_device_working(
        packets in proptest::collection::vec((header(), 0..200usize), 1..100),
    ) {
        let mut g = Guest::new();
        let path = g.dir.path().join("v_80");
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        let mut clients: Vec<UnixStream> = (0..3).map(|port| g.client(port)).collect();
        for (n, (header, len)) in packets.into_iter().enumerate() {
            g.send_bytes(&[&encode(&header)[..], &vec![n as u8; len]].concat());
            let _ = clients[n % 3].write(b"something");
            // The guest of these tests would answer; this one is somebody else.
            while g.device_has_events() {
                g.driver.transport.process_event(0);
            }
            while let Some((head, _)) = g.driver.used(RECEIVE_QUEUE) {
                let _ = head;
                g.driver.add_chain(RECEIVE_QUEUE, &[], &[(0x70_0000, 4096)]);
            }
        }
        drop(listener);
        prop_assert_eq!(g.driver.read(0x70), 0xf);
        g.start();
        Bystander::new(&mut g).check(&mut g);
    }
}
