//! A disk that goes on in another's place.

#![allow(clippy::unwrap_used)]

use tempfile::NamedTempFile;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::tests::{DATA, ENGINES, IN, OK, OUT, Rig, pattern};
use super::*;
use crate::virtio::driver::TestDriver;
use crate::virtio::state::DeviceState;

/// A device on a copy of the disk as it is now.
fn copied(rig: &Rig, engine: Engine, read_only: bool) -> (Box<Block>, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rig.disk()).unwrap();
    let block = Block::open(BlockConfig {
        path: Some(file.path().to_owned()),
        read_only,
        serial: None,
        rate_limit: None,
        name: "block0".to_owned(),
        engine,
    });
    (Box::new(block.unwrap()), file)
}

fn move_to_copy(rig: &mut Rig, engine: Engine, state: &DeviceState) {
    let (block, file) = copied(rig, engine, false);
    rig.driver.move_to(block, state).unwrap();
    rig.file = file;
    rig.driver.transport.restart();
}

#[test]
fn requests_in_flight_are_done_when_the_state_is_there() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        for round in 0..20 {
            let data = pattern(4096, round);
            rig.driver.put(DATA, &data);
            let heads: Vec<u16> = (0..32)
                .map(|n| rig.add(OUT, n * 8, &[(DATA, 4096)], &[]))
                .collect();
            rig.driver.kick(0);
            let state = rig.driver.save();
            let queue = &state.queues[0];
            assert_eq!(queue.next_available, queue.next_used);
            assert_eq!(queue.next_used, 32 * (u16::from(round) + 1));
            assert_eq!(state.interrupt_status, 1);
            assert_eq!(rig.disk()[..32 * 4096], data.repeat(32));
            move_to_copy(&mut rig, engine, &state);
            let mut done: Vec<u16> = heads.iter().map(|_| rig.wait().0).collect();
            done.sort_unstable();
            let mut heads = heads;
            heads.sort_unstable();
            assert_eq!(done, heads);
            assert_eq!(rig.driver.used(0), None);
        }
    }
}

#[test]
fn requests_that_the_limit_holds_back_are_done_by_the_next_device() {
    for engine in ENGINES {
        let mut rig = Rig::new(|config| {
            config.engine = engine;
            config.rate_limit = Some(RateLimit {
                operations_per_second: 1,
                burst_operations: 2,
                ..Default::default()
            });
        });
        let heads: Vec<u16> = (0..5)
            .map(|n| rig.add(IN, n, &[], &[(DATA + n * 512, 512)]))
            .collect();
        rig.driver.kick(0);
        let state = rig.driver.save();
        assert_eq!(state.queues[0].next_available, 2);
        move_to_copy(&mut rig, engine, &state);
        let mut done: Vec<u16> = heads.iter().map(|_| rig.wait().0).collect();
        done.sort_unstable();
        assert_eq!(done, heads);
        assert_eq!(rig.driver.used(0), None);
    }
}

#[test]
fn device_that_was_saved_goes_on() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        for n in 0..50 {
            let before = rig.add(OUT, n, &[(DATA, 512)], &[]);
            rig.driver.kick(0);
            rig.driver.save();
            assert_eq!(rig.wait(), (before, OK, 1));
            assert_eq!(rig.request(IN, n, &[], &[(DATA, 512)]), (OK, 513));
        }
    }
}

#[test]
fn device_that_fails_while_it_is_saved_needs_a_reset() {
    let mut rig = Rig::with_engine(Engine::Auto);
    rig.driver.add_chain(0, &[(DATA, 16)], &[]);
    rig.driver.kick(0);
    let state = rig.driver.save();
    assert!(state.needs_reset);
    move_to_copy(&mut rig, Engine::Auto, &state);
    assert!(rig.needs_reset());
    assert_eq!(rig.driver.start(u64::MAX, 256), 0xf);
    assert_eq!(rig.request(IN, 0, &[], &[(DATA, 512)]), (OK, 513));
}

#[test]
fn disk_that_is_another_is_refused() {
    let mut rig = Rig::with_engine(Engine::Auto);
    // The least that a driver can ask for, which any disk offers.
    assert_eq!(rig.driver.start(1 << VIRTIO_F_VERSION_1, 256), 0xf);
    let state = rig.driver.save();
    let (block, _file) = copied(&rig, Engine::Auto, true);
    let error = rig.driver.move_to(block, &state).unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");

    type Change = fn(&mut DeviceState);
    let changes: &[(&str, Change)] = &[
        ("262144 bytes and had 262656", |s| {
            s.device["capacity"] = 513.into()
        }),
        ("had", |s| s.device["capacity"] = u64::MAX.into()),
        ("file system", |s| s.device["features"] = 0.into()),
        ("damaged", |s| s.device["capacity"] = (-1).into()),
        ("more", |s| s.device["more"] = 1.into()),
        ("damaged", |s| s.device = serde_json::Value::Null),
    ];
    for (what, change) in changes {
        let mut state = state.clone();
        change(&mut state);
        let (block, _file) = copied(&rig, Engine::Auto, false);
        let error = rig.driver.move_to(block, &state).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn drive_tells_of_the_disk_that_is_put_into_it_and_taken_out() {
    let open = |path| {
        Block::open(BlockConfig {
            path,
            read_only: true,
            serial: None,
            rate_limit: None,
            name: "block0".to_owned(),
            engine: Engine::Auto,
        })
        .map(Box::new)
        .unwrap()
    };
    const CAPACITY: u64 = 0x100;
    const CONFIG_GENERATION: u64 = 0xfc;
    const INTERRUPT_STATUS: u64 = 0x60;
    let mut driver = TestDriver::new(open(None), 4 << 20);
    assert_eq!(driver.start(u64::MAX, 256), 0xf);
    assert_eq!(driver.read(CAPACITY), 0);
    // The first sector of a disk without any.
    driver.put(DATA, &[0; 16]);
    driver.add_chain(0, &[(DATA, 16)], &[(DATA + 4096, 513)]);
    driver.kick(0);
    while driver.used(0).is_none() {
        assert!(driver.pump(10_000), "the request is answered");
    }
    assert_eq!(driver.get(DATA + 4096 + 512), [1], "VIRTIO_BLK_S_IOERR");

    let state = driver.save();
    let generation = driver.read(CONFIG_GENERATION);
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    driver
        .move_to(open(Some(file.path().to_owned())), &state)
        .unwrap();
    driver.transport.restart();
    assert_eq!(driver.read(CAPACITY), 2048);
    assert_ne!(driver.read(CONFIG_GENERATION), generation);
    assert_ne!(driver.read(INTERRUPT_STATUS) & 2, 0);

    // It is taken out again.
    let state = driver.save();
    driver.move_to(open(None), &state).unwrap();
    driver.transport.restart();
    assert_eq!(driver.read(CAPACITY), 0);
    assert_ne!(driver.read(INTERRUPT_STATUS) & 2, 0);

    // Whoever goes on without one has not had a disk taken away.
    let mut driver = TestDriver::new(open(None), 4 << 20);
    assert_eq!(driver.start(u64::MAX, 256), 0xf);
    let state = driver.save();
    driver.move_to(open(None), &state).unwrap();
    driver.transport.restart();
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}
