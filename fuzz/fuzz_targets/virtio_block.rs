//! A hostile driver on a disk, through both engines.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use arbitrary::{Result, Unstructured};
use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::block::{Block, BlockConfig, Engine};
use bulkhead_fuzz::{Guest, Host, Request, in_buffers};
use libfuzzer_sys::fuzz_target;

const DISK_SIZE: usize = 32 << 10;

/// A disk of each kind, used for all runs: io_uring takes milliseconds to come and go.
struct Disk {
    guest: Guest,
    file: File,
    read_only: bool,
}

impl Disk {
    fn new(kind: u8) -> Self {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(&[0xa5; DISK_SIZE]).expect("disk");
        let read_only = kind & 2 != 0;
        let limit = RateLimit {
            bytes_per_second: 500_000_000,
            operations_per_second: 20_000,
            burst_bytes: 4096,
            burst_operations: 2,
        };
        let block = Block::open(BlockConfig {
            // It has no name: fuzzers are killed, and would leave it behind.
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            read_only,
            serial: Some("fuzz".to_owned()),
            rate_limit: (kind & 4 != 0).then_some(limit),
            name: "block0".to_owned(),
            engine: match kind & 1 {
                0 => Engine::Auto,
                _ => Engine::ThreadPool,
            },
        });
        Disk {
            guest: Guest::new(Box::new(block.expect("open"))),
            file,
            read_only,
        }
    }
}

struct Driver;

impl Host for Driver {
    fn request(&mut self, u: &mut Unstructured) -> Result<Request> {
        // Read, write, flush, get ID, discard, write zeroes.
        let kind = *u.choose(&[0u32, 1, 4, 8, 11, 13])?;
        // A little more than there are, of each.
        let sectors = DISK_SIZE as u32 / 512 + 2;
        let mut request = Request::default();
        request.header.extend(u64::from(kind).to_le_bytes());
        request
            .header
            .extend(u64::from(u.int_in_range(0..=sectors)?).to_le_bytes());
        match kind {
            0 => {
                let len = u.int_in_range(0..=sectors)? * 512;
                request.writable = in_buffers(u, len)?;
            }
            1 => {
                let len = u.int_in_range(0..=sectors)? * 512;
                request.readable = in_buffers(u, len)?;
            }
            8 => request.writable = in_buffers(u, 20)?,
            11 | 13 => {
                for _ in 0..u.int_in_range(0..=3)? {
                    let sector = u64::from(u.int_in_range(0..=sectors)?);
                    let count = u.int_in_range(0..=sectors)?;
                    let flags = u32::from(u.int_in_range(0..=2u8)?);
                    request.header.extend(sector.to_le_bytes());
                    request.header.extend(count.to_le_bytes());
                    request.header.extend(flags.to_le_bytes());
                }
            }
            _ => {}
        }
        request.writable.extend(in_buffers(u, 1)?);
        Ok(request)
    }
}

thread_local! {
    static DISKS: RefCell<[Option<Disk>; 8]> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let kind = u.arbitrary::<u8>().unwrap_or(0) % 8;
    DISKS.with_borrow_mut(|disks| {
        let disk = disks[usize::from(kind)].get_or_insert_with(|| Disk::new(kind));
        disk.guest.run(&mut u, &mut Driver);

        let size = disk.file.metadata().expect("metadata").size();
        assert_eq!(size, DISK_SIZE as u64, "the disk changed its size");
        if disk.read_only {
            let mut now = [0; DISK_SIZE];
            disk.file.read_exact_at(&mut now, 0).expect("read");
            assert!(now == [0xa5; DISK_SIZE], "a read-only disk changed");
        }
    });
});
