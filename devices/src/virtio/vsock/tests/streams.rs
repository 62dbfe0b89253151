//! Connections that keep the rules: opening, payload, credit, the end.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::guest::{DIRECT_PORT, Guest, Key, ROOM, listen, read_some};
use crate::virtio::device_id;
use crate::virtio::vsock::packet::{op, shutdown};

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(31) ^ n >> 8 ^ seed.wrapping_mul(97)) as u8)
        .collect()
}

/// Both ways of opening a connection, which are to be the same afterwards.
fn each_direction(test: impl Fn(&mut Guest, UnixStream, Key)) {
    let mut g = Guest::new();
    let (stream, key) = g.connect_from_host(1024);
    test(&mut g, stream, key);
    let mut g = Guest::new();
    let (stream, key) = g.connect_from_guest((9000, 1025));
    test(&mut g, stream, key);
}

#[test]
fn device_when_fresh_shows_its_cid() {
    let g = Guest::new();
    assert_eq!(g.driver.read(0x08), device_id::VSOCK);
    assert_eq!((g.driver.read(0x100), g.driver.read(0x104)), (42, 0));
}

#[test]
fn bytes_flow_both_ways_whoever_opened() {
    each_direction(|g, mut stream, key| {
        stream.write_all(b"to the guest").unwrap();
        g.run();
        assert_eq!(g.sockets[&key].received, b"to the guest");
        assert_eq!(g.write(key, b"to the host"), 11);
        let mut got = [0; 11];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"to the host");
        assert_eq!(g.metric("to_guest_bytes"), 12);
        assert_eq!(g.metric("to_host_bytes"), 11);
        assert_eq!(g.metric("connections"), 1);
    });
}

#[test]
fn payload_right_behind_the_handshake_is_not_lost() {
    let mut g = Guest::new();
    g.listening.push(7);
    let mut client = UnixStream::connect(g.path()).unwrap();
    client.write_all(b"connect 7\nGET / HTTP/1.1\r\n").unwrap();
    client.set_nonblocking(true).unwrap();
    assert!(g.read_line(&mut client).starts_with("OK "));
    g.run();
    let socket = g.sockets.values().next().unwrap();
    assert_eq!(socket.received, b"GET / HTTP/1.1\r\n");
}

#[test]
fn client_of_a_direct_socket_is_connected_without_a_word() {
    let mut g = Guest::new();
    g.listening.push(DIRECT_PORT);
    let mut client = g.direct_client();
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    g.run();
    let (key, socket) = g.sockets.iter().next().unwrap();
    let key = *key;
    assert_eq!((key.0, socket.open), (DIRECT_PORT, true));
    assert_eq!(socket.received, b"GET / HTTP/1.1\r\n");
    assert_eq!(g.write(key, b"HTTP/1.1 200 OK\r\n"), 17);
    let mut got = [0; 17];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"HTTP/1.1 200 OK\r\n");
    assert_eq!(g.metric("connections_from_host"), 1);
}

#[test]
fn client_of_a_direct_socket_when_nobody_listens_is_closed() {
    let mut g = Guest::new();
    let mut client = g.direct_client();
    g.run();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(g.metric("connections"), 0);
}

#[test]
fn clients_of_both_sockets_when_many_are_all_connected() {
    let mut g = Guest::new();
    g.listening.extend([7, DIRECT_PORT]);
    // More than are accepted in one turn.
    let named: Vec<_> = (0..150).map(|_| g.client(7)).collect();
    let direct: Vec<_> = (0..150).map(|_| g.direct_client()).collect();
    g.wait("all connections", |g| g.sockets.len() == 300);
    assert!(g.sockets.values().all(|s| s.open));
    assert_eq!(g.metric("connections"), 300);
    drop((named, direct));
}

#[test]
fn client_when_early_waits_for_the_driver() {
    let mut g = Guest::new();
    g.driver.write(0x70, 0);
    let mut client = g.client(7);
    g.run();
    assert!(
        !g.device_has_events(),
        "an idle device must not spin the loop"
    );
    g.listening.push(7);
    g.start();
    assert!(g.read_line(&mut client).starts_with("OK "));
}

#[test]
fn client_when_the_guest_refuses_is_closed_without_an_answer() {
    let mut g = Guest::new();
    let mut client = g.client(7);
    assert_eq!(g.read_to_end(&mut client), b"");
    assert_eq!(g.metric("connections"), 0);
    assert_eq!(g.metric("connections_refused"), 1);
}

#[test]
fn client_when_it_goes_before_the_answer_is_reset_in_the_guest() {
    let mut g = Guest::new();
    g.starve = true;
    g.listening.push(7);
    drop(g.client(7));
    g.run();
    g.give_buffers(256);
    g.run();
    assert_eq!(g.metric("connections"), 0);
    assert!(g.sockets.values().all(|s| s.reset));
}

#[test]
fn request_when_nobody_listens_on_the_host_is_reset() {
    let mut g = Guest::new();
    g.request((9000, 5));
    g.run();
    assert!(g.sockets[&(9000, 5)].reset);
    assert_eq!(g.operations((9000, 5)), [(op::RST, 0)]);
    assert_eq!(g.metric("connections"), 0);
}

#[test]
fn host_end_of_stream_reaches_the_guest_which_can_still_send() {
    each_direction(|g, mut stream, key| {
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        g.run();
        assert_eq!(g.sockets[&key].received, b"last words");
        assert_eq!(g.sockets[&key].shutdown, shutdown::SEND);
        g.write(key, b"answer");
        g.send(key, op::SHUTDOWN, shutdown::SEND, &[]);
        assert_eq!(g.read_to_end(&mut stream), b"answer");
        // Both directions are over now, so the connection is.
        assert_eq!(g.sockets[&key].shutdown, shutdown::BOTH);
        assert_eq!(g.metric("connections"), 0);
    });
}

#[test]
fn guest_end_of_stream_reaches_the_host_which_can_still_send() {
    each_direction(|g, mut stream, key| {
        g.write(key, b"last words");
        g.send(key, op::SHUTDOWN, shutdown::SEND, &[]);
        assert_eq!(g.read_to_end(&mut stream), b"last words");
        stream.write_all(b"answer").unwrap();
        g.run();
        assert_eq!(g.sockets[&key].received, b"answer");
        drop(stream);
        g.run();
        assert_eq!(g.sockets[&key].shutdown, shutdown::BOTH);
        assert_eq!(g.metric("connections"), 0);
    });
}

#[test]
fn guest_that_stops_receiving_breaks_the_host_s_pipe() {
    each_direction(|g, mut stream, key| {
        g.send(key, op::SHUTDOWN, shutdown::RECEIVE, &[]);
        let error = stream.write_all(b"unwanted").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        g.write(key, b"still here");
        g.send(key, op::SHUTDOWN, shutdown::BOTH, &[]);
        assert_eq!(g.read_to_end(&mut stream), b"still here");
        assert_eq!(g.operations(key).last(), Some(&(op::RST, 0)));
        assert_eq!(g.metric("connections"), 0);
    });
}

#[test]
fn host_that_stops_receiving_is_told_to_the_guest() {
    each_direction(|g, mut stream, key| {
        stream.shutdown(Shutdown::Read).unwrap();
        g.write(key, b"unwanted");
        g.run();
        assert_eq!(g.sockets[&key].shutdown, shutdown::RECEIVE);
        // What was under way by then does no harm.
        g.write(key, b"late");
        g.run();
        assert!(!g.sockets[&key].reset);
        stream.write_all(b"still here").unwrap();
        g.run();
        assert_eq!(g.sockets[&key].received, b"still here");
    });
}

#[test]
fn host_close_lets_the_guest_read_everything_first() {
    each_direction(|g, mut stream, key| {
        let data = pattern(100_000, 1);
        g.starve = true;
        stream.write_all(&data).unwrap();
        drop(stream);
        g.run();
        g.starve = false;
        g.give_buffers(256);
        g.run();
        assert_eq!(g.sockets[&key].received, data);
        assert_eq!(g.sockets[&key].shutdown, shutdown::BOTH);
        assert_eq!(g.metric("connections"), 0);
    });
}

#[test]
fn guest_close_lets_the_host_read_everything_first() {
    each_direction(|g, mut stream, key| {
        let data = pattern(ROOM as usize, 2);
        // More than a Unix socket takes, so that some of it waits in the device.
        let mut sent = 0;
        while g.metric("backlog_bytes") == 0 {
            let n = g.write(key, &data);
            assert!(n > 0);
            sent += n;
            g.run();
        }
        g.send(key, op::SHUTDOWN, shutdown::BOTH, &[]);
        g.run();
        assert!(
            !g.sockets[&key].reset,
            "not yet: the data is still on its way"
        );
        let got = g.read_to_end(&mut stream);
        assert_eq!(got.len(), sent);
        assert!(got.chunks(data.len()).all(|c| c == &data[..c.len()]));
        g.run();
        assert!(g.sockets[&key].reset);
        assert_eq!(g.metric("connections"), 0);
    });
}

#[test]
fn guest_that_resets_after_its_close_takes_nothing_back() {
    each_direction(|g, mut stream, key| {
        let data = pattern(ROOM as usize, 3);
        let mut sent = 0;
        while g.metric("backlog_bytes") == 0 {
            sent += g.write(key, &data);
            g.run();
        }
        g.send(key, op::SHUTDOWN, shutdown::BOTH, &[]);
        g.send(key, op::RST, 0, &[]);
        // The ports are free again, and a packet for them is for nobody.
        g.send(key, op::CREDIT_UPDATE, 0, &[]);
        g.run();
        assert_eq!(g.operations(key).last(), Some(&(op::RST, 0)));
        assert_eq!(g.metric("connections"), 1);
        assert_eq!(g.read_to_end(&mut stream).len(), sent);
        g.run();
        assert_eq!(g.metric("connections"), 0);
        assert_eq!(g.metric("backlog_bytes"), 0);
    });
}

#[test]
fn guest_reset_closes_the_host_s_socket() {
    each_direction(|g, mut stream, key| {
        g.send(key, op::RST, 0, &[]);
        assert_eq!(g.read_to_end(&mut stream), b"");
        assert_eq!(g.metric("connections"), 0);
    });
}

#[test]
fn credit_of_the_guest_is_kept_and_a_stall_resolves() {
    let mut g = Guest::new();
    g.set_room(10_000);
    let (mut stream, key) = g.connect_from_host(1024);
    g.sockets.get_mut(&key).unwrap().lazy = true;
    let data = pattern(100_000, 4);
    stream.write_all(&data).unwrap();
    g.run();
    assert_eq!(g.sockets[&key].received.len(), 10_000);
    // It asked for more once, and does not go on asking.
    let requests = |g: &Guest| {
        let all = g.operations(key);
        all.iter().filter(|o| o.0 == op::CREDIT_REQUEST).count()
    };
    assert_eq!(requests(&g), 1);
    assert!(!g.device_has_events());
    for n in 2..=10 {
        g.take_all(key);
        g.run();
        assert_eq!(g.sockets[&key].received.len(), n * 10_000);
    }
    assert_eq!(g.sockets[&key].received, data);
}

#[test]
fn reader_that_is_slow_holds_the_guest_up_in_bounded_memory() {
    let mut g = Guest::new();
    let (mut stream, key) = g.connect_from_guest((9000, 1025));
    let data = pattern(4 << 20, 5);
    let mut sent = 0;
    loop {
        let n = g.write(key, &data[sent..]);
        sent += n;
        g.run();
        if n == 0 {
            break;
        }
    }
    assert_eq!(g.metric("backlog_bytes"), u64::from(ROOM));
    assert!(
        sent < 2 << 20,
        "{sent} bytes went into a socket nobody reads"
    );
    let mut got = Vec::new();
    g.wait("all bytes", |g| {
        assert!(!read_some(&mut stream, &mut got));
        sent += g.write(key, &data[sent..]);
        assert!(g.metric("backlog_bytes") <= u64::from(ROOM));
        got.len() == data.len()
    });
    assert!(got == data);
    assert_eq!(g.metric("backlog_bytes"), 0);
}

#[test]
fn credit_request_is_answered() {
    let mut g = Guest::new();
    let (_stream, key) = g.connect_from_host(1024);
    g.log.clear();
    g.send(key, op::CREDIT_REQUEST, 0, &[]);
    g.run();
    assert_eq!(g.operations(key), [(op::CREDIT_UPDATE, 0)]);
}

#[test]
fn guest_without_buffers_is_served_when_it_has_some() {
    let mut g = Guest::new();
    let (mut stream, key) = g.connect_from_host(1024);
    g.starve = true;
    let data = pattern(200_000, 6);
    let mut sent = 0;
    let mut received = 0;
    while received < data.len() {
        if let Ok(n) = stream.write(&data[sent..]) {
            sent += n;
        }
        g.give_buffers(3);
        g.run();
        assert!(
            !g.device_has_events(),
            "waiting for buffers must not spin the loop"
        );
        received = g.sockets[&key].received.len();
    }
    assert_eq!(g.sockets[&key].received, data);
}

#[test]
fn connections_take_turns() {
    let mut g = Guest::new();
    let (mut bulk, bulk_key) = g.connect_from_host(1);
    let (mut small, small_key) = g.connect_from_host(2);
    g.starve = true;
    // The bulk connection has used up all buffers, and has more to say.
    let data = pattern(100_000, 7);
    while bulk.write(&data).is_ok() {
        g.run();
    }
    let before = g.sockets[&bulk_key].received.len();
    small.write_all(b"me too").unwrap();
    while g.sockets[&small_key].received.is_empty() {
        g.give_buffers(1);
        g.run();
    }
    assert_eq!(g.sockets[&small_key].received, b"me too");
    let bulk_bytes = g.sockets[&bulk_key].received.len() - before;
    assert!(bulk_bytes < 16 << 10, "{bulk_bytes} bytes before its turn");
}

#[test]
fn thousand_connections_from_the_host_all_work_at_once() {
    let mut g = Guest::new();
    g.listening.push(1024);
    let mut clients = Vec::new();
    for _ in 0..1200 {
        clients.push(g.client(1024));
        g.run();
    }
    let mut keys = Vec::new();
    for (n, client) in clients.iter_mut().enumerate() {
        let line = g.read_line(client);
        let key = (1024, line.strip_prefix("OK ").unwrap().parse().unwrap());
        client.write_all(&pattern(5000, n)).unwrap();
        keys.push(key);
    }
    g.run();
    assert_eq!(g.metric("connections"), 1200);
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(g.sockets[key].received, pattern(5000, n));
        g.write(*key, &pattern(3000, n));
        g.send(*key, op::SHUTDOWN, shutdown::BOTH, &[]);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(g.read_to_end(client), pattern(3000, n));
    }
    g.run();
    assert_eq!(g.metric("connections"), 0);
}

#[test]
fn thousand_connections_from_the_guest_wait_for_a_busy_listener() {
    let mut g = Guest::new();
    // Its queue has room for far fewer than come at once.
    let listener = listen(&g.dir.path().join("v_80"), 16);
    for port in 0..1200 {
        g.request((port, 80));
        g.run();
    }
    let mut streams = Vec::new();
    g.wait("all connections", |g| {
        while let Ok((stream, _)) = listener.accept() {
            streams.push(stream);
        }
        g.sockets.values().all(|s| s.open)
    });
    while let Ok((stream, _)) = listener.accept() {
        streams.push(stream);
    }
    assert_eq!(streams.len(), 1200);
    for port in 0..1200 {
        g.write((port, 80), &port.to_le_bytes());
    }
    let mut ports: Vec<u32> = streams
        .iter_mut()
        .map(|stream| {
            let mut port = [0; 4];
            stream.read_exact(&mut port).unwrap();
            u32::from_le_bytes(port)
        })
        .collect();
    ports.sort_unstable();
    assert!(ports.into_iter().eq(0..1200));
}

#[test]
fn reset_of_the_device_closes_everything_and_goes_on_listening() {
    let mut g = Guest::new();
    let (mut from_host, key) = g.connect_from_host(1024);
    let (mut from_guest, _) = g.connect_from_guest((9000, 1025));
    from_host.write_all(&pattern(100_000, 9)).unwrap();
    g.starve = true;
    g.run();
    g.write(key, &pattern(200_000, 10));
    g.starve = false;
    g.start();
    let end = |stream: &mut UnixStream| {
        let mut rest = Vec::new();
        let result = stream.read_to_end(&mut rest);
        result.is_ok() || result.unwrap_err().kind() == ErrorKind::ConnectionReset
    };
    assert!(end(&mut from_host) && end(&mut from_guest));
    assert_eq!(g.metric("connections"), 0);
    assert_eq!(g.metric("backlog_bytes"), 0);
    g.run();
    assert_eq!(g.log, [], "nothing of before goes to the new driver");
    let (mut stream, key) = g.connect_from_host(2048);
    stream.write_all(b"again").unwrap();
    g.run();
    assert_eq!(g.sockets[&key].received, b"again");
}

#[test]
fn request_for_ports_that_wait_for_a_last_word_opens_anew() {
    let mut g = Guest::new();
    let (stream, key) = g.connect_from_guest((9000, 1025));
    // The guest has forgotten it, and its answer never comes.
    g.sockets.remove(&key);
    g.mute = true;
    drop(stream);
    g.run();
    assert_eq!(
        g.operations(key).last(),
        Some(&(op::SHUTDOWN, shutdown::BOTH))
    );
    assert_eq!(g.metric("connections"), 1);
    g.mute = false;
    std::fs::remove_file(g.dir.path().join("v_1025")).unwrap();
    let (mut stream, key) = g.connect_from_guest((9000, 1025));
    g.write(key, b"new");
    let mut got = [0; 3];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"new");
}

#[derive(Debug, Clone)]
enum Step {
    HostWrites(usize, usize),
    HostReads(usize),
    GuestWrites(usize, usize),
    GuestTakes(usize),
    Buffers(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4usize, 1..150_000usize).prop_map(|(c, n)| Step::HostWrites(c, n)),
        (0..4usize).prop_map(Step::HostReads),
        (0..4usize, 1..150_000usize).prop_map(|(c, n)| Step::GuestWrites(c, n)),
        (0..4usize).prop_map(Step::GuestTakes),
        (0..256u16).prop_map(Step::Buffers),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    // Four connections, any sizes, any order, readers that lag on both sides, buffers that run out.
    #[test]
    fn bytes_arrive_whole_and_in_order(
        room in 1u32..100_000,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut g = Guest::new();
        g.set_room(room);
        let mut streams = Vec::new();
        for n in 0..2 {
            streams.push(g.connect_from_host(100 + n));
            streams.push(g.connect_from_guest((200 + n, 300 + n)));
        }
        for (_, key) in &streams {
            g.sockets.get_mut(key).unwrap().lazy = true;
        }
        g.starve = true;
        let mut to_guest = vec![Vec::new(); 4];
        let mut to_host = vec![Vec::new(); 4];
        let mut got = vec![Vec::new(); 4];
        for (seed, step) in steps.into_iter().enumerate() {
            match step {
                Step::HostWrites(c, n) => {
                    let data = pattern(n, seed);
                    if let Ok(n) = streams[c].0.write(&data) {
                        to_guest[c].extend_from_slice(&data[..n]);
                    }
                }
                Step::HostReads(c) => {
                    read_some(&mut streams[c].0, &mut got[c]);
                }
                Step::GuestWrites(c, n) => {
                    let data = pattern(n, seed);
                    let n = g.write(streams[c].1, &data);
                    to_host[c].extend_from_slice(&data[..n]);
                }
                Step::GuestTakes(c) => g.take_all(streams[c].1),
                Step::Buffers(n) => g.give_buffers(n),
            }
            g.run();
        }
        // Whatever was held up comes through in the end.
        g.starve = false;
        g.give_buffers(256);
        g.wait("the rest", |g| {
            let mut all = true;
            for (c, (stream, key)) in streams.iter_mut().enumerate() {
                read_some(stream, &mut got[c]);
                g.take_all(*key);
                all &= got[c].len() == to_host[c].len()
                    && g.sockets[key].received.len() == to_guest[c].len();
            }
            all
        });
        for (c, (_, key)) in streams.iter().enumerate() {
            prop_assert!(got[c] == to_host[c]);
            prop_assert!(g.sockets[key].received == to_guest[c]);
        }
    }
}
