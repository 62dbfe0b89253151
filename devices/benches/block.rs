//! What a block request costs: 4 KiB reads and writes from the queue to the page cache and back, with
//! the driver's side of the ring included. The disk is a file in `TMPDIR`, and its file system matters:
//! reads of cached data complete at once where it supports `RWF_NOWAIT` (ext4, XFS, btrfs; not tmpfs).

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;

use bulkhead_devices::virtio::block::{Block, BlockConfig, Engine};
use bulkhead_devices::virtio::driver::TestDriver;
use divan::Bencher;
use divan::counter::ItemsCount;
use tempfile::NamedTempFile;

const BLOCK: u32 = 4096;
const BLOCKS: u64 = 4096;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;

const IN: u32 = 0;
const OUT: u32 = 1;

fn main() {
    divan::main();
}

struct Rig {
    driver: TestDriver,
    _file: NamedTempFile,
}

impl Rig {
    fn new(engine: Engine, kind: u32, batch: u64) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&vec![1; BLOCKS as usize * BLOCK as usize])
            .unwrap();
        let block = Block::open(BlockConfig {
            path: Some(file.path().to_owned()),
            read_only: false,
            serial: None,
            rate_limit: None,
            name: "block0".to_owned(),
            engine,
        })
        .unwrap();
        let mut driver = TestDriver::new(Box::new(block), 4 << 20);
        assert_eq!(driver.start(u64::MAX, 256), 0xf);
        for n in 0..batch {
            // Spread out, as a random load is.
            let sector = n * 997 % BLOCKS * u64::from(BLOCK) / 512;
            driver.put(HEADERS + 16 * n, &kind.to_le_bytes());
            driver.put(HEADERS + 16 * n + 8, &sector.to_le_bytes());
        }
        Rig {
            driver,
            _file: file,
        }
    }

    fn batch(&mut self, kind: u32, batch: u64) {
        for n in 0..batch {
            let header = (HEADERS + 16 * n, 16);
            let data = (DATA + u64::from(BLOCK) * n, BLOCK);
            let status = (STATUSES + n, 1);
            match kind {
                IN => self.driver.add_chain(0, &[header], &[data, status]),
                _ => self.driver.add_chain(0, &[header, data], &[status]),
            };
        }
        self.driver.kick(0);
        let mut done = 0;
        loop {
            while self.driver.used(0).is_some() {
                done += 1;
            }
            if done == batch {
                break;
            }
            self.driver.pump(-1);
        }
    }
}

fn run(bencher: Bencher, engine: Engine, kind: u32, batch: u64) {
    let mut rig = Rig::new(engine, kind, batch);
    bencher
        .counter(ItemsCount::new(batch))
        .bench_local(|| rig.batch(kind, batch));
}

#[divan::bench(args = [1, 32], sample_count = 1000)]
fn io_uring_read(bencher: Bencher, batch: u64) {
    run(bencher, Engine::IoUring, IN, batch);
}

#[divan::bench(args = [1, 32], sample_count = 1000)]
fn io_uring_write(bencher: Bencher, batch: u64) {
    run(bencher, Engine::IoUring, OUT, batch);
}

#[divan::bench(args = [1, 32], sample_count = 1000)]
fn thread_pool_read(bencher: Bencher, batch: u64) {
    run(bencher, Engine::ThreadPool, IN, batch);
}

#[divan::bench(args = [1, 32], sample_count = 1000)]
fn thread_pool_write(bencher: Bencher, batch: u64) {
    run(bencher, Engine::ThreadPool, OUT, batch);
}
