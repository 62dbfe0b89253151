//! The socket device's throughput, with the host's and the guest's ends in this one thread: what is
//! measured is the device, and the host program's own system calls.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use bulkhead_devices::virtio::driver::TestDriver;
use bulkhead_devices::virtio::vsock::{RECEIVE_QUEUE, TRANSMIT_QUEUE, Vsock, VsockConfig};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

const CID: u64 = 3;
const QUEUE: u16 = 256;
const HEADER: u32 = 44;
/// Receive buffers as Linux gives them.
const BUFFER: u32 = 4096;
const RECEIVE_AT: u64 = 0x10_0000;
const TRANSMIT_AT: u64 = 0x30_0000;

const REQUEST: u16 = 1;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// What the guest promises: enough not to matter, as it confirms what it got every round.
const ROOM: u32 = 1 << 30;

fn main() {
    divan::main();
}

/// A guest with one connection to the host.
struct Guest {
    driver: TestDriver,
    stream: UnixStream,
    received: u32,
    next_buffer: u64,
    _dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let device = Vsock::new(VsockConfig {
            name: "vsock".to_owned(),
            guest_cid: CID,
            uds_path: dir.path().join("v"),
            direct: Vec::new(),
        })
        .unwrap();
        let listener = UnixListener::bind(dir.path().join("v_80")).unwrap();
        let mut driver = TestDriver::new(Box::new(device), 8 << 20);
        assert_eq!(driver.start(u64::MAX, QUEUE), 0xf);
        for n in 0..u64::from(QUEUE) {
            let buffer = (RECEIVE_AT + n * u64::from(BUFFER), BUFFER);
            driver.add_chain(RECEIVE_QUEUE, &[], &[buffer]);
        }
        let mut guest = Guest {
            driver,
            stream: UnixStream::pair().unwrap().0,
            received: 0,
            next_buffer: 0,
            _dir: dir,
        };
        guest.send(REQUEST, 0);
        guest.stream = listener.accept().unwrap().0;
        guest.take();
        guest.received = 0;
        guest
    }

    fn send(&mut self, operation: u16, len: u32) {
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&CID.to_le_bytes());
        header[8] = 2;
        header[16] = 100;
        header[20] = 80;
        header[24..28].copy_from_slice(&len.to_le_bytes());
        header[28] = 1;
        header[30..32].copy_from_slice(&operation.to_le_bytes());
        header[36..40].copy_from_slice(&ROOM.to_le_bytes());
        header[40..].copy_from_slice(&self.received.to_le_bytes());
        self.driver.put(TRANSMIT_AT, &header);
        let payload = (TRANSMIT_AT + 0x1000, len);
        self.driver
            .add_chain(TRANSMIT_QUEUE, &[(TRANSMIT_AT, HEADER), payload], &[]);
        self.driver.kick(TRANSMIT_QUEUE);
        assert!(self.driver.used(TRANSMIT_QUEUE).is_some());
    }

    /// Takes what came, and gives the buffers back.
    fn take(&mut self) {
        while let Some((_, written)) = self.driver.used(RECEIVE_QUEUE) {
            self.received = self.received.wrapping_add(written - HEADER);
            let buffer = (RECEIVE_AT + self.next_buffer * u64::from(BUFFER), BUFFER);
            self.driver.add_chain(RECEIVE_QUEUE, &[], &[buffer]);
            self.next_buffer = (self.next_buffer + 1) % u64::from(QUEUE);
        }
    }
}

/// 128 KiB in packets of this size, read by the host program.
#[divan::bench(args = [4 << 10, 16 << 10, 64 << 10])]
fn guest_to_host(bencher: Bencher<'_, '_>, packet: u32) {
    let total: u32 = 128 << 10;
    let mut guest = Guest::new();
    let mut buffer = vec![0; total as usize];
    bencher.counter(BytesCount::new(total)).bench_local(|| {
        for _ in 0..total / packet {
            guest.send(RW, packet);
        }
        guest.stream.read_exact(&mut buffer).unwrap();
        guest.take();
    });
}

/// What the host program wrote at once, into buffers of 4 KiB.
#[divan::bench(args = [4 << 10, 16 << 10, 128 << 10])]
fn host_to_guest(bencher: Bencher<'_, '_>, total: u32) {
    let mut guest = Guest::new();
    let data = vec![0; total as usize];
    bencher.counter(BytesCount::new(total)).bench_local(|| {
        guest.stream.write_all(&data).unwrap();
        let before = guest.received;
        while guest.received.wrapping_sub(before) < total {
            guest.driver.transport.process_event(0);
            guest.take();
        }
        guest.send(CREDIT_UPDATE, 0);
    });
}

/// A question of the host's and an answer of the guest's, 64 bytes each.
#[divan::bench]
fn round_trip(bencher: Bencher<'_, '_>) {
    let mut guest = Guest::new();
    let mut buffer = [0; 64];
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        guest.stream.write_all(&buffer).unwrap();
        guest.driver.transport.process_event(0);
        guest.take();
        guest.send(RW, 64);
        guest.stream.read_exact(&mut buffer).unwrap();
    });
}
