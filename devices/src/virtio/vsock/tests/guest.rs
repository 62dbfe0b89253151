//! A guest: the socket driver and protocol of one, as small as the tests allow.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::driver::TestDriver;
use crate::virtio::state::{DeviceState, StateError};
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, op, shutdown};
use crate::virtio::vsock::{
    DirectSocket, EVENT_QUEUE, Limits, RECEIVE_QUEUE, TRANSMIT_QUEUE, Vsock, VsockConfig,
};

pub const CID: u64 = 42;
/// The port that the socket `direct` leads to.
pub const DIRECT_PORT: u32 = 2000;
/// What the guest promises for each connection unless a test says otherwise.
pub const ROOM: u32 = 256 << 10;

const QUEUE: u16 = 256;
const RX_SIZE: u64 = 4096;
const RX: u64 = 0x10_0000;
const TX: u64 = 0x20_0000;
const TX_SIZE: u64 = 0x2_0000;
/// Buffers for events.
const EVENTS: u64 = 0x8_0000;
const TX_SLOTS: u16 = 32;
const MEMORY: usize = 8 << 20;

/// The guest's ports of a connection: its own and the host's.
pub type Key = (u32, u32);

/// The guest's end of a connection.
#[derive(Debug, Default)]
pub struct Socket {
    pub open: bool,
    pub reset: bool,
    /// SHUTDOWN flags that came.
    pub shutdown: u32,
    pub received: Vec<u8>,
    /// Of `received`, what the program has taken.
    pub taken: u32,
    /// Whether there is a program that takes all at once.
    pub lazy: bool,
    pub room: u32,
    pub sent: u32,
    told: u32,
    peer_room: u32,
    peer_taken: u32,
}

impl Socket {
    pub fn credit(&self) -> u32 {
        self.peer_room
            .saturating_sub(self.sent.wrapping_sub(self.peer_taken))
    }
}

pub struct Guest {
    pub driver: TestDriver,
    pub sockets: BTreeMap<Key, Socket>,
    /// Ports somebody listens at.
    pub listening: Vec<u32>,
    /// Every packet that came.
    pub log: Vec<Header>,
    /// Do not give receive buffers back.
    pub starve: bool,
    /// Do not answer packets.
    pub mute: bool,
    pub dir: TempDir,
    cid: u64,
    room: u32,
    epoll: RawFd,
    rx_free: u16,
    rx_next: u16,
    tx_next: u16,
    tx_busy: u16,
}

impl Guest {
    pub fn new() -> Guest {
        Guest::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let device = Vsock::with_limits(config(&dir, CID), limits).unwrap();
        let driver = TestDriver::new(Box::new(device), MEMORY);
        let sources = driver.transport.event_sources();
        assert_eq!(sources.len(), 1);
        assert!(!sources[0].edge);
        let mut guest = Guest {
            driver,
            sockets: BTreeMap::new(),
            listening: Vec::new(),
            log: Vec::new(),
            starve: false,
            mute: false,
            dir,
            cid: CID,
            room: ROOM,
            epoll: sources[0].fd,
            rx_free: 0,
            rx_next: 0,
            tx_next: 0,
            tx_busy: 0,
        };
        guest.start();
        guest
    }

    /// The VM goes on elsewhere, with a device of its own and a context ID of its own.
    pub fn move_to(&mut self, cid: u64, state: &DeviceState) -> Result<(), StateError> {
        let dir = tempfile::tempdir().unwrap();
        let device = Vsock::new(config(&dir, cid)).unwrap();
        self.driver.move_to(Box::new(device), state)?;
        self.epoll = self.driver.transport.event_sources()[0].fd;
        self.dir = dir;
        Ok(())
    }

    /// The context ID the guest takes for its own.
    pub fn set_cid(&mut self, cid: u64) {
        self.cid = cid;
    }

    /// Puts `count` buffers for events on their queue, without a word.
    pub fn give_event_buffers(&mut self, count: u16) {
        for n in 0..count {
            let at = EVENTS + 8 * u64::from(n);
            self.driver.add_chain(EVENT_QUEUE, &[], &[(at, 8)]);
        }
    }

    /// Takes an event, as a driver does: drops its connections, reads its context ID, and gives the
    /// buffer back. What the event says, if there is one.
    pub fn take_event(&mut self) -> Option<u32> {
        let (head, written) = self.driver.used(EVENT_QUEUE)?;
        assert_eq!(written, 4);
        let at = EVENTS + 8 * u64::from(head);
        let event = u32::from_le_bytes(self.driver.get(at));
        self.sockets.clear();
        self.cid = self.driver.read(0x100).into();
        self.driver.add_available(EVENT_QUEUE, head);
        self.driver.kick(EVENT_QUEUE);
        Some(event)
    }

    /// Resets the device and brings the driver up.
    pub fn start(&mut self) {
        assert_eq!(self.driver.start(u64::MAX, QUEUE), 0xf);
        self.sockets.clear();
        self.log.clear();
        (self.rx_next, self.tx_next, self.tx_busy) = (0, 0, 0);
        self.rx_free = QUEUE;
        self.give_buffers(QUEUE);
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("v")
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

    /// Adds up to `count` of the free receive buffers.
    pub fn give_buffers(&mut self, count: u16) {
        for _ in 0..count.min(self.rx_free) {
            let buffer = (RX + u64::from(self.rx_next) * RX_SIZE, RX_SIZE as u32);
            let head = self.driver.add_chain(RECEIVE_QUEUE, &[], &[buffer]);
            assert_eq!(head, self.rx_next);
            self.rx_next = (self.rx_next + 1) % QUEUE;
            self.rx_free -= 1;
        }
        self.driver.kick(RECEIVE_QUEUE);
    }

    pub fn device_has_events(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.epoll,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, borrowed for the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    /// The event loop and the guest's interrupt handler, until both have nothing to do.
    pub fn run(&mut self) {
        loop {
            let events = self.device_has_events();
            if events {
                self.driver.transport.process_event(0);
            }
            if !self.receive() && !events {
                return;
            }
        }
    }

    #[track_caller]
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            self.run();
            if done(self) {
                return;
            }
            assert!(Instant::now() < give_up, "waited too long for {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes the packets the device has returned. `false` if there were none.
    fn receive(&mut self) -> bool {
        let mut any = false;
        while let Some((head, written)) = self.driver.used(RECEIVE_QUEUE) {
            any = true;
            self.rx_free += 1;
            let mut bytes = vec![0; written as usize];
            let at = GuestAddress(RX + u64::from(head) * RX_SIZE);
            self.driver.memory.read_slice(&mut bytes, at).unwrap();
            let header = decode(&bytes);
            assert_eq!(header.len, written - HEADER_SIZE);
            self.take(header, &bytes[HEADER_SIZE as usize..]);
        }
        if any && !self.starve {
            self.give_buffers(QUEUE);
        }
        any
    }

    fn take(&mut self, header: Header, payload: &[u8]) {
        self.log.push(header);
        assert_eq!(header.dst_cid, self.cid);
        if self.mute {
            return;
        }
        let key = (header.dst_port, header.src_port);
        if header.op == op::REQUEST {
            assert_eq!((header.src_cid, header.kind), (2, 1));
            if self.listening.contains(&key.0) {
                let socket = self.new_socket(header);
                self.sockets.insert(
                    key,
                    Socket {
                        open: true,
                        ..socket
                    },
                );
                self.send(key, op::RESPONSE, 0, &[]);
            } else {
                self.send_raw(reply(key, op::RST), &[]);
            }
            return;
        }
        let Some(socket) = self.sockets.get_mut(&key) else {
            if header.op != op::RST {
                self.send_raw(reply(key, op::RST), &[]);
            }
            return;
        };
        if header.op == op::RST {
            socket.reset = true;
            return;
        }
        socket.peer_room = header.buf_alloc;
        socket.peer_taken = header.fwd_cnt;
        match header.op {
            op::RESPONSE => socket.open = true,
            op::SHUTDOWN => {
                socket.shutdown |= header.flags;
                if socket.shutdown == shutdown::BOTH {
                    // What Linux does once the program has read everything.
                    socket.reset = true;
                    self.send(key, op::RST, 0, &[]);
                }
            }
            op::RW => {
                socket.received.extend_from_slice(payload);
                let held = socket.received.len() as u32 - socket.taken;
                assert!(
                    held <= socket.room,
                    "{held} bytes in a room of {}",
                    socket.room
                );
                if !socket.lazy {
                    socket.taken += held;
                    if socket.taken - socket.told > socket.room / 2 {
                        self.send(key, op::CREDIT_UPDATE, 0, &[]);
                    }
                }
            }
            op::CREDIT_REQUEST => self.send(key, op::CREDIT_UPDATE, 0, &[]),
            op::CREDIT_UPDATE => {}
            other => panic!("unexpected operation {other}"),
        }
    }

    fn new_socket(&self, header: Header) -> Socket {
        Socket {
            room: self.room,
            peer_room: header.buf_alloc,
            peer_taken: header.fwd_cnt,
            ..Socket::default()
        }
    }

    /// How much the guest promises for connections from now on.
    pub fn set_room(&mut self, room: u32) {
        self.room = room;
    }

    /// Asks for a connection to a port of the host.
    pub fn request(&mut self, key: Key) {
        let socket = self.new_socket(Header::default());
        self.sockets.insert(key, socket);
        self.send(key, op::REQUEST, 0, &[]);
    }

    /// Sends a packet on a connection, with what the guest has to say about its room.
    pub fn send(&mut self, key: Key, operation: u16, flags: u32, payload: &[u8]) {
        let socket = self.sockets.get_mut(&key).unwrap();
        socket.told = socket.taken;
        socket.sent = socket.sent.wrapping_add(payload.len() as u32);
        let header = Header {
            flags,
            len: payload.len() as u32,
            buf_alloc: socket.room,
            fwd_cnt: socket.taken,
            ..reply(key, operation)
        };
        self.send_raw(header, payload);
    }

    /// Sends as much of `data` as there is credit for.
    pub fn write(&mut self, key: Key, data: &[u8]) -> usize {
        let credit = self.sockets[&key].credit() as usize;
        let data = &data[..data.len().min(credit)];
        for piece in data.chunks(64 << 10) {
            self.send(key, op::RW, 0, piece);
        }
        data.len()
    }

    /// The program takes all it was sent, and the driver says so.
    pub fn take_all(&mut self, key: Key) {
        let socket = self.sockets.get_mut(&key).unwrap();
        socket.taken = socket.received.len() as u32;
        self.send(key, op::CREDIT_UPDATE, 0, &[]);
    }

    /// Sends a packet as it is.
    pub fn send_raw(&mut self, header: Header, payload: &[u8]) {
        let mut header = header;
        if header.src_cid == CID {
            header.src_cid = self.cid;
        }
        let mut bytes = encode(&header).to_vec();
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes);
    }

    /// Sends bytes as they are, in a chain of two buffers.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.reclaim();
        assert!(self.tx_busy < TX_SLOTS, "the device does not take packets");
        let at = TX + u64::from(self.tx_next) * TX_SIZE;
        self.tx_next = (self.tx_next + 1) % TX_SLOTS;
        self.tx_busy += 1;
        self.driver.put(at, bytes);
        let split = bytes.len().min(HEADER_SIZE as usize) as u32;
        let rest = (at + u64::from(split), bytes.len() as u32 - split);
        self.driver
            .add_chain(TRANSMIT_QUEUE, &[(at, split), rest], &[]);
        self.driver.kick(TRANSMIT_QUEUE);
        self.reclaim();
    }

    /// Whether the device has taken all packets.
    pub fn transmit_is_idle(&mut self) -> bool {
        self.reclaim();
        self.tx_busy == 0
    }

    fn reclaim(&mut self) {
        while let Some((_, written)) = self.driver.used(TRANSMIT_QUEUE) {
            assert_eq!(written, 0);
            self.tx_busy -= 1;
        }
    }

    /// A host client that has asked for `port`.
    pub fn client(&self, port: u32) -> UnixStream {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A connection opened by a host client, as both sides have it.
    #[track_caller]
    pub fn connect_from_host(&mut self, port: u32) -> (UnixStream, Key) {
        self.listening.push(port);
        let mut client = self.client(port);
        let line = self.read_line(&mut client);
        let host = line.strip_prefix("OK ").unwrap().parse().unwrap();
        let key = (port, host);
        assert!(self.sockets[&key].open);
        (client, key)
    }

    /// A client at the socket that leads to [`DIRECT_PORT`].
    pub fn direct_client(&self) -> UnixStream {
        let client = UnixStream::connect(self.dir.path().join("direct")).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A connection opened by the guest, as both sides have it.
    #[track_caller]
    pub fn connect_from_guest(&mut self, key: Key) -> (UnixStream, Key) {
        let path = self.dir.path().join(format!("v_{}", key.1));
        let listener = UnixListener::bind(path).unwrap();
        self.request(key);
        self.run();
        assert!(self.sockets[&key].open);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream, key)
    }

    #[track_caller]
    pub fn read_line(&mut self, client: &mut UnixStream) -> String {
        let mut line = Vec::new();
        self.wait("a line", |_| {
            loop {
                let mut byte = [0];
                match client.read(&mut byte) {
                    Ok(1) if byte[0] == b'\n' => return true,
                    Ok(1) => line.push(byte[0]),
                    Ok(_) => panic!("closed after {line:?}"),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                    Err(e) => panic!("{e}"),
                }
            }
        });
        String::from_utf8(line).unwrap()
    }

    /// Reads what a host socket has until its end.
    #[track_caller]
    pub fn read_to_end(&mut self, stream: &mut UnixStream) -> Vec<u8> {
        let mut all = Vec::new();
        self.wait("the end of a stream", |_| read_some(stream, &mut all));
        all
    }

    /// The operations that came for a connection, in order.
    pub fn operations(&self, key: Key) -> Vec<(u16, u32)> {
        self.log
            .iter()
            .filter(|h| (h.dst_port, h.src_port) == key)
            .map(|h| (h.op, h.flags))
            .collect()
    }
}

fn config(dir: &TempDir, cid: u64) -> VsockConfig {
    VsockConfig {
        name: "vsock".to_owned(),
        guest_cid: cid,
        uds_path: dir.path().join("v"),
        direct: vec![DirectSocket {
            port: DIRECT_PORT,
            path: dir.path().join("direct"),
        }],
    }
}

/// A non-blocking listener whose queue has room for `room` clients and one more.
pub fn listen(path: &Path, room: i32) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    // SAFETY: takes integers only.
    let result = unsafe { libc::listen(listener.as_raw_fd(), room) };
    assert_eq!(result, 0);
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Reads what there is now. `true` at the end.
pub fn read_some(stream: &mut UnixStream, all: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) => panic!("{e}"),
        }
    }
}

/// A packet of the guest's without payload.
pub fn reply(key: Key, operation: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: 2,
        src_port: key.0,
        dst_port: key.1,
        kind: 1,
        op: operation,
        ..Header::default()
    }
}

pub fn encode(header: &Header) -> [u8; 44] {
    let mut bytes = [0; 44];
    bytes[..8].copy_from_slice(&header.src_cid.to_le_bytes());
    bytes[8..16].copy_from_slice(&header.dst_cid.to_le_bytes());
    bytes[16..20].copy_from_slice(&header.src_port.to_le_bytes());
    bytes[20..24].copy_from_slice(&header.dst_port.to_le_bytes());
    bytes[24..28].copy_from_slice(&header.len.to_le_bytes());
    bytes[28..30].copy_from_slice(&header.kind.to_le_bytes());
    bytes[30..32].copy_from_slice(&header.op.to_le_bytes());
    bytes[32..36].copy_from_slice(&header.flags.to_le_bytes());
    bytes[36..40].copy_from_slice(&header.buf_alloc.to_le_bytes());
    bytes[40..].copy_from_slice(&header.fwd_cnt.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Header {
    let u32_at = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let u16_at = |at| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    Header {
        src_cid: u64_at(0),
        dst_cid: u64_at(8),
        src_port: u32_at(16),
        dst_port: u32_at(20),
        len: u32_at(24),
        kind: u16_at(28),
        op: u16_at(30),
        flags: u32_at(32),
        buf_alloc: u32_at(36),
        fwd_cnt: u32_at(40),
    }
}
