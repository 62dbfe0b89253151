//! A hostile driver and restless host programs on a socket device.
#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Result, Unstructured};
use bulkhead_devices::virtio::driver::{RINGS_SIZE, TestDriver};
use bulkhead_devices::virtio::vsock::{
    DirectSocket, Limits, RECEIVE_QUEUE, TRANSMIT_QUEUE, Vsock, VsockConfig,
};
use bulkhead_fuzz::Guest;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const CID: u64 = 3;
/// Where somebody listens on the host.
const HOST_PORT: u32 = 80;
/// The first port the device gives to a connection from the host.
const FIRST_PORT: u32 = 1 << 30;

const HEADER: u32 = 44;
const QUEUE: u16 = 16;
const PACKETS: u64 = 3 * RINGS_SIZE;
const BUFFERS: u64 = PACKETS + 0x2_0000;
const MEMORY: usize = 0x9_0000;

/// Few, so that the bounds are met.
fn limits() -> Limits {
    Limits {
        max_connections: 6,
        max_half_open: 4,
        buffer_size: 16 << 10,
        max_backlog: 24 << 10,
        max_pending_resets: 5,
        ..Limits::default()
    }
}

/// A packet that is right in most things.
#[derive(Debug, Arbitrary)]
struct Packet {
    guest_port: u8,
    host_port: u8,
    operation: u8,
    flags: u8,
    len: u16,
    lie: u8,
    buf_alloc: u16,
    fwd_cnt: u16,
}

#[derive(Debug, Arbitrary)]
enum Op {
    Packet(Packet),
    Buffers { count: u8, len: u16 },
    Turn,
    Host(HostOp),
    Restart,
}

/// What programs on the host do.
#[derive(Debug, Arbitrary)]
enum HostOp {
    Connect { port: u8, whole: bool },
    ConnectDirect,
    Say { stream: u8, what: [u8; 4] },
    Write { stream: u8, len: u16 },
    Read { stream: u8, len: u16 },
    ShutDown { stream: u8, read: bool },
    Close { stream: u8 },
    Accept,
}

/// The programs on the host.
struct Host {
    path: PathBuf,
    direct: PathBuf,
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

impl bulkhead_fuzz::Host for Host {
    fn turn(&mut self, u: &mut Unstructured) {
        if let Ok(op) = u.arbitrary() {
            self.apply(op);
        }
    }
}

impl Host {
    fn new(dir: &Path) -> Host {
        let path = dir.join("v");
        let listening = dir.join(format!("v_{HOST_PORT}"));
        let _ = std::fs::remove_file(&listening);
        let listener = UnixListener::bind(listening).expect("listener");
        listener.set_nonblocking(true).expect("non-blocking");
        Host {
            path,
            direct: dir.join("direct"),
            listener,
            streams: Vec::new(),
        }
    }

    fn add(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("non-blocking");
        if self.streams.len() < 16 {
            self.streams.push(stream);
        }
    }

    fn stream(&mut self, index: u8) -> Option<&mut UnixStream> {
        let count = self.streams.len().max(1);
        self.streams.get_mut(usize::from(index) % count)
    }

    /// None of it need succeed.
    fn apply(&mut self, op: HostOp) {
        match op {
            HostOp::Connect { port, whole } => {
                if let Ok(mut stream) = UnixStream::connect(&self.path) {
                    let end = if whole { "\n" } else { "" };
                    let _ = write!(stream, "connect {}{end}", port % 4);
                    self.add(stream);
                }
            }
            HostOp::ConnectDirect => {
                if let Ok(stream) = UnixStream::connect(&self.direct) {
                    self.add(stream);
                }
            }
            HostOp::Accept => {
                if let Ok((stream, _)) = self.listener.accept() {
                    self.add(stream);
                }
            }
            HostOp::Close { stream } => {
                if !self.streams.is_empty() {
                    let index = usize::from(stream) % self.streams.len();
                    self.streams.swap_remove(index);
                }
            }
            HostOp::Say { stream, what } => {
                if let Some(stream) = self.stream(stream) {
                    let _ = stream.write(&what);
                }
            }
            HostOp::Write { stream, len } => {
                if let Some(stream) = self.stream(stream) {
                    let _ = stream.write(&vec![0x55; len.into()]);
                }
            }
            HostOp::Read { stream, len } => {
                if let Some(stream) = self.stream(stream) {
                    let _ = stream.read(&mut vec![0; len.into()]);
                }
            }
            HostOp::ShutDown { stream, read } => {
                let how = if read {
                    Shutdown::Read
                } else {
                    Shutdown::Write
                };
                if let Some(stream) = self.stream(stream) {
                    let _ = stream.shutdown(how);
                }
            }
        }
    }
}

/// A guest that mostly speaks the protocol, with every connection in every state.
struct Talker {
    driver: TestDriver,
    packets: u64,
}

impl Talker {
    fn start(&mut self) {
        assert_eq!(self.driver.start(u64::MAX, QUEUE), 0xf);
    }

    fn send(&mut self, packet: &Packet) {
        let host_port = match packet.host_port % 8 {
            0..3 => HOST_PORT,
            3 => HOST_PORT + 1,
            n => FIRST_PORT + u32::from(n) - 4,
        };
        let len = u32::from(packet.len);
        let claimed = match packet.lie {
            0 => u32::MAX,
            1 => len + 1,
            _ => len,
        };
        let cid = if packet.lie == 2 { CID + 1 } else { CID };
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&cid.to_le_bytes());
        header[8] = if packet.lie == 3 { 4 } else { 2 };
        header[16] = packet.guest_port % 4;
        header[20..24].copy_from_slice(&host_port.to_le_bytes());
        header[24..28].copy_from_slice(&claimed.to_le_bytes());
        header[28] = if packet.lie == 4 { 2 } else { 1 };
        header[30] = packet.operation % 10;
        header[32] = packet.flags;
        header[36..40].copy_from_slice(&u32::from(packet.buf_alloc).to_le_bytes());
        header[40..].copy_from_slice(&u32::from(packet.fwd_cnt).to_le_bytes());
        // In a place of its own for a while, as the device may leave it waiting.
        let place = PACKETS + self.packets % 16 * 64;
        self.packets += 1;
        self.driver.put(place, &header);
        let payload = (PACKETS + 0x1000, len);
        self.driver
            .add_chain(TRANSMIT_QUEUE, &[(place, HEADER), payload], &[]);
        self.driver.kick(TRANSMIT_QUEUE);
    }

    fn apply(&mut self, op: Op, host: &mut Host) {
        match op {
            Op::Packet(packet) => self.send(&packet),
            Op::Buffers { count, len } => {
                for n in 0..u64::from(count % 8) {
                    let buffer = (BUFFERS + n * 0x1000, len.into());
                    self.driver.add_chain(RECEIVE_QUEUE, &[], &[buffer]);
                }
                self.driver.kick(RECEIVE_QUEUE);
            }
            Op::Turn => {
                self.driver.pump(0);
            }
            Op::Host(op) => host.apply(op),
            Op::Restart => self.start(),
        }
    }
}

thread_local! {
    static DIR: RefCell<TempDir> = RefCell::new(tempfile::tempdir().expect("directory"));
}

fn run(u: &mut Unstructured<'_>, dir: &Path) -> Result<()> {
    // A new device each time: its ports count up.
    let config = VsockConfig {
        name: "vsock".to_owned(),
        guest_cid: CID,
        uds_path: dir.join("v"),
        direct: vec![DirectSocket {
            port: 3,
            path: dir.join("direct"),
        }],
    };
    let device = Box::new(Vsock::with_limits(config, limits()).expect("device"));
    let mut host = Host::new(dir);
    if u.ratio(1, 4)? {
        Guest::new(device).run(u, &mut host);
        return Ok(());
    }
    let mut talker = Talker {
        driver: TestDriver::new(device, MEMORY),
        packets: 0,
    };
    talker.start();
    for _ in 0..200 {
        if u.is_empty() {
            break;
        }
        let op = u.arbitrary()?;
        talker.apply(op, &mut host);
    }
    // Whatever happened, the bounds held, and nothing outlives a reset.
    let metric = |talker: &Talker, name: &str| {
        let mut value = 0;
        talker.driver.transport.metrics(&mut |n, v| {
            if n == name {
                value = v;
            }
        });
        value
    };
    assert!(metric(&talker, "connections") <= 6);
    assert!(metric(&talker, "backlog_bytes") <= 24 << 10);
    talker.driver.transport.shutdown();
    assert_eq!(metric(&talker, "connections"), 0);
    assert_eq!(metric(&talker, "backlog_bytes"), 0);
    // An idle device leaves the event loop alone, but for clients that have yet to be looked at.
    for _ in 0..10 {
        talker.driver.pump(0);
    }
    assert!(!talker.driver.pump(0), "the device spins");
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    DIR.with_borrow(|dir| {
        // An input that is too short is just a short run.
        let _ = run(&mut Unstructured::new(data), dir.path());
    });
});
