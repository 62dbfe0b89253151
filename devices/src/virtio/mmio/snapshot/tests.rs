use serde_json::json;
use vmm_sys_util::eventfd::EventFd;

use super::super::tests::Echo;
use super::*;
use crate::bus::BusDevice;
use crate::virtio::driver::{RINGS_SIZE, TestDriver};
use crate::virtio::rng::Rng;

const RUNNING: u32 = 0xf;
const BUFFER: u64 = 0x8_0000;

fn driver() -> TestDriver {
    let mut driver = TestDriver::new(Box::<Echo>::default(), 1 << 20);
    assert_eq!(driver.start(u64::MAX, 16), RUNNING);
    driver
}

fn is_notified(notifier: &EventFd) -> bool {
    notifier.read().is_ok()
}

/// A driver that was served once, and the state of its device.
fn served() -> (TestDriver, DeviceState) {
    let mut d = driver();
    let head = d.add_chain(0, &[], &[(BUFFER, 3)]);
    d.kick(0);
    assert_eq!(d.used(0), Some((head, 3)));
    let state = d.save();
    (d, state)
}

#[test]
fn registers_when_restored_read_the_same() {
    let mut d = driver();
    d.write(0x14, 1);
    d.write(0x24, 1);
    d.write(0x30, 1);
    d.transport.interrupt().signal_config();
    let registers = |d: &TestDriver| {
        let mut all = vec![0; 0x110];
        for offset in (0..0x110).step_by(4) {
            d.transport
                .read(offset as u64, &mut all[offset..offset + 4]);
        }
        all
    };
    let before = registers(&d);
    let state = d.save();
    d.move_to(Box::<Echo>::default(), &state).unwrap();
    assert_eq!(registers(&d), before);
    assert_eq!(d.save(), state);
}

#[test]
fn driver_that_is_still_climbing_goes_on_where_it_was() {
    for steps in 0..4 {
        let mut d = TestDriver::new(Box::<Echo>::default(), 1 << 20);
        for status in &[1, 3, 11][..steps] {
            if *status == 11 {
                d.write(0x24, 1);
                d.write(0x20, 1);
            }
            d.write(0x70, *status);
        }
        // As a driver leaves it that is not done: an address that is nowhere yet.
        d.write(0x84, 0xffff);
        let state = d.save();
        d.move_to(Box::<Echo>::default(), &state).unwrap();
        assert_eq!(d.save(), state);
        assert_eq!(d.start(u64::MAX, 16), RUNNING);
    }
}

#[test]
fn chains_after_a_restore_are_neither_lost_nor_doubled() {
    let (mut d, _) = served();
    let heads: Vec<u16> = (0..40)
        .map(|_| {
            let head = d.add_chain(0, &[], &[(BUFFER, 5)]);
            let state = d.save();
            d.move_to(Box::<Echo>::default(), &state).unwrap();
            // The notification was lost with the old transport.
            d.transport.restart();
            assert_eq!(d.used(0), Some((head, 5)));
            assert_eq!(d.used(0), None);
            head
        })
        .collect();
    assert_eq!(heads.len(), 40);
}

#[test]
fn device_that_was_saved_goes_on_and_looks_at_its_queues_again() {
    let mut d = driver();
    let head = d.add_chain(1, &[], &[(BUFFER, 7)]);
    assert!(!is_notified(&d.transport.notifiers()[1]));
    d.save();
    assert!(is_notified(&d.transport.notifiers()[1]));
    d.kick(1);
    assert_eq!(d.used(1), Some((head, 7)));
}

#[test]
fn interrupt_when_pending_is_asserted_again_at_the_restart() {
    let (mut d, state) = served();
    assert_eq!(state.interrupt_status, USED_RING);
    d.move_to(Box::<Echo>::default(), &state).unwrap();
    assert!(!is_notified(d.transport.interrupt().line()));
    d.transport.restart();
    assert!(is_notified(d.transport.interrupt().line()));

    d.write(0x64, USED_RING);
    let state = d.save();
    d.move_to(Box::<Echo>::default(), &state).unwrap();
    d.transport.restart();
    assert!(!is_notified(d.transport.interrupt().line()));
}

#[test]
fn device_that_needs_a_reset_still_does_and_recovers_by_one() {
    let mut d = driver();
    d.add_chain(0, &[(u64::MAX, 1)], &[]);
    d.kick(0);
    let mut state = d.save();
    assert!(state.needs_reset);
    // Nobody reads these before the reset.
    state.queues[0].used_ring = !3;
    d.move_to(Box::<Echo>::default(), &state).unwrap();
    d.transport.restart();
    assert_eq!(d.read(0x70), RUNNING | 0x40);
    assert!(is_notified(d.transport.interrupt().line()));
    d.kick(0);
    assert_eq!(d.start(u64::MAX, 16), RUNNING);
}

#[test]
fn transport_that_is_in_use_is_not_restored() {
    let (d, state) = served();
    let error = d.transport.restore(&state).unwrap_err();
    assert!(matches!(error, StateError::InUse { .. }), "{error}");
}

#[test]
fn device_of_another_kind_is_not_restored() {
    let (mut d, mut state) = served();
    let rng = || Box::new(Rng::new("rng".into(), &Default::default()).unwrap());
    let error = d.move_to(rng(), &state).unwrap_err();
    assert!(matches!(error, StateError::Mismatch { .. }), "{error}");
    state.device_type = 1;
    let error = d.move_to(Box::<Echo>::default(), &state).unwrap_err();
    assert!(matches!(error, StateError::Mismatch { .. }), "{error}");
}

#[test]
fn states_that_cannot_be_are_refused() {
    type Change = fn(&mut DeviceState);
    let changes: &[(&str, Change)] = &[
        ("no queue", |s| s.queues.clear()),
        ("a queue too many", |s| s.queues.push(QueueState::default())),
        ("size 0", |s| s.queues[0].size = 0),
        ("odd size", |s| s.queues[0].size = 12),
        ("size above the most", |s| s.queues[1].size = 16),
        ("table not aligned", |s| s.queues[0].descriptor_table += 8),
        ("available ring not aligned", |s| {
            s.queues[0].available_ring += 1
        }),
        ("used ring not aligned", |s| s.queues[0].used_ring += 2),
        ("table outside memory", |s| {
            s.queues[0].descriptor_table = 1 << 20
        }),
        ("available ring across the end", |s| {
            s.queues[0].available_ring = (1 << 20) - 8
        }),
        ("used ring that overflows", |s| s.queues[0].used_ring = !3),
        ("ahead of the driver", |s| s.queues[0].next_available += 1),
        ("far behind the driver", |s| {
            s.queues[0].next_available = 0u16.wrapping_sub(16)
        }),
        ("another used index", |s| s.queues[0].next_used += 1),
        ("unknown features", |s| s.driver_features |= 1 << 20),
        ("a legacy driver", |s| s.driver_features = 0),
        ("a status that skips", |s| s.status = 7),
        ("an unknown status", |s| s.status = 0x1f),
        ("needs-reset in the status", |s| s.status |= 0x40),
        ("unknown interrupts", |s| s.interrupt_status = 4),
        ("the device's own is something else", |s| {
            s.device = json!([1])
        }),
    ];
    for (what, change) in changes {
        let (mut d, mut state) = served();
        change(&mut state);
        let error = d.move_to(Box::<Echo>::default(), &state);
        assert!(error.is_err(), "{what}");
    }
}

#[test]
fn rings_in_strange_places_never_reach_outside_memory() {
    // Wherever in memory they are, the device reads what is there and stops or goes on.
    let (mut d, state) = served();
    for at in (0..2 * RINGS_SIZE).step_by(0x10) {
        for signalled in [0, u16::MAX] {
            let mut state = state.clone();
            let queue = &mut state.queues[0];
            queue.available_ring = at;
            queue.descriptor_table = RINGS_SIZE - at.min(RINGS_SIZE);
            queue.signalled = signalled;
            if d.move_to(Box::<Echo>::default(), &state).is_ok() {
                d.transport.restart();
                d.kick(0);
            }
        }
    }
}

#[test]
fn text_with_unknown_fields_is_refused() {
    let (_, state) = served();
    let mut text = serde_json::to_value(&state).unwrap();
    text["more"] = json!(1);
    assert!(serde_json::from_value::<DeviceState>(text.clone()).is_err());
    text.as_object_mut().unwrap().remove("more");
    text["queues"][0]["size"] = json!(65536);
    assert!(serde_json::from_value::<DeviceState>(text).is_err());
}
