//! A device that goes on in another's place, without its connections.

use std::io::{ErrorKind, Read, Write};

use super::guest::{CID, DIRECT_PORT, Guest};
use crate::virtio::state::StateError;
use crate::virtio::vsock::packet::op;
use crate::virtio::vsock::{EVENT_QUEUE, RECEIVE_QUEUE};

const OTHER_CID: u64 = 77;
const TRANSPORT_RESET: u32 = 0;

/// A guest that goes on elsewhere, in the middle of a connection, with so many buffers for events.
fn moved(event_buffers: u16) -> Guest {
    let mut g = Guest::new();
    g.give_event_buffers(event_buffers);
    let (mut stream, _) = g.connect_from_host(1024);
    stream.write_all(b"template").unwrap();
    g.run();
    let state = g.driver.save();
    g.move_to(OTHER_CID, &state).unwrap();
    g.log.clear();
    g
}

#[test]
fn guest_is_told_that_its_connections_are_gone_and_reads_its_cid() {
    let mut g = moved(8);
    assert_eq!(g.driver.used(EVENT_QUEUE), None);
    g.driver.transport.restart();
    assert_eq!(g.driver.read(0x60) & 1, 1);
    assert_eq!(g.take_event(), Some(TRANSPORT_RESET));
    assert_eq!(g.driver.used(EVENT_QUEUE), None, "told once");
    assert_eq!(g.driver.read(0x100), OTHER_CID as u32);
    assert_eq!(g.metric("connections"), 0);

    let (mut stream, key) = g.connect_from_host(1025);
    stream.write_all(b"to the copy").unwrap();
    g.run();
    assert_eq!(g.sockets[&key].received, b"to the copy");
    let (_stream, key) = g.connect_from_guest((9000, 1026));
    assert!(g.sockets[&key].open);
}

#[test]
fn request_of_a_client_waits_until_the_guest_has_taken_the_event() {
    let mut g = moved(8);
    g.listening.extend([5, DIRECT_PORT]);
    // Before the guest runs, and after.
    let mut early = g.client(5);
    g.run();
    g.driver.transport.restart();
    let mut late = g.direct_client();
    late.write_all(b"direct").unwrap();
    let gone = g.client(5);
    g.run();
    assert_eq!(g.metric("connections"), 3, "accepted");
    assert!(g.log.is_empty(), "held back");
    drop(gone);
    g.run();
    assert_eq!(g.metric("connections"), 2);
    let error = early.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);

    assert_eq!(g.take_event(), Some(TRANSPORT_RESET));
    assert!(g.read_line(&mut early).starts_with("OK "));
    g.wait("the direct client's bytes", |g| {
        g.sockets
            .values()
            .any(|socket| socket.received == b"direct")
    });
    assert_eq!(g.metric("connections_from_host"), 2);
    let requests = g.log.iter().filter(|header| header.op == op::REQUEST);
    assert_eq!(requests.count(), 2);
}

#[test]
fn guest_notifies_of_the_buffer_it_gives_back() {
    let g = moved(8);
    g.driver.transport.restart();
    // `avail_event`, behind the used ring: the driver notifies when it passes this index.
    let rings = EVENT_QUEUE as u64 * crate::virtio::driver::RINGS_SIZE;
    let event: [u8; 2] = g.driver.get(rings + 0xa000 + 4 + 8 * 256);
    assert_eq!(u16::from_le_bytes(event), 8);
}

#[test]
fn request_of_a_client_when_there_is_no_buffer_for_the_event_is_sent() {
    let mut g = moved(0);
    g.listening.push(5);
    let mut client = g.client(5);
    g.driver.transport.restart();
    // What the guest reads when it notices; nobody tells it.
    g.set_cid(OTHER_CID);
    assert!(g.read_line(&mut client).starts_with("OK "));
    assert_eq!(g.driver.used(EVENT_QUEUE), None);
}

#[test]
fn buffer_too_small_for_the_event_is_given_back_and_the_next_one_used() {
    let mut g = Guest::new();
    let small = g.driver.add_chain(EVENT_QUEUE, &[], &[(0x8_0000, 3)]);
    let good = g.driver.add_chain(EVENT_QUEUE, &[], &[(0x8_0008, 4)]);
    let state = g.driver.save();
    g.move_to(CID, &state).unwrap();
    g.driver.transport.restart();
    assert_eq!(g.driver.used(EVENT_QUEUE), Some((small, 0)));
    assert_eq!(g.driver.used(EVENT_QUEUE), Some((good, 4)));
}

#[test]
fn guest_that_sends_on_a_connection_of_before_gets_a_reset() {
    let mut g = Guest::new();
    g.give_event_buffers(1);
    let (_stream, key) = g.connect_from_host(1024);
    let state = g.driver.save();
    g.move_to(CID, &state).unwrap();
    g.driver.transport.restart();
    g.send(key, op::RW, 0, b"to nobody");
    g.run();
    assert!(g.sockets[&key].reset, "also while the event is under way");
}

#[test]
fn device_that_was_saved_keeps_its_connections() {
    let mut g = Guest::new();
    g.give_event_buffers(8);
    let (mut stream, key) = g.connect_from_host(1024);
    for n in 1..100 {
        stream.write_all(b"more").unwrap();
        let state = g.driver.save();
        let queue = &state.queues[RECEIVE_QUEUE];
        assert_eq!(queue.next_available, queue.next_used);
        g.run();
        assert_eq!(g.sockets[&key].received.len(), 4 * n);
    }
    assert_eq!(g.driver.used(EVENT_QUEUE), None);
    assert_eq!(g.metric("resets"), 0);
}

#[test]
fn device_saved_before_the_guest_took_the_event_tells_it_again() {
    let mut g = moved(8);
    g.driver.transport.restart();
    let state = g.driver.save();
    g.move_to(OTHER_CID + 1, &state).unwrap();
    g.driver.transport.restart();
    g.listening.push(5);
    let mut client = g.client(5);
    g.run();
    assert!(g.log.is_empty());
    assert_eq!(g.take_event(), Some(TRANSPORT_RESET));
    assert_eq!(g.take_event(), Some(TRANSPORT_RESET));
    assert!(g.read_line(&mut client).starts_with("OK "));
}

#[test]
fn driver_that_starts_again_is_not_waited_for() {
    let mut g = moved(8);
    g.driver.transport.restart();
    g.set_cid(OTHER_CID);
    g.start();
    let (_stream, key) = g.connect_from_host(6);
    assert!(g.sockets[&key].open);
    assert_eq!(g.driver.used(EVENT_QUEUE), None);
}

#[test]
fn device_whose_driver_was_not_up_has_nobody_to_tell() {
    let mut g = Guest::new();
    g.driver.write(0x70, 0);
    let state = g.driver.save();
    g.move_to(OTHER_CID, &state).unwrap();
    g.driver.transport.restart();
    g.set_cid(OTHER_CID);
    g.start();
    g.give_event_buffers(8);
    let (_stream, key) = g.connect_from_host(6);
    assert!(g.sockets[&key].open);
    assert_eq!(g.driver.used(EVENT_QUEUE), None);
}

#[test]
fn event_buffer_that_is_malformed_stops_the_device() {
    let mut g = Guest::new();
    g.driver.add_chain(EVENT_QUEUE, &[], &[(u64::MAX - 1, 8)]);
    let state = g.driver.save();
    g.move_to(CID, &state).unwrap();
    g.driver.transport.restart();
    assert_eq!(g.driver.read(0x70) & 0x40, 0x40);
    g.run();
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut g = Guest::new();
    let good = g.driver.save();
    for own in [
        serde_json::json!({ "guest_cid": 2 }),
        serde_json::json!({ "guest_cid": u64::MAX }),
        serde_json::json!({ "guest_cid": 42, "connections": [] }),
        serde_json::json!(null),
    ] {
        let mut state = good.clone();
        state.device = own;
        let error = g.move_to(CID, &state).unwrap_err();
        assert!(matches!(error, StateError::Malformed { .. }), "{error}");
    }
}
