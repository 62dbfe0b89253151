//! The device as a driver sees it, with both engines.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::*;
use crate::virtio::driver::{Buffer, TestDriver};

pub(super) const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Where requests are built: a header and a status for each, and data.
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x2_0000;
pub(super) const DATA: u64 = 0x10_0000;
const MEMORY: usize = 4 << 20;

const DISK_SIZE: u64 = 256 << 10;
pub(super) const ENGINES: [Engine; 2] = [Engine::Auto, Engine::ThreadPool];
const RUNNING: u32 = 0xf;

pub(super) struct Rig {
    pub driver: TestDriver,
    pub file: NamedTempFile,
    requests: u64,
    statuses: HashMap<u16, u64>,
}

impl Rig {
    pub fn new(change: impl FnOnce(&mut BlockConfig)) -> Self {
        let mut rig = Self::idle(change);
        assert_eq!(rig.driver.start(u64::MAX, 256), RUNNING);
        rig
    }

    /// Before the driver has started the device. The disk's bytes tell their sectors apart.
    fn idle(change: impl FnOnce(&mut BlockConfig)) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        for sector in 0..DISK_SIZE / 512 {
            file.write_all(&[sector as u8 | 1; 512]).unwrap();
        }
        file.flush().unwrap();
        let mut config = BlockConfig {
            path: Some(file.path().to_owned()),
            read_only: false,
            serial: None,
            rate_limit: None,
            name: "block0".to_owned(),
            engine: Engine::Auto,
        };
        change(&mut config);
        let block = Block::open(config).unwrap();
        Rig {
            driver: TestDriver::new(Box::new(block), MEMORY),
            file,
            requests: 0,
            statuses: HashMap::new(),
        }
    }

    pub fn with_engine(engine: Engine) -> Self {
        Self::new(|config| config.engine = engine)
    }

    /// Puts a request on the queue, with `out` after its header and `into` before its status.
    pub fn add(&mut self, kind: u32, sector: u64, out: &[Buffer], into: &[Buffer]) -> u16 {
        let n = self.requests % 256;
        self.requests += 1;
        let (header, status) = (HEADERS + 16 * n, STATUSES + n);
        self.driver.put(header, &kind.to_le_bytes());
        self.driver.put(header + 8, &sector.to_le_bytes());
        self.driver.put(status, &[0xff]);
        let out = [&[(header, 16)], out].concat();
        let into = [into, &[(status, 1)]].concat();
        let head = self.driver.add_chain(0, &out, &into);
        self.statuses.insert(head, status);
        head
    }

    /// Waits for one request to be given back: its head, its status, and the bytes written.
    pub fn wait(&mut self) -> (u16, u8, u32) {
        loop {
            if let Some((head, written)) = self.driver.used(0) {
                let [status] = self.driver.get(self.statuses[&head]);
                return (head, status, written);
            }
            assert!(self.driver.pump(10_000), "nothing happens");
        }
    }

    /// Does one request: its status and the bytes written.
    pub fn request(
        &mut self,
        kind: u32,
        sector: u64,
        out: &[Buffer],
        into: &[Buffer],
    ) -> (u8, u32) {
        let head = self.add(kind, sector, out, into);
        self.driver.kick(0);
        let (done, status, written) = self.wait();
        assert_eq!(done, head);
        (status, written)
    }

    fn segments(&self, segments: &[(u64, u32, u32)]) -> Buffer {
        let mut raw = Vec::new();
        for (sector, sectors, flags) in segments {
            raw.extend(sector.to_le_bytes());
            raw.extend(sectors.to_le_bytes());
            raw.extend(flags.to_le_bytes());
        }
        self.driver.put(DATA, &raw);
        (DATA, raw.len() as u32)
    }

    pub fn disk(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    pub fn metric(&self, name: &str) -> u64 {
        let mut value = None;
        self.driver.transport.metrics(&mut |n, v| {
            if n == name {
                value = Some(v);
            }
        });
        value.unwrap()
    }

    pub fn needs_reset(&self) -> bool {
        self.driver.read(0x70) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n / 7) as u8 ^ seed).collect()
}

#[test]
fn data_when_written_in_pieces_is_read_back_in_others() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        let data = pattern(8192, 0x5a);
        rig.driver.put(DATA, &data);
        let out = [(DATA, 1), (DATA + 1, 4095), (DATA + 4096, 4096)];
        assert_eq!(rig.request(OUT, 3, &out, &[]), (OK, 1));
        assert_eq!(rig.disk()[3 * 512..][..8192], data);

        let into = [(DATA + 0x10_0000, 513), (DATA + 0x20_0000, 7679)];
        assert_eq!(rig.request(IN, 3, &[], &into), (OK, 8193));
        assert_eq!(rig.driver.get::<513>(DATA + 0x10_0000), data[..513]);
        assert_eq!(rig.driver.get::<7679>(DATA + 0x20_0000), data[513..]);
        assert_eq!(rig.metric("read_bytes"), 8192);
        assert_eq!(rig.metric("write_bytes"), 8192);
        assert_eq!(rig.metric("errors"), 0);
    }
}

#[test]
fn requests_in_one_batch_are_all_done() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        for n in 0..32 {
            rig.driver.put(DATA + n * 4096, &pattern(4096, n as u8));
            rig.add(OUT, n * 8, &[(DATA + n * 4096, 4096)], &[]);
        }
        rig.driver.kick(0);
        for _ in 0..32 {
            assert_eq!(rig.wait().1, OK);
        }
        assert_eq!(rig.request(FLUSH, 0, &[], &[]), (OK, 1));
        for n in 0..32 {
            rig.add(IN, n * 8, &[], &[(DATA + (n + 40) * 4096, 4096)]);
        }
        rig.driver.kick(0);
        for _ in 0..32 {
            assert_eq!(rig.wait().1, OK);
        }
        for n in 0..32 {
            let data: [u8; 4096] = rig.driver.get(DATA + (n + 40) * 4096);
            assert_eq!(data[..], pattern(4096, n as u8));
        }
        assert_eq!(
            (
                rig.metric("reads"),
                rig.metric("writes"),
                rig.metric("flushes")
            ),
            (32, 32, 1)
        );
    }
}

#[test]
fn batch_of_cached_reads_is_done_at_once_with_one_interrupt() {
    let mut rig = Rig::with_engine(Engine::Auto);
    for n in 0..16 {
        rig.add(IN, n, &[], &[(DATA + n * 512, 512)]);
    }
    rig.driver.kick(0);
    let done = std::iter::from_fn(|| rig.driver.used(0)).count();
    // The page cache may have let go of the file; then they come later.
    if done == 16 {
        assert_eq!(rig.driver.transport.interrupt().line().read().unwrap(), 1);
        assert!(!rig.driver.pump(0), "the event loop is woken for nothing");
    }
}

#[test]
fn driver_that_does_not_flush_gets_durable_writes() {
    for engine in ENGINES {
        let mut rig = Rig::idle(|config| config.engine = engine);
        let flush = 1u64 << VIRTIO_BLK_F_FLUSH;
        assert_eq!(rig.driver.start(!flush, 256), RUNNING);
        rig.driver.put(DATA, &[9; 512]);
        assert_eq!(rig.request(OUT, 1, &[(DATA, 512)], &[]), (OK, 1));
        let zeroes = rig.segments(&[(2, 1, 0)]);
        assert_eq!(rig.request(WRITE_ZEROES, 0, &[zeroes], &[]), (OK, 1));
        assert_eq!(rig.disk()[512..1536], [[9; 512], [0; 512]].concat());
    }
}

#[test]
fn status_that_shares_a_segment_with_data_is_the_last_byte() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        rig.driver.put(HEADERS, &[0; 16]);
        let head = rig
            .driver
            .add_chain(0, &[(HEADERS, 7), (HEADERS + 7, 9)], &[(DATA, 513)]);
        rig.statuses.insert(head, DATA + 512);
        rig.driver.kick(0);
        assert_eq!(rig.wait(), (head, OK, 513));
        assert_eq!(rig.driver.get::<512>(DATA), [1; 512]);
    }
}

#[test]
fn serial_number_is_padded_and_cut_to_the_buffer() {
    let mut rig = Rig::new(|config| config.serial = Some("bulkhead-42".into()));
    assert_eq!(rig.request(GET_ID, 0, &[], &[(DATA, 20)]), (OK, 21));
    assert_eq!(
        &rig.driver.get::<20>(DATA),
        b"bulkhead-42\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(rig.request(GET_ID, 0, &[], &[(DATA + 64, 4)]), (OK, 5));
    assert_eq!(&rig.driver.get::<5>(DATA + 64), b"bulk\0");
    assert_eq!(rig.request(GET_ID, 0, &[], &[(DATA, 64)]), (OK, 20));
}

#[test]
fn serial_number_when_too_long_is_refused() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    let config = |serial: &str| BlockConfig {
        path: Some(file.path().to_owned()),
        read_only: true,
        serial: Some(serial.to_owned()),
        rate_limit: None,
        name: "block0".to_owned(),
        engine: Engine::ThreadPool,
    };
    assert!(Block::open(config("12345678901234567890")).is_ok());
    let error = Block::open(config("123456789012345678901")).err().unwrap();
    assert!(error.to_string().contains("longer than 20 bytes"));
}

#[test]
fn disk_when_read_only_refuses_all_that_changes_it() {
    for engine in ENGINES {
        let mut rig = Rig::new(|config| {
            config.engine = engine;
            config.read_only = true;
        });
        let before = rig.disk();
        let offered = rig.driver.offered_features();
        assert_ne!(offered & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(offered & 1 << VIRTIO_BLK_F_DISCARD, 0);
        assert_eq!(rig.request(OUT, 0, &[(DATA, 512)], &[]), (IO_ERROR, 1));
        let all = rig.segments(&[(0, 8, 0)]);
        assert_eq!(rig.request(DISCARD, 0, &[all], &[]).0, UNSUPPORTED);
        assert_eq!(rig.request(WRITE_ZEROES, 0, &[all], &[]).0, UNSUPPORTED);
        assert_eq!(rig.request(FLUSH, 0, &[], &[]).0, OK);
        assert_eq!(rig.request(IN, 0, &[], &[(DATA, 512)]).0, OK);
        assert_eq!(rig.disk(), before);
        assert_eq!(rig.metric("errors"), 3);
    }
}

#[test]
fn discard_gives_space_back_and_reads_as_zero() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        assert_eq!(rig.request(FLUSH, 0, &[], &[]).0, OK);
        let before = rig.file.as_file().metadata().unwrap().blocks();
        let segments = rig.segments(&[(0, 64, 0), (128, 64, 0), (7, 0, 0)]);
        assert_eq!(rig.request(DISCARD, 0, &[segments], &[]), (OK, 1));
        let after = rig.file.as_file().metadata().unwrap();
        assert!(after.blocks() <= before - 128);
        assert_eq!(after.len(), DISK_SIZE);
        let disk = rig.disk();
        assert!(disk[..64 * 512].iter().all(|b| *b == 0));
        assert!(disk[64 * 512..128 * 512].iter().all(|b| *b != 0));
        assert!(disk[128 * 512..192 * 512].iter().all(|b| *b == 0));
    }
}

#[test]
fn zeroes_keep_their_space_unless_unmapped() {
    for engine in ENGINES {
        for unmap in [0, 1] {
            let mut rig = Rig::with_engine(engine);
            assert_eq!(rig.request(FLUSH, 0, &[], &[]).0, OK);
            let before = rig.file.as_file().metadata().unwrap().blocks();
            let segments = rig.segments(&[(16, 64, unmap), (128, 3, unmap)]);
            assert_eq!(rig.request(WRITE_ZEROES, 0, &[segments], &[]), (OK, 1));
            let after = rig.file.as_file().metadata().unwrap().blocks();
            assert_eq!(after < before, unmap == 1);
            let disk = rig.disk();
            for (sector, data) in disk.chunks(512).enumerate() {
                let zero = (16..80).contains(&sector) || (128..131).contains(&sector);
                assert_eq!(data.iter().all(|b| *b == 0), zero, "sector {sector}");
            }
        }
    }
}

#[test]
fn file_system_without_zero_range_zeroes_all_the_same() {
    // tmpfs has holes but no zero range.
    let Ok(mut file) = tempfile::Builder::new().tempfile_in("/dev/shm") else {
        return;
    };
    file.write_all(&[7; 65536]).unwrap();
    for engine in ENGINES {
        let mut rig = Rig::new(|config| {
            config.engine = engine;
            config.path = Some(file.path().to_owned());
        });
        let segments = rig.segments(&[(8, 8, 0), (32, 8, 0)]);
        assert_eq!(rig.request(WRITE_ZEROES, 0, &[segments], &[]).0, OK);
        let mut sector = [0; 4096];
        for at in [8, 32] {
            file.as_file().read_exact_at(&mut sector, at * 512).unwrap();
            assert_eq!(sector, [0; 4096]);
        }
        assert_eq!(file.as_file().metadata().unwrap().blocks(), 128);
    }
}

#[test]
fn requests_that_break_the_rules_are_refused_and_change_nothing() {
    let far = u64::MAX / 512;
    let end = DISK_SIZE / 512;
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        let before = rig.disk();
        let cases: &[(&str, u32, u64, u32, u8)] = &[
            ("read behind the end", IN, end, 512, IO_ERROR),
            ("read across the end", IN, end - 1, 1024, IO_ERROR),
            ("read that overflows", IN, u64::MAX, 512, IO_ERROR),
            ("read that overflows", IN, far, 1024, IO_ERROR),
            ("read of part of a sector", IN, 0, 511, IO_ERROR),
            ("write behind the end", OUT, end, 512, IO_ERROR),
            ("write across the end", OUT, end - 1, 1024, IO_ERROR),
            ("write that overflows", OUT, far, 512, IO_ERROR),
            ("write of part of a sector", OUT, 0, 513, IO_ERROR),
            ("unknown type", 2, 0, 512, UNSUPPORTED),
            ("unknown type", u32::MAX, 0, 512, UNSUPPORTED),
            ("discard of half a segment", DISCARD, 0, 8, IO_ERROR),
            ("discard of no segment", DISCARD, 0, 0, IO_ERROR),
            ("too many segments", DISCARD, 0, 33 * 16, IO_ERROR),
        ];
        for (what, kind, sector, len, status) in cases {
            let data: &[Buffer] = if *len == 0 { &[] } else { &[(DATA, *len)] };
            let (out, into) = if *kind == IN {
                (&[][..], data)
            } else {
                (data, &[][..])
            };
            rig.driver.put(DATA, &[0; 1024]);
            let (got, written) = rig.request(*kind, *sector, out, into);
            assert_eq!(got, *status, "{what}");
            assert_eq!(written, u32::from(into.is_empty()), "{what}");
        }
        let segments = [
            ("behind the end", (end, 1, 0), WRITE_ZEROES, IO_ERROR),
            ("across the end", (end - 1, 2, 0), WRITE_ZEROES, IO_ERROR),
            ("overflow", (u64::MAX, 1, 0), DISCARD, IO_ERROR),
            ("too long", (0, u32::MAX, 0), WRITE_ZEROES, IO_ERROR),
            ("unknown flag", (0, 1, 2), WRITE_ZEROES, UNSUPPORTED),
            ("discard with unmap", (0, 1, 1), DISCARD, UNSUPPORTED),
        ];
        for (what, segment, kind, status) in segments {
            // A good one before it must not be done either.
            let buffer = rig.segments(&[(0, 1, 0), segment]);
            assert_eq!(rig.request(kind, 0, &[buffer], &[]).0, status, "{what}");
        }
        assert_eq!(rig.disk(), before);
        assert!(!rig.needs_reset());
        assert_eq!(rig.metric("errors"), (cases.len() + segments.len()) as u64);
        // A transfer of nothing is one.
        assert_eq!(rig.request(IN, end, &[], &[]), (OK, 1));
    }
}

#[test]
fn header_that_is_too_short_is_an_io_error() {
    let mut rig = Rig::with_engine(Engine::Auto);
    for readable in [&[(HEADERS, 15)][..], &[]] {
        let head = rig.driver.add_chain(0, readable, &[(STATUSES, 1)]);
        rig.statuses.insert(head, STATUSES);
        rig.driver.kick(0);
        assert_eq!(rig.wait(), (head, IO_ERROR, 1));
    }
}

#[test]
fn request_without_room_for_a_status_stops_the_device_until_reset() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        rig.add(OUT, 0, &[(DATA, 512)], &[]);
        rig.driver.add_chain(0, &[(HEADERS, 16)], &[]);
        rig.driver.kick(0);
        assert!(rig.needs_reset());
        // What was in flight may complete, and nothing comes of it.
        while rig.driver.pump(100) {}
        rig.driver.kick(0);
        assert_eq!(rig.driver.start(u64::MAX, 256), RUNNING);
        assert_eq!(rig.request(IN, 0, &[], &[(DATA, 512)]).0, OK);
    }
}

#[test]
fn reset_while_requests_are_in_flight_leaves_memory_alone_afterwards() {
    for engine in ENGINES {
        for round in 0..20u8 {
            let mut rig = Rig::with_engine(engine);
            for n in 0..64u64 {
                let (kind, data) = (n as u32 % 2, [(DATA + n * 4096, 4096)]);
                match kind {
                    IN => rig.add(IN, n % 32 * 8, &[], &data),
                    _ => rig.add(OUT, n % 32 * 8, &data, &[]),
                };
            }
            rig.add(FLUSH, 0, &[], &[]);
            rig.driver.kick(0);
            rig.driver.write(0x70, 0);
            rig.driver.put(DATA, &vec![round; 64 * 4096]);
            rig.driver.put(STATUSES, &[round; 256]);
            while rig.driver.pump(if round == 0 { 50 } else { 0 }) {}
            assert!(
                rig.driver
                    .get::<{ 64 * 4096 }>(DATA)
                    .iter()
                    .all(|b| *b == round)
            );
            assert!(rig.driver.get::<256>(STATUSES).iter().all(|b| *b == round));

            assert_eq!(rig.driver.start(u64::MAX, 256), RUNNING);
            assert_eq!(rig.request(IN, 0, &[], &[(DATA, 512)]).0, OK);
        }
    }
}

#[test]
fn disk_when_its_device_is_gone_is_free_at_once() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        assert_eq!(rig.request(IN, 0, &[], &[(DATA, 512)]).0, OK);
        let Rig { driver, file, .. } = rig;
        drop(driver);
        assert!(Disk::open(file.path(), false).is_ok());
    }
}

#[test]
fn driver_that_makes_one_chain_available_again_and_again_is_served() {
    for engine in ENGINES {
        let mut rig = Rig::idle(|config| config.engine = engine);
        assert_eq!(rig.driver.start(u64::MAX, 4), RUNNING);
        let head = rig.add(OUT, 0, &[(DATA, 4096)], &[]);
        let mut given_back = 0;
        for n in 0..40u16 {
            rig.driver.kick(0);
            rig.driver.add_available(0, head);
            // Never more ahead than the queue is long, by what the ring says was taken.
            given_back += std::iter::from_fn(|| rig.driver.used(0)).count() as u16;
            while given_back < n {
                rig.wait();
                given_back += 1;
            }
        }
        assert!(!rig.needs_reset());
    }
}

#[test]
fn file_that_was_cut_off_gives_io_errors() {
    for engine in ENGINES {
        let mut rig = Rig::with_engine(engine);
        let file = File::options().write(true).open(rig.file.path()).unwrap();
        file.set_len(1024).unwrap();
        assert_eq!(rig.request(IN, 0, &[], &[(DATA, 4096)]), (IO_ERROR, 1024));
        assert_eq!(rig.request(IN, 0, &[], &[(DATA, 1024)]), (OK, 1025));
    }
}

#[test]
fn rate_limit_holds_requests_back_in_order_and_lets_them_through_later() {
    for engine in ENGINES {
        let mut rig = Rig::new(|config| {
            config.engine = engine;
            config.rate_limit = Some(RateLimit {
                operations_per_second: 50,
                burst_operations: 2,
                ..RateLimit::default()
            });
        });
        let heads: Vec<_> = (0..6)
            .map(|n| rig.add(IN, n, &[], &[(DATA + n * 512, 512)]))
            .collect();
        let start = std::time::Instant::now();
        rig.driver.kick(0);
        rig.driver.kick(0);
        let mut done: Vec<_> = (0..6).map(|_| rig.wait()).collect();
        // Four had to wait for a fiftieth of a second each.
        assert!(start.elapsed().as_millis() >= 79);
        done.sort();
        assert_eq!(
            done,
            heads.iter().map(|h| (*h, OK, 513)).collect::<Vec<_>>()
        );
        assert_eq!(rig.metric("throttled"), 4);
    }
}

#[test]
fn configuration_space_describes_the_disk() {
    let rig = Rig::with_engine(Engine::Auto);
    let capacity = u64::from(rig.driver.read(0x104)) << 32 | u64::from(rig.driver.read(0x100));
    assert_eq!(capacity, DISK_SIZE / 512);
    assert_eq!(rig.driver.read(0x100 + 12), 254);
    assert_eq!(rig.driver.read(0x100 + 20), 512);
    assert_eq!(rig.driver.read(0x100 + 40), 32);
    assert_eq!(rig.driver.read(0x100 + 56), 1);
    assert_eq!(rig.driver.read(0x100 + 60), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Write {
        sector: u64,
        cuts: Vec<u32>,
        seed: u8,
    },
    Read {
        sector: u64,
        cuts: Vec<u32>,
    },
    Zero {
        segments: Vec<(u64, u32)>,
        flags: u32,
    },
    Discard {
        segments: Vec<(u64, u32)>,
    },
    Flush,
    Reset,
}

/// Sectors that may lie behind the end, too.
fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0..DISK_SIZE / 512, 1 => DISK_SIZE / 512 - 2..DISK_SIZE / 512 + 2]
}

/// Where a transfer is cut into buffers; the last is its length, mostly whole sectors.
fn cuts() -> impl Strategy<Value = Vec<u32>> {
    (1u32..17, prop::collection::vec(1u32..8192, 0..6), 0u32..20).prop_map(
        |(sectors, mut cuts, odd)| {
            let len = sectors * 512 + u32::from(odd == 0);
            cuts.retain(|cut| *cut < len);
            cuts.push(len);
            cuts.sort_unstable();
            cuts.dedup();
            cuts
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let segments = || prop::collection::vec((sector(), 0u32..20), 1..4);
    prop_oneof![
        4 => (sector(), cuts(), any::<u8>())
            .prop_map(|(sector, cuts, seed)| Op::Write { sector, cuts, seed }),
        4 => (sector(), cuts()).prop_map(|(sector, cuts)| Op::Read { sector, cuts }),
        1 => (segments(), 0u32..2).prop_map(|(segments, flags)| Op::Zero { segments, flags }),
        1 => segments().prop_map(|segments| Op::Discard { segments }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reset),
    ]
}

fn buffers(cuts: &[u32]) -> Vec<Buffer> {
    let mut at = 0;
    cuts.iter()
        .map(|cut| {
            let buffer = (DATA + u64::from(at), cut - at);
            at = *cut;
            buffer
        })
        .collect()
}

/// Does `op` on the model: what status it should have.
fn model(disk: &mut [u8], op: &Op) -> u8 {
    let size = disk.len() as u64;
    let range = |sector: u64, len: u64| {
        let range = (sector * 512) as usize..(sector * 512 + len) as usize;
        (range.end as u64 <= size && len.is_multiple_of(512)).then_some(range)
    };
    match op {
        Op::Write { sector, cuts, seed } => {
            let len = cuts[cuts.len() - 1];
            match range(*sector, len.into()) {
                Some(range) => disk[range].copy_from_slice(&pattern(len as usize, *seed)),
                None => return IO_ERROR,
            }
        }
        Op::Read { sector, cuts } => {
            if range(*sector, cuts[cuts.len() - 1].into()).is_none() {
                return IO_ERROR;
            }
        }
        Op::Zero { segments, .. } | Op::Discard { segments } => {
            let ranges: Option<Vec<_>> = segments
                .iter()
                .map(|(sector, count)| range(*sector, u64::from(*count) * 512))
                .collect();
            match ranges {
                Some(ranges) => ranges.into_iter().for_each(|r| disk[r].fill(0)),
                None => return IO_ERROR,
            }
        }
        Op::Flush | Op::Reset => {}
    }
    OK
}

fn do_op(rig: &mut Rig, op: &Op) -> u8 {
    match op {
        Op::Write { sector, cuts, seed } => {
            let len = cuts[cuts.len() - 1] as usize;
            rig.driver.put(DATA, &pattern(len, *seed));
            rig.request(OUT, *sector, &buffers(cuts), &[]).0
        }
        Op::Read { sector, cuts } => rig.request(IN, *sector, &[], &buffers(cuts)).0,
        Op::Zero { segments, flags } => {
            let raw: Vec<_> = segments.iter().map(|(s, n)| (*s, *n, *flags)).collect();
            let buffer = rig.segments(&raw);
            rig.request(WRITE_ZEROES, 0, &[buffer], &[]).0
        }
        Op::Discard { segments } => {
            let raw: Vec<_> = segments.iter().map(|(s, n)| (*s, *n, 0)).collect();
            let buffer = rig.segments(&raw);
            rig.request(DISCARD, 0, &[buffer], &[]).0
        }
        Op::Flush => rig.request(FLUSH, 0, &[], &[]).0,
        Op::Reset => {
            assert_eq!(rig.driver.start(u64::MAX, 64), RUNNING);
            OK
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a driver does one after the other, the disk is what the model says.
    #[test]
    fn disk_after_any_requests_is_as_modelled(
        engine in prop::sample::select(&ENGINES[..]),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let mut rig = Rig::with_engine(engine);
        let mut disk = rig.disk();
        for op in &ops {
            let expected = model(&mut disk, op);
            prop_assert_eq!(do_op(&mut rig, op), expected, "{:?}", op);
            if let (Op::Read { sector, cuts }, OK) = (op, expected) {
                let mut data = vec![0; cuts[cuts.len() - 1] as usize];
                let address = vm_memory::GuestAddress(DATA);
                vm_memory::Bytes::read_slice(&*rig.driver.memory, &mut data, address).unwrap();
                prop_assert_eq!(&data[..], &disk[*sector as usize * 512..][..data.len()]);
            }
        }
        prop_assert_eq!(rig.disk(), disk);
    }
}
