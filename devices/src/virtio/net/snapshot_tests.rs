//! A card that goes on in another's place.

use std::os::unix::net::UnixDatagram;

use super::tests::{BUFFER, NO_MERGE, card, counter, packet, plain};
use super::*;
use crate::virtio::driver::TestDriver;
use crate::virtio::state::{DeviceState, StateError};

fn other_card(config: NetConfig) -> (Box<Net>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Box::new(Net::new(config, Box::new(ours)).unwrap()), theirs)
}

/// Goes on with a card on another host.
fn move_to_other(d: &mut TestDriver, state: &DeviceState) -> UnixDatagram {
    let (net, host) = other_card(NetConfig::default());
    d.move_to(net, state).unwrap();
    d.transport.restart();
    host
}

fn receive(host: &UnixDatagram, d: &TestDriver, len: usize) {
    host.send(&packet(len)).unwrap();
    d.transport.process_event(BACKEND);
}

#[test]
fn buffers_that_were_held_are_there_for_the_next_card() {
    for features in [u64::MAX, NO_MERGE] {
        let (mut d, host) = plain(features);
        let heads: Vec<u16> = (0..6)
            .map(|n| d.add_chain(0, &[], &[(BUFFER + n * 0x1000, 2000)]))
            .collect();
        receive(&host, &d, 100);
        assert_eq!(d.used(0), Some((heads[0], 100)));
        let state = d.save();
        assert_eq!(state.queues[0].next_available, 1);
        assert_eq!(d.save(), state);
        let host = move_to_other(&mut d, &state);
        for head in &heads[1..] {
            receive(&host, &d, 200);
            assert_eq!(d.used(0), Some((*head, 200)));
        }
        assert_eq!(d.used(0), None);
        assert_eq!(counter(&d, "receive_dropped"), 0);
    }
}

#[test]
fn packet_that_waits_for_room_is_lost_to_the_next_card_and_not_to_this_one() {
    let start = || {
        let (mut d, host) = plain(u64::MAX);
        let heads = [0, 1].map(|n| d.add_chain(0, &[], &[(BUFFER + n * 0x1000, 100)]));
        receive(&host, &d, 250);
        let state = d.save();
        (d, host, heads, state)
    };
    let (mut d, _host, heads, _) = start();
    let last = d.add_chain(0, &[], &[(BUFFER + 0x2000, 100)]);
    d.kick(0);
    for used in [(heads[0], 100), (heads[1], 100), (last, 50)] {
        assert_eq!(d.used(0), Some(used));
    }

    let (mut d, _host, heads, state) = start();
    let host = move_to_other(&mut d, &state);
    receive(&host, &d, 150);
    assert_eq!(d.used(0), Some((heads[0], 100)));
    assert_eq!(d.used(0), Some((heads[1], 50)));
    assert_eq!(d.used(0), None);
}

#[test]
fn buffers_of_no_use_between_others_come_back_in_their_order() {
    let start = || {
        let (mut d, host) = plain(u64::MAX);
        let first = d.add_chain(0, &[], &[(BUFFER, 100)]);
        let useless = d.add_chain(0, &[(BUFFER, 100)], &[]);
        let last = d.add_chain(0, &[], &[(BUFFER + 0x1000, 100)]);
        d.kick(0);
        assert_eq!(d.used(0), None);
        let state = d.save();
        assert_eq!(state.queues[0].next_available, 0);
        (d, host, [first, useless, last], state)
    };
    let check = |d: &mut TestDriver, host: &UnixDatagram, heads: [u16; 3]| {
        receive(host, d, 150);
        let mut all: Vec<_> = std::iter::from_fn(|| d.used(0)).collect();
        all.sort_unstable();
        assert_eq!(all, [(heads[0], 100), (heads[1], 0), (heads[2], 50)]);
        assert_eq!(d.get::<2>(BUFFER + 10), [2, 0]);
    };
    let (mut d, host, heads, _) = start();
    check(&mut d, &host, heads);
    let (mut d, _host, heads, state) = start();
    let host = move_to_other(&mut d, &state);
    check(&mut d, &host, heads);
}

#[test]
fn buffers_of_no_use_without_end_are_not_held_without_end() {
    let (mut d, host) = card(NetConfig::default(), u64::MAX, 4);
    d.add_chain(0, &[], &[(BUFFER, 100)]);
    for _ in 0..100 {
        d.add_chain(0, &[(BUFFER, 1)], &[]);
        d.kick(0);
    }
    receive(&host, &d, 50);
    assert_eq!(std::iter::from_fn(|| d.used(0)).count(), 4);
    assert_eq!(d.read(0x70) & 0x40, 0x40, "more than the ring holds");
}

#[test]
fn packets_that_wait_to_be_sent_are_sent_by_the_next_card() {
    let config = NetConfig {
        transmit_limit: RateLimit {
            operations_per_second: 1,
            burst_operations: 2,
            ..Default::default()
        },
        ..Default::default()
    };
    let (mut d, host) = card(config, u64::MAX, 256);
    d.put(BUFFER, &packet(60));
    let heads: Vec<u16> = (0..5)
        .map(|_| d.add_chain(1, &[(BUFFER, 60)], &[]))
        .collect();
    d.kick(1);
    let count = |host: &UnixDatagram| std::iter::from_fn(|| host.recv(&mut [0; 100]).ok()).count();
    assert_eq!(count(&host), 2);
    let state = d.save();
    let host = move_to_other(&mut d, &state);
    assert_eq!(count(&host), 3);
    for head in heads {
        assert_eq!(d.used(1), Some((head, 0)));
    }
    assert_eq!(d.used(1), None);
}

#[test]
fn address_outlives_the_card() {
    let config = NetConfig {
        mac: Some("02:01:02:03:04:05".parse().unwrap()),
        ..Default::default()
    };
    let (mut d, _host) = card(config, u64::MAX, 256);
    let before = (d.read(0x100), d.read(0x104));
    let state = d.save();
    move_to_other(&mut d, &state);
    assert_eq!((d.read(0x100), d.read(0x104)), before);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let (mut d, _host) = plain(u64::MAX);
    let state = d.save();
    let (mtu, _host) = other_card(NetConfig {
        mtu: Some(9000),
        ..Default::default()
    });
    let error = d.move_to(mtu, &state).unwrap_err();
    assert!(matches!(error, StateError::Mismatch { .. }), "{error}");
    for mac in ["", "ff:ff:ff:ff:ff:ff"] {
        let mut state = state.clone();
        state.device["mac"] = mac.into();
        let (net, _host) = other_card(NetConfig::default());
        let error = d.move_to(net, &state).unwrap_err();
        assert!(matches!(error, StateError::Malformed { .. }), "{error}");
    }
}
