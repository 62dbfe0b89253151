use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::*;
use crate::virtio::driver::TestDriver;

pub(super) const BUFFER: u64 = 0x8_0000;
pub(super) const NO_MERGE: u64 = !(1 << VIRTIO_NET_F_MRG_RXBUF);

pub(super) fn card(
    config: NetConfig,
    features: u64,
    queue_size: u16,
) -> (TestDriver, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let net = Net::new(config, Box::new(ours)).unwrap();
    let mut driver = TestDriver::new(Box::new(net), 1 << 21);
    assert_eq!(driver.start(features, queue_size), 0xf);
    driver.transport.process_event(WAKEUP);
    (driver, theirs)
}

pub(super) fn plain(features: u64) -> (TestDriver, UnixDatagram) {
    card(NetConfig::default(), features, 256)
}

pub(super) fn packet(len: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|n| (n % 253) as u8).collect();
    packet[..HEADER_LEN.min(len)].fill(0);
    packet
}

pub(super) fn counter(driver: &TestDriver, name: &str) -> u64 {
    let mut value = None;
    driver
        .transport
        .metrics(&mut |n, v| value = value.or((n == name).then_some(v)));
    value.unwrap()
}

#[test]
fn configuration_tells_address_link_and_mtu() {
    let config = NetConfig {
        mac: Some("02:01:02:03:04:05".parse().unwrap()),
        mtu: Some(9000),
        ..Default::default()
    };
    let (d, _) = card(config, u64::MAX, 256);
    let mut data = [0; 12];
    crate::bus::BusDevice::read(&d.transport, 0x100, &mut data);
    assert_eq!(data, [2, 1, 2, 3, 4, 5, 1, 0, 0, 0, 0x28, 0x23]);
    assert!(has(d.offered_features(), VIRTIO_NET_F_MTU));
    let (d, _) = plain(u64::MAX);
    assert!(!has(d.offered_features(), VIRTIO_NET_F_MTU));
    assert_eq!(d.read(0x100) & 3, 2);
}

#[test]
fn packet_sent_arrives_with_its_header() {
    let (mut d, host) = plain(u64::MAX);
    let sent = packet(100);
    d.put(BUFFER, &sent);
    let head = d.add_chain(1, &[(BUFFER, 5), (BUFFER + 5, 20), (BUFFER + 25, 75)], &[]);
    d.kick(1);
    assert_eq!(d.used(1), Some((head, 0)));
    let mut data = [0; 200];
    assert_eq!(host.recv(&mut data).unwrap(), 100);
    assert_eq!(data[..100], sent);
}

#[test]
fn packet_that_is_malformed_is_dropped_and_the_next_one_sent() {
    let (mut d, host) = plain(u64::MAX);
    d.put(BUFFER, &packet(60));
    for readable in [
        &[][..],
        &[(BUFFER, 11)],
        &[(BUFFER, 12)],
        &[(BUFFER, LONGEST_PACKET as u32 + 1)],
        &[(BUFFER, 0x10_0000), (BUFFER, 0x10_0000)],
    ] {
        let head = d.add_chain(1, readable, &[(BUFFER, 100)]);
        d.kick(1);
        assert_eq!(d.used(1), Some((head, 0)));
    }
    assert_eq!(counter(&d, "transmit_dropped"), 5);
    assert!(host.recv(&mut [0; 1]).is_err());
    d.add_chain(1, &[(BUFFER, 60)], &[]);
    d.kick(1);
    assert_eq!(host.recv(&mut [0; 100]).unwrap(), 60);
}

#[test]
fn packet_when_the_host_has_no_room_waits_and_when_it_is_gone_is_dropped() {
    let (mut d, host) = plain(u64::MAX);
    for _ in 0..200 {
        d.add_chain(1, &[(BUFFER, 4000)], &[]);
    }
    d.kick(1);
    while counter(&d, "transmit_stalls") == 0 {
        d.transport.process_event(WAKEUP);
    }
    let sent = counter(&d, "transmit_packets");
    assert!(sent < 200);
    let mut received = 0;
    while received < 200 {
        match host.recv(&mut [0; 5000]) {
            Ok(n) => {
                assert_eq!(n, 4000);
                received += 1;
            }
            Err(_) => d.transport.process_event(BACKEND),
        }
    }
    drop(host);
    d.add_chain(1, &[(BUFFER, 4000)], &[]);
    d.kick(1);
    assert_eq!(counter(&d, "transmit_dropped"), 1);
    assert_eq!(counter(&d, "transmit_packets"), 200);
}

#[test]
fn packet_received_fills_several_buffers_when_they_merge() {
    let (mut d, host) = plain(u64::MAX);
    let sent = packet(1000);
    let heads: Vec<u16> = (0..8)
        .map(|n| d.add_chain(0, &[], &[(BUFFER + n * 0x1000, 300)]))
        .collect();
    host.send(&sent).unwrap();
    host.send(&sent[..20]).unwrap();
    d.kick(0);
    for (n, written) in [(0, 300), (1, 300), (2, 300), (3, 100), (4, 20)] {
        assert_eq!(d.used(0), Some((heads[n], written)));
    }
    assert_eq!(d.used(0), None);
    let first: [u8; 300] = d.get(BUFFER);
    assert_eq!(first[..10], [0; 10]);
    assert_eq!(first[10..12], 4u16.to_le_bytes());
    assert_eq!(first[12..], sent[12..300]);
    assert_eq!(d.get::<100>(BUFFER + 0x3000), sent[900..]);
    let other: [u8; 20] = d.get(BUFFER + 0x4000);
    assert_eq!(other[10..12], [1, 0]);
    assert_eq!(other[12..], sent[12..20]);
}

#[test]
fn packet_when_buffers_do_not_merge_fills_one_or_is_dropped() {
    let (mut d, host) = plain(NO_MERGE);
    let head = d.add_chain(0, &[], &[(BUFFER, 12), (BUFFER + 0x100, 500)]);
    d.add_chain(0, &[], &[(BUFFER + 0x1000, 1000)]);
    host.send(&packet(800)).unwrap();
    host.send(&packet(512)).unwrap();
    d.kick(0);
    assert_eq!(d.used(0), Some((head, 512)));
    assert_eq!(d.used(0), None);
    assert_eq!(d.get::<2>(BUFFER + 10), [1, 0]);
    assert_eq!(d.get::<500>(BUFFER + 0x100), packet(512)[12..]);
    assert_eq!(counter(&d, "receive_dropped"), 1);
}

#[test]
fn packet_longer_than_what_is_there_waits_for_the_rest() {
    let (mut d, host) = plain(u64::MAX);
    let sent = packet(5000);
    d.add_chain(0, &[], &[(BUFFER, 2000)]);
    host.send(&sent).unwrap();
    d.transport.process_event(BACKEND);
    assert_eq!(d.used(0), None);
    d.add_chain(0, &[], &[(BUFFER + 2000, 2000)]);
    d.kick(0);
    assert_eq!(d.used(0), None);
    d.add_chain(0, &[], &[(BUFFER + 4000, 2000)]);
    d.kick(0);
    let written: Vec<u32> = (0..3).map(|_| d.used(0).unwrap().1).collect();
    assert_eq!(written, [2000, 2000, 1000]);
    let data: [u8; 5000] = d.get(BUFFER);
    assert_eq!(data[10..12], [3, 0]);
    assert_eq!(data[12..], sent[12..]);
}

#[test]
fn packet_longer_than_the_whole_ring_is_dropped() {
    let (mut d, host) = card(NetConfig::default(), u64::MAX, 4);
    let heads: Vec<u16> = (0..4)
        .map(|n| d.add_chain(0, &[], &[(BUFFER + n * 0x1000, 100)]))
        .collect();
    host.send(&packet(500)).unwrap();
    host.send(&packet(400)).unwrap();
    d.kick(0);
    for head in heads {
        assert_eq!(d.used(0), Some((head, 100)));
    }
    assert_eq!(counter(&d, "receive_dropped"), 1);
}

#[test]
fn packets_when_the_guest_has_no_buffers_stay_with_the_host() {
    let (mut d, host) = plain(u64::MAX);
    host.send(&packet(50)).unwrap();
    d.transport.process_event(BACKEND);
    assert_eq!(counter(&d, "receive_no_buffers"), 2); // at the start, and now
    let empty = d.add_chain(0, &[(BUFFER, 50)], &[]);
    let head = d.add_chain(0, &[], &[(BUFFER, 50)]);
    d.kick(0);
    assert_eq!(d.used(0), Some((empty, 0)));
    assert_eq!(d.used(0), Some((head, 50)));
}

#[test]
fn packets_too_short_for_a_header_are_dropped() {
    let (mut d, host) = plain(u64::MAX);
    let head = d.add_chain(0, &[], &[(BUFFER, 50)]);
    host.send(&[0; 11]).unwrap();
    host.send(&packet(12)).unwrap();
    d.kick(0);
    assert_eq!(d.used(0), Some((head, 12)));
    assert_eq!(counter(&d, "receive_dropped"), 1);
}

#[test]
fn header_when_scattered_over_tiny_buffers_is_whole() {
    let (mut d, host) = plain(u64::MAX);
    for n in 0..40 {
        d.add_chain(0, &[], &[(BUFFER + n * 16, 1)]);
    }
    host.send(&packet(30)).unwrap();
    d.kick(0);
    let bytes: Vec<u8> = (0..30).map(|n| d.get::<1>(BUFFER + n * 16)[0]).collect();
    assert_eq!(bytes[10..12], [30, 0]);
    assert_eq!(bytes[12..], packet(30)[12..]);
}

#[test]
fn turn_ends_after_so_many_packets_and_comes_again() {
    let (mut d, _host) = plain(u64::MAX);
    for _ in 0..TURN + 1 {
        d.add_chain(1, &[], &[]);
    }
    d.kick(1);
    assert_eq!(counter(&d, "transmit_dropped"), u64::from(TURN));
    d.transport.process_event(WAKEUP);
    assert_eq!(counter(&d, "transmit_dropped"), u64::from(TURN) + 1);
}

#[test]
fn limits_hold_each_direction_by_itself() {
    let limit = RateLimit {
        operations_per_second: 1,
        burst_operations: 1,
        ..Default::default()
    };
    let config = NetConfig {
        receive_limit: limit,
        transmit_limit: limit,
        ..Default::default()
    };
    let (mut d, host) = card(config, u64::MAX, 256);
    for _ in 0..2 {
        d.add_chain(0, &[], &[(BUFFER, 100)]);
        d.add_chain(1, &[(BUFFER + 0x1000, 50)], &[]);
        host.send(&packet(70)).unwrap();
    }
    d.kick(0);
    d.kick(1);
    assert_eq!(d.used(0), Some((0, 70)));
    assert_eq!(d.used(1), Some((0, 0)));
    assert_eq!((d.used(0), d.used(1)), (None, None));
    let start = std::time::Instant::now();
    while d.used(0).is_none() || d.used(1).is_none() {
        d.transport.process_event(RECEIVE_TIMER);
        d.transport.process_event(TRANSMIT_TIMER);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(start.elapsed().as_millis() > 500);
}

#[test]
fn reset_in_the_middle_of_a_packet_forgets_it() {
    let (mut d, host) = plain(u64::MAX);
    d.add_chain(0, &[], &[(BUFFER, 20)]);
    host.send(&packet(500)).unwrap();
    d.kick(0);
    assert_eq!(d.used(0), None);
    assert_eq!(d.start(u64::MAX, 256), 0xf);
    d.transport.process_event(WAKEUP);
    let head = d.add_chain(0, &[], &[(BUFFER, 600)]);
    d.kick(0);
    assert_eq!(d.used(0), None);
    host.send(&packet(40)).unwrap();
    d.transport.process_event(BACKEND);
    assert_eq!(d.used(0), Some((head, 40)));
}

#[test]
fn chains_that_are_malformed_stop_the_device_until_reset() {
    for queue in [0, 1] {
        let (mut d, host) = plain(u64::MAX);
        host.send(&packet(50)).unwrap();
        d.set_descriptor(queue, 0, (BUFFER, 16), 3, 0);
        d.add_available(queue, 0);
        d.kick(queue);
        assert_eq!(d.read(0x70), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
        for token in 0..5 {
            d.transport.process_event(token);
        }
        assert_eq!(d.start(u64::MAX, 256), 0xf);
        let head = d.add_chain(0, &[], &[(BUFFER, 100)]);
        d.kick(0);
        assert_eq!(d.used(0), Some((head, 50)));
    }
}

/// A packet socket on an interface of the current namespace.
fn packet_socket(interface: &std::ffi::CStr) -> std::fs::File {
    use std::os::fd::FromRawFd;
    let protocol = 0x88b5u16.to_be(); // for local experiments
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
    assert!(fd >= 0);
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    // SAFETY: a C string, and an address with its length, borrowed for the calls.
    unsafe {
        address.sll_ifindex = libc::if_nametoindex(interface.as_ptr()) as i32;
        let len = size_of_val(&address) as u32;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    unsafe { std::fs::File::from_raw_fd(fd) }
}

#[test]
fn tap_carries_packets_both_ways_and_refuses_nonsense() {
    use std::io::{Read, Write};
    tap::tests::in_namespace(|| {
        let tap = tap::Tap::open("tap7", Some(1400)).unwrap();
        let mut host = packet_socket(c"tap7");
        let net = Net::new(NetConfig::default(), Box::new(tap)).unwrap();
        let mut d = TestDriver::new(Box::new(net), 1 << 21);
        assert_eq!(d.start(u64::MAX, 256), 0xf);

        // To the broadcast address, from anybody, of the experiments' type.
        let mut frame = [vec![0xff; 6], vec![2; 6], vec![0x88, 0xb5]].concat();
        frame.extend(1..=100);
        let mut sent = vec![0; HEADER_LEN];
        sent.extend(&frame);
        d.put(BUFFER, &sent);
        let len = sent.len() as u32;
        d.add_chain(1, &[(BUFFER, len)], &[]);
        // Segmentation of a kind that there is not.
        d.put(
            BUFFER + 0x1000,
            &[1, 0x77, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        );
        d.add_chain(1, &[(BUFFER + 0x1000, len)], &[]);
        d.kick(1);
        assert_eq!(counter(&d, "transmit_packets"), 1);
        assert_eq!(counter(&d, "transmit_dropped"), 1);
        let mut data = vec![0; 2000];
        assert_eq!(host.read(&mut data).unwrap(), frame.len());
        assert_eq!(data[..frame.len()], frame);

        // The host talks on a fresh interface of its own accord, so it may not be the first.
        let mut heads = Vec::new();
        for n in 0..64 {
            heads.push(d.add_chain(0, &[], &[(BUFFER + 0x1_0000 + n * 0x800, 0x800)]));
        }
        host.write_all(&frame).unwrap();
        d.transport.process_event(BACKEND);
        let found = std::iter::from_fn(|| d.used(0)).collect::<Vec<_>>();
        let found = found.into_iter().any(|(head, written)| {
            let n = heads.iter().position(|h| *h == head).unwrap() as u64;
            let data: [u8; 126] = d.get(BUFFER + 0x1_0000 + n * 0x800);
            written == 126 && data[10..12] == [1, 0] && data[12..] == frame
        });
        assert!(found);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the sizes of packets and buffers, what fits arrives whole and in order.
    #[test]
    fn packets_of_any_size_arrive_whole_in_buffers_of_any_size(
        packets in prop::collection::vec(12usize..9000, 1..12),
        buffers in prop::collection::vec(1u32..4000, 1..8),
    ) {
        let (mut d, host) = plain(u64::MAX);
        let mut slots = Vec::new(); // by head: address
        let mut address = BUFFER;
        for (n, len) in packets.iter().enumerate() {
            let mut sent = packet(*len);
            sent[12..].iter_mut().for_each(|b| *b ^= n as u8);
            host.send(&sent).unwrap();
            d.transport.process_event(BACKEND);
            let mut received = Vec::new();
            let mut turn = 0;
            while received.len() < *len {
                while let Some((head, written)) = d.used(0) {
                    let mut part = vec![0; written as usize];
                    let at: u64 = slots[usize::from(head)];
                    for (offset, byte) in part.iter_mut().enumerate() {
                        *byte = d.get::<1>(at + offset as u64)[0];
                    }
                    received.extend(part);
                }
                if received.len() >= *len {
                    break;
                }
                let size = buffers[(n + turn) % buffers.len()].max(*len as u32 / 100);
                turn += 1;
                let head = d.add_chain(0, &[], &[(address, size)]);
                if slots.len() <= usize::from(head) {
                    slots.resize(usize::from(head) + 1, 0);
                }
                slots[usize::from(head)] = address;
                address += u64::from(size);
                if address > 0x1f_0000 {
                    address = BUFFER;
                }
                d.kick(0);
            }
            prop_assert_eq!(received.len(), *len);
            prop_assert_eq!(&received[12..], &sent[12..]);
        }
        prop_assert_eq!(counter(&d, "receive_dropped"), 0);
    }
}
