use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::*;
use crate::virtio::driver::TestDriver;
use crate::virtio::state::DeviceState;

const BUFFER: u64 = 0x8_0000;
const SIZE: WindowSize = WindowSize {
    columns: 80,
    rows: 24,
};

struct Bench {
    driver: TestDriver,
    handle: ConsoleHandle,
}

fn bench(input: Option<OwnedFd>, output: OwnedFd) -> Bench {
    let console = Console::new(ConsoleConfig {
        name: "console".into(),
        input,
        output,
        size: SIZE,
    })
    .unwrap();
    let handle = console.handle();
    let mut driver = TestDriver::new(Box::new(console), 1 << 21);
    assert_eq!(driver.start(u64::MAX, 64), 0xf);
    driver.transport.process_event(WAKEUP);
    Bench { driver, handle }
}

fn piped() -> (Bench, PipeWriter, PipeReader) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    (bench(Some(input.into()), output.into()), keyboard, screen)
}

fn counter(driver: &TestDriver, name: &str) -> u64 {
    let mut value = None;
    driver
        .transport
        .metrics(&mut |n, v| value = value.or((n == name).then_some(v)));
    value.unwrap()
}

#[test]
fn window_size_when_changed_shows_in_the_configuration_and_interrupts() {
    let (b, _keyboard, _screen) = piped();
    let mut config = [0; 4];
    let size = |b: &Bench| b.driver.read(0x100);
    assert_eq!(size(&b), 80 | 24 << 16);
    let generation = b.driver.read(0xfc);
    b.handle.set_size(WindowSize {
        columns: 132,
        rows: 50,
    });
    assert_eq!(size(&b), 132 | 50 << 16);
    assert_eq!(b.driver.read(0x60), 2);
    assert_ne!(b.driver.read(0xfc), generation);

    b.driver.write(0x64, 2);
    b.handle.set_size(WindowSize {
        columns: 132,
        rows: 50,
    });
    b.driver.write(0x70, 0);
    b.handle.set_size(SIZE);
    assert_eq!(b.driver.read(0x60), 0);
    crate::bus::BusDevice::read(&b.driver.transport, 0x104, &mut config);
    assert_eq!(config, [0; 4]);
}

#[test]
fn input_fills_the_guests_buffers_in_order() {
    let (mut b, mut keyboard, _screen) = piped();
    let first = b.driver.add_chain(0, &[], &[(BUFFER, 2), (BUFFER + 16, 2)]);
    let empty = b.driver.add_chain(0, &[(BUFFER, 8)], &[]);
    let second = b.driver.add_chain(0, &[], &[(BUFFER + 32, 16)]);
    b.driver.kick(0);
    assert_eq!(b.driver.used(0), None);
    keyboard.write_all(b"hello\n").unwrap();
    b.driver.transport.process_event(INPUT);
    assert_eq!(b.driver.used(0), Some((first, 4)));
    assert_eq!(b.driver.used(0), Some((empty, 0)));
    assert_eq!(b.driver.used(0), Some((second, 2)));
    assert_eq!(&b.driver.get::<2>(BUFFER), b"he");
    assert_eq!(&b.driver.get::<2>(BUFFER + 16), b"ll");
    assert_eq!(&b.driver.get::<2>(BUFFER + 32), b"o\n");
}

#[test]
fn input_when_the_guest_has_no_buffer_waits_for_one() {
    let (mut b, mut keyboard, _screen) = piped();
    keyboard.write_all(b"x").unwrap();
    b.driver.transport.process_event(INPUT);
    let head = b.driver.add_chain(0, &[], &[(BUFFER, 8)]);
    b.driver.kick(0);
    assert_eq!(b.driver.used(0), Some((head, 1)));
}

#[test]
fn input_that_came_before_the_driver_is_delivered_after_it() {
    let (mut b, mut keyboard, _screen) = piped();
    b.driver.write(0x70, 0);
    keyboard.write_all(b"early").unwrap();
    b.driver.transport.process_event(INPUT);
    b.driver.start(u64::MAX, 64);
    let head = b.driver.add_chain(0, &[], &[(BUFFER, 8)]);
    b.driver.transport.process_event(WAKEUP);
    assert_eq!(b.driver.used(0), Some((head, 5)));
}

#[test]
fn input_when_ended_or_absent_leaves_the_output_working() {
    for input in [Some(File::open("/dev/null").unwrap().into()), None] {
        let (mut screen, output) = pipe().unwrap();
        let mut b = bench(input, output.into());
        b.driver.add_chain(0, &[], &[(BUFFER, 8)]);
        b.driver.kick(0);
        b.driver.kick(0);
        b.driver.put(BUFFER, b"out");
        b.driver.add_chain(1, &[(BUFFER, 3)], &[]);
        b.driver.kick(1);
        let mut text = [0; 3];
        screen.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"out");
        assert_eq!(b.driver.used(0), None);
        assert_eq!(b.driver.read(0x70), 0xf);
    }
}

#[test]
fn input_without_end_gives_the_loop_back_after_a_turn() {
    let (_screen, output) = pipe().unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let mut b = bench(Some(zero.into()), output.into());
    for _ in 0..64 {
        b.driver.add_chain(0, &[], &[(BUFFER, 4)]);
    }
    b.driver.kick(0);
    assert_eq!(counter(&b.driver, "input_bytes"), 4 * u64::from(TURN));
}

#[test]
fn output_that_is_full_keeps_the_guests_buffer_until_there_is_room() {
    let (mut b, _keyboard, mut screen) = piped();
    let total = 0x10_0000;
    let pattern: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
    b.driver.put(BUFFER, &pattern);
    let first = b.driver.add_chain(1, &[(BUFFER, total)], &[]);
    let second = b.driver.add_chain(1, &[(BUFFER, 7)], &[]);
    b.driver.kick(1);
    assert_eq!(b.driver.used(1), None);
    b.driver.kick(1);
    assert!(counter(&b.driver, "output_stalls") >= 2);

    let mut seen = Vec::new();
    let mut part = vec![0; 1 << 15];
    while seen.len() < total as usize + 7 {
        let n = screen.read(&mut part).unwrap();
        seen.extend_from_slice(&part[..n]);
        b.driver.transport.process_event(OUTPUT);
    }
    assert_eq!(seen[..total as usize], pattern);
    assert_eq!(seen[total as usize..], pattern[..7]);
    assert_eq!(b.driver.used(1), Some((first, 0)));
    assert_eq!(b.driver.used(1), Some((second, 0)));
}

#[test]
fn output_that_is_broken_is_dropped() {
    let (mut b, _keyboard, screen) = piped();
    drop(screen);
    for _ in 0..3 {
        let head = b.driver.add_chain(1, &[(BUFFER, 10)], &[(BUFFER, 1)]);
        b.driver.kick(1);
        assert_eq!(b.driver.used(1), Some((head, 0)));
    }
    assert_eq!(counter(&b.driver, "output_dropped_bytes"), 30);
}

#[test]
fn output_when_reset_in_the_middle_starts_afresh() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut b = bench(None, ours.into());
    b.driver.add_chain(1, &[(BUFFER, 0x10_0000)], &[]);
    b.driver.kick(1);
    assert_eq!(b.driver.used(1), None);
    b.driver.start(u64::MAX, 64);
    theirs.set_nonblocking(true).unwrap();
    let _ = theirs.read_to_end(&mut Vec::new());
    b.driver.transport.process_event(OUTPUT);
    assert_eq!(b.driver.used(1), None);
    b.driver.put(BUFFER, b"new");
    let head = b.driver.add_chain(1, &[(BUFFER, 3)], &[]);
    b.driver.kick(1);
    assert_eq!(b.driver.used(1), Some((head, 0)));
    let mut text = [0; 3];
    theirs.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"new");
}

#[test]
fn chains_that_are_malformed_stop_the_device_until_reset() {
    for queue in [0, 1] {
        let (mut b, mut keyboard, _screen) = piped();
        keyboard.write_all(b"x").unwrap();
        b.driver.set_descriptor(queue, 0, (u64::MAX, 16), 0, 0);
        b.driver.add_available(queue, 0);
        b.driver.kick(queue);
        assert_eq!(b.driver.read(0x70), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
        for token in [INPUT, OUTPUT, WAKEUP, 99] {
            b.driver.transport.process_event(token);
        }
        assert_eq!(b.driver.start(u64::MAX, 64), 0xf);
        let head = b.driver.add_chain(0, &[], &[(BUFFER, 8)]);
        b.driver.kick(0);
        assert_eq!(b.driver.used(0), Some((head, 1)));
    }
}

/// Waits for the device's sources as the event loop does, and calls it with what is ready.
fn turn_the_loop(driver: &TestDriver, epoll: &vmm_sys_util::epoll::Epoll) {
    use vmm_sys_util::epoll::EpollEvent;
    let mut events = [EpollEvent::default(); 4];
    let n = epoll.wait(10_000, &mut events).unwrap();
    assert_ne!(n, 0, "no event in ten seconds");
    for event in &events[..n] {
        driver.transport.process_event(event.data() as u32);
    }
}

fn watch(driver: &TestDriver) -> vmm_sys_util::epoll::Epoll {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    let epoll = Epoll::new().unwrap();
    for source in driver.transport.event_sources() {
        let mut set = EventSet::IN;
        set.set(EventSet::EDGE_TRIGGERED, source.edge);
        set.set(EventSet::OUT, source.writable);
        let event = EpollEvent::new(set, source.token.into());
        epoll.ctl(ControlOperation::Add, source.fd, event).unwrap();
    }
    epoll
}

#[test]
fn terminal_that_is_read_slowly_gets_everything_through_edges_alone() {
    let (master, slave) = crate::stream::pty();
    let mut b = bench(Some(slave.try_clone().unwrap()), slave);
    let epoll = watch(&b.driver);
    let total = 200_000;
    b.driver.put(BUFFER, &vec![b'x'; total]);
    let head = b.driver.add_chain(1, &[(BUFFER, total as u32)], &[]);
    b.driver.kick(1);
    assert_eq!(b.driver.used(1), None);
    let reader = std::thread::spawn(move || {
        let mut master = File::from(master);
        let mut data = vec![0; total];
        master.read_exact(&mut data).unwrap();
        master.write_all(b"typed\n").unwrap();
        (data, master)
    });
    let used = loop {
        turn_the_loop(&b.driver, &epoll);
        if let Some(used) = b.driver.used(1) {
            break used;
        }
    };
    assert_eq!(used, (head, 0));
    let (data, _master) = reader.join().unwrap();
    assert_eq!(data, vec![b'x'; total]);

    let head = b.driver.add_chain(0, &[], &[(BUFFER, 16)]);
    b.driver.kick(0);
    let used = loop {
        if let Some(used) = b.driver.used(0) {
            break used;
        }
        turn_the_loop(&b.driver, &epoll);
    };
    assert_eq!(used, (head, 6));
}

/// Goes on with a console on other streams. Its keyboard and screen.
fn move_to_other(b: &mut Bench, state: &DeviceState) -> (PipeWriter, PipeReader) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    let console = Console::new(ConsoleConfig {
        name: "console".into(),
        input: Some(input.into()),
        output: output.into(),
        size: WindowSize::default(),
    })
    .unwrap();
    b.handle = console.handle();
    b.driver.move_to(Box::new(console), state).unwrap();
    b.driver.transport.restart();
    (keyboard, screen)
}

/// A console that has written a part of one chain and has another waiting.
fn partly_written() -> (Bench, PipeReader, [u16; 2], Vec<u8>, usize) {
    let (mut b, _keyboard, screen) = piped();
    let text: Vec<u8> = (0..0x4_0000).map(|n| (n % 251) as u8).collect();
    b.driver.put(BUFFER, &text);
    let first = b.driver.add_chain(1, &[(BUFFER, text.len() as u32)], &[]);
    let second = b.driver.add_chain(1, &[(BUFFER, 5)], &[]);
    b.driver.kick(1);
    assert_eq!(counter(&b.driver, "output_stalls"), 1);
    let written = counter(&b.driver, "output_bytes") as usize;
    assert!(written > 0 && written < text.len());
    (b, screen, [first, second], text, written)
}

#[test]
fn output_partly_written_is_finished_by_the_next_device() {
    let (mut b, _screen, heads, text, written) = partly_written();
    let state = b.driver.save();
    let (_keyboard, mut screen) = move_to_other(&mut b, &state);
    let mut rest = vec![0; text.len() - written + 5];
    let mut done = 0;
    while done < rest.len() {
        done += screen.read(&mut rest[done..]).unwrap();
        b.driver.transport.process_event(OUTPUT);
    }
    assert_eq!(rest[..text.len() - written], text[written..]);
    assert_eq!(rest[text.len() - written..], text[..5]);
    assert_eq!(b.driver.used(1), Some((heads[0], 0)));
    assert_eq!(b.driver.used(1), Some((heads[1], 0)));
    assert_eq!(b.driver.used(1), None);
}

#[test]
fn output_partly_written_is_finished_by_a_device_that_was_saved() {
    let (mut b, mut screen, heads, text, _) = partly_written();
    assert_eq!(b.driver.save(), b.driver.save());
    let mut all = vec![0; text.len() + 5];
    let mut done = 0;
    while done < all.len() {
        done += screen.read(&mut all[done..]).unwrap();
        b.driver.transport.process_event(OUTPUT);
    }
    assert_eq!(all[..text.len()], text);
    assert_eq!(b.driver.used(1), Some((heads[0], 0)));
    assert_eq!(b.driver.used(1), Some((heads[1], 0)));
}

#[test]
fn offset_of_a_state_beyond_the_chain_counts_as_all_of_it() {
    let (mut b, _screen, heads, text, _) = partly_written();
    let mut state = b.driver.save();
    state.device["output_offset"] = u32::MAX.into();
    let (_keyboard, mut screen) = move_to_other(&mut b, &state);
    assert_eq!(b.driver.used(1), Some((heads[0], 0)));
    assert_eq!(b.driver.used(1), Some((heads[1], 0)));
    let mut rest = [0; 5];
    screen.read_exact(&mut rest).unwrap();
    assert_eq!(rest, text[..5]);
}

#[test]
fn size_and_buffers_for_input_outlive_the_device() {
    let (mut b, _keyboard, _screen) = piped();
    let head = b.driver.add_chain(0, &[], &[(BUFFER, 8)]);
    b.driver.kick(0);
    let state = b.driver.save();
    let (mut keyboard, _screen) = move_to_other(&mut b, &state);
    assert_eq!(b.driver.read(0x100), 80 | 24 << 16);
    assert_eq!(b.driver.read(0x60), 0);
    keyboard.write_all(b"later").unwrap();
    b.driver.transport.process_event(INPUT);
    assert_eq!(b.driver.used(0), Some((head, 5)));
    b.handle.set_size(WindowSize {
        columns: 1,
        rows: 2,
    });
    assert_eq!(b.driver.read(0x60) & 2, 2);
}
