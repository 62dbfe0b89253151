use std::fs::File;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::release::PAGE_SIZE;
use super::release::tests::{resident, shared_memory};
use super::*;
use crate::virtio::driver::TestDriver;
use crate::virtio::state::DeviceState;

const BUFFER: u64 = 0x8_0000;
/// A page that no ring and no buffer of these tests lies in.
const PAGE: u64 = 0x100;
const SECOND: (u64, usize) = (0x80_0000, 0x4_0000);

struct Bench {
    driver: TestDriver,
    handle: BalloonHandle,
    file: File,
}

fn config() -> BalloonConfig {
    BalloonConfig {
        name: "balloon".into(),
        target: 0x20_0000,
        deflate_on_oom: true,
        free_page_reporting: true,
        statistics: true,
    }
}

fn bench(config: BalloonConfig, features: u64) -> Bench {
    let balloon = Balloon::new(config).unwrap();
    let handle = balloon.handle();
    let (memory, file) = shared_memory(0x20_0000, SECOND);
    let mut driver = TestDriver::with_memory(Box::new(balloon), Arc::new(memory));
    assert_eq!(driver.start(features, 64), 0xf);
    Bench {
        driver,
        handle,
        file,
    }
}

impl Bench {
    fn inflate(&mut self, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.driver.put(BUFFER, &bytes);
        let len = bytes.len() as u32;
        let head = self.driver.add_chain(0, &[(BUFFER, len)], &[]);
        self.driver.kick(0);
        assert_eq!(self.driver.used(0), Some((head, 0)));
    }

    fn counter(&self, name: &str) -> u64 {
        let mut value = None;
        self.driver
            .transport
            .metrics(&mut |n, v| value = value.or((n == name).then_some(v)));
        value.unwrap()
    }
}

#[test]
fn size_when_changed_shows_in_the_configuration_and_interrupts() {
    let b = bench(config(), u64::MAX);
    assert_eq!(b.driver.read(0x100), 0x200);
    b.handle.set_target(0x30_0fff);
    assert_eq!(b.driver.read(0x100), 0x300);
    assert_eq!(b.handle.target(), 0x30_0000);
    assert_eq!(b.driver.read(0x60), 2);
    b.driver.write(0x64, 2);
    b.handle.set_target(0x30_0000);
    assert_eq!(b.driver.read(0x60), 0);
    b.handle.set_target(u64::MAX);
    assert_eq!(b.driver.read(0x100), u32::MAX);

    b.driver.write(0x104, 0x123);
    assert_eq!(b.handle.actual(), 0x12_3000);
    assert_eq!(b.driver.read(0x104), 0x123);
    b.driver.write(0x70, 0);
    assert_eq!(b.handle.actual(), 0);
}

#[test]
fn inflated_pages_go_back_to_the_host_and_return_as_zeros() {
    let mut b = bench(config(), u64::MAX);
    let before = resident(&b.file);
    let page = PAGE as u32;
    b.inflate(&[page + 2, page, page + 1, page + 9, page]);
    assert_eq!(before - resident(&b.file), 4 * PAGE_SIZE);
    assert_eq!(b.driver.get::<2>((PAGE + 3) * PAGE_SIZE - 1), [0, 1]);
    assert_eq!(b.counter("inflated_bytes"), 4 * PAGE_SIZE);

    let head = b.driver.add_chain(1, &[(BUFFER, 16)], &[]);
    b.driver.kick(1);
    assert_eq!(b.driver.used(1), Some((head, 0)));
    b.driver.put(PAGE * PAGE_SIZE, &[7]);
    assert_eq!(b.driver.get::<1>(PAGE * PAGE_SIZE), [7]);
}

#[test]
fn page_numbers_outside_guest_memory_release_nothing() {
    let mut b = bench(config(), u64::MAX);
    let before = resident(&b.file);
    let end = (SECOND.0 + SECOND.1 as u64) / PAGE_SIZE;
    b.inflate(&[
        0x200,
        0x7ff,
        end as u32,
        u32::MAX,
        u32::MAX - 1,
        0x8000_0000,
    ]);
    assert_eq!(resident(&b.file), before);
    assert_eq!(b.counter("failed_bytes"), 0);
    b.inflate(&[end as u32, end as u32 - 1]);
    assert_eq!(resident(&b.file), before - PAGE_SIZE);
}

#[test]
fn chain_of_page_numbers_when_empty_odd_or_huge_is_returned() {
    let mut b = bench(config(), u64::MAX);
    for readable in [
        &[][..],
        &[(BUFFER, 3)],
        &[(BUFFER, 5)],
        &[(SECOND.0, 0x4_0000), (SECOND.0, 0x4_0000)],
    ] {
        let head = b.driver.add_chain(0, readable, &[(BUFFER, 100)]);
        b.driver.kick(0);
        assert_eq!(b.driver.used(0), Some((head, 0)));
    }
    assert_eq!(b.driver.read(0x70), 0xf);
}

#[test]
fn reported_ranges_go_back_unless_they_are_poisoned() {
    for (poison, released) in [(0, 8 * PAGE_SIZE), (0xaaaa_aaaa, 0)] {
        let mut b = bench(config(), u64::MAX);
        b.driver.write(0x10c, poison);
        let before = resident(&b.file);
        let ranges = [
            (PAGE * PAGE_SIZE, 4 * PAGE_SIZE as u32),
            (SECOND.0, 4 * PAGE_SIZE as u32),
        ];
        let head = b.driver.add_chain(3, &[], &ranges);
        b.driver.kick(3);
        assert_eq!(b.driver.used(3), Some((head, 0)));
        assert_eq!(before - resident(&b.file), released);
        assert_eq!(b.counter("reported_bytes"), released);
    }
}

#[test]
fn queues_are_numbered_by_what_the_driver_accepted() {
    let mut b = bench(config(), !(1 << F_STATS_VQ));
    let before = resident(&b.file);
    b.driver
        .add_chain(2, &[], &[(PAGE * PAGE_SIZE, PAGE_SIZE as u32)]);
    b.driver.kick(2);
    b.driver.kick(3);
    assert_eq!(before - resident(&b.file), PAGE_SIZE);

    let plain = BalloonConfig::default();
    let b = bench(plain, u64::MAX);
    b.driver.write(0x30, 2);
    assert_eq!(b.driver.read(0x34), 0);
    assert_eq!(b.driver.offered_features() & 0xffff, 0);
    b.driver.write(0x10c, 5);
    assert_eq!(b.driver.read(0x10c), 0);
}

#[test]
fn statistics_when_asked_for_come_afresh() {
    let mut b = bench(config(), u64::MAX);
    let mut entries = Vec::new();
    for (tag, value) in [(4u16, 1000u64), (5, 2000), (77, 3), (0, u64::MAX)] {
        entries.extend(tag.to_le_bytes());
        entries.extend(value.to_le_bytes());
    }
    b.driver.put(BUFFER, &entries);
    let head = b.driver.add_chain(2, &[(BUFFER, 45)], &[]);
    b.driver.kick(2);
    assert_eq!(b.driver.used(2), None, "kept until asked for");
    let expected = MemoryStatistics {
        free: Some(1000),
        total: Some(2000),
        swap_in: Some(u64::MAX),
        ..Default::default()
    };
    assert_eq!(b.handle.statistics(), (1, expected));
    b.driver.transport.process_event(WAKEUP);
    assert_eq!(b.driver.used(2), None);

    b.handle.request_statistics();
    b.driver.transport.process_event(WAKEUP);
    assert_eq!(b.driver.used(2), Some((head, 0)));
    b.driver.add_chain(2, &[(BUFFER, 10)], &[]);
    b.driver.add_chain(2, &[(BUFFER, 10)], &[]);
    b.driver.kick(2);
    let (count, statistics) = b.handle.statistics();
    assert_eq!((count, statistics.total), (2, None));
    assert_eq!(b.driver.used(2), None);
}

#[test]
fn turn_ends_after_so_many_chains_and_comes_again() {
    let mut b = bench(config(), u64::MAX);
    for _ in 0..TURN + 1 {
        b.driver.add_chain(1, &[(BUFFER, 4)], &[]);
    }
    b.driver.kick(1);
    assert_eq!(b.counter("deflated_chains"), u64::from(TURN));
    b.driver.transport.process_event(WAKEUP);
    assert_eq!(b.counter("deflated_chains"), u64::from(TURN) + 1);
}

#[test]
fn chains_that_are_malformed_stop_the_device_until_reset() {
    for queue in 0..4 {
        let mut b = bench(config(), u64::MAX);
        b.driver.set_descriptor(queue, 0, (0x20_0000, 16), 2, 0);
        b.driver.add_available(queue, 0);
        b.driver.kick(queue);
        assert_eq!(b.driver.read(0x70), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
        b.driver.transport.process_event(WAKEUP);
        assert_eq!(b.driver.start(u64::MAX, 64), 0xf);
        b.inflate(&[PAGE as u32]);
    }
}

/// Goes on with a balloon that asks for nothing by itself.
fn move_to_other(b: &mut Bench, state: &DeviceState) {
    let balloon = Balloon::new(BalloonConfig {
        target: 0,
        ..config()
    })
    .unwrap();
    b.handle = balloon.handle();
    b.driver.move_to(Box::new(balloon), state).unwrap();
    b.driver.transport.restart();
}

#[test]
fn sizes_and_poison_outlive_the_device() {
    let mut b = bench(config(), u64::MAX);
    b.driver.write(0x104, 0x123);
    b.driver.write(0x10c, 0xaa);
    let state = b.driver.save();
    move_to_other(&mut b, &state);
    assert_eq!(
        (b.handle.target(), b.handle.actual()),
        (0x20_0000, 0x12_3000)
    );
    assert_eq!(b.driver.read(0x10c), 0xaa);
    assert_eq!(b.driver.read(0x60), 0);
    b.inflate(&[PAGE as u32]);
    b.handle.set_target(0);
    assert_eq!(b.driver.read(0x60) & 2, 2);
}

#[test]
fn statistics_buffer_that_is_held_is_taken_again_by_the_next_device() {
    let mut b = bench(config(), u64::MAX);
    let mut entry = vec![4, 0];
    entry.extend(77u64.to_le_bytes());
    b.driver.put(BUFFER, &entry);
    let head = b.driver.add_chain(2, &[(BUFFER, 10)], &[]);
    b.driver.kick(2);
    let state = b.driver.save();
    assert_eq!(state, b.driver.save());
    for moved in [false, true] {
        if moved {
            let state = b.driver.save();
            move_to_other(&mut b, &state);
        }
        assert_eq!(b.handle.statistics().1.free, Some(77));
        assert_eq!(b.driver.used(2), None);
        b.handle.request_statistics();
        b.driver.transport.process_event(WAKEUP);
        assert_eq!(b.driver.used(2), Some((head, 0)));
        b.driver.add_available(2, head);
        b.driver.kick(2);
    }
    assert_eq!(b.handle.statistics().0, 2);
}

#[test]
fn chains_of_a_long_turn_are_finished_by_the_next_device() {
    let mut b = bench(config(), u64::MAX);
    let heads: Vec<u16> = (0..2 * TURN)
        .map(|_| b.driver.add_chain(1, &[(BUFFER, 4)], &[]))
        .collect();
    b.driver.kick(1);
    let state = b.driver.save();
    move_to_other(&mut b, &state);
    for head in heads {
        assert_eq!(b.driver.used(1), Some((head, 0)));
    }
    assert_eq!(b.driver.used(1), None);
}

#[test]
fn state_of_a_balloon_without_statistics_does_not_fit_one_with_them() {
    let mut b = bench(
        BalloonConfig {
            statistics: false,
            ..config()
        },
        u64::MAX,
    );
    let mut state = b.driver.save();
    let other = || Box::new(Balloon::new(config()).unwrap());
    assert!(b.driver.move_to(other(), &state).is_err());
    state.queues.push(state.queues[0].clone());
    state.device["target"] = (1u64 << 32).into();
    assert!(b.driver.move_to(other(), &state).is_err());
}
