//! What the fuzz targets share: a driver that does anything a hostile guest can do to a virtio device.
//!
//! Run a target with `RUSTC_BOOTSTRAP=1 cargo fuzz run TARGET` (stable Rust will do).

pub mod erofs;

use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use bulkhead_devices::GuestMemory;
use bulkhead_devices::bus::BusDevice;
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::virtio::driver::{Buffer, RINGS_SIZE, TestDriver};
use vm_memory::{Bytes, GuestAddress};

/// Guest memory: the rings of up to six queues, and then data.
pub const MEMORY_SIZE: usize = 512 << 10;
const DATA: u64 = 6 * RINGS_SIZE;

/// More than this in one run only makes it slow.
const MAX_OPS: usize = 64;

/// An address that mostly lies in the data half of memory, so that requests get past the first check,
/// and sometimes anywhere.
#[derive(Debug, Clone, Copy)]
pub struct Address(u64);

impl<'a> Arbitrary<'a> for Address {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Address(match u.arbitrary::<u8>()? {
            0 => u.arbitrary()?,
            1 => u64::from(u.arbitrary::<u32>()?),
            // The very end of memory.
            2 => MEMORY_SIZE as u64 - u64::from(u.arbitrary::<u8>()?),
            // The rings.
            3 => u64::from(u.arbitrary::<u32>()?) % DATA,
            page => DATA + u64::from(page) * 0x200 + u64::from(u.arbitrary::<u8>()?),
        }))
    }
}

/// A length that mostly is one a driver would use.
#[derive(Debug, Clone, Copy)]
pub struct Length(u32);

impl<'a> Arbitrary<'a> for Length {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Length(match u.arbitrary::<u8>()? {
            0 => u.arbitrary()?,
            1 => u32::from(u.arbitrary::<u16>()?),
            n if n < 64 => u32::from(n),
            n => (u32::from(n) - 63) * 512,
        }))
    }
}

/// One thing a driver may do. Queue numbers are taken modulo the number of queues.
#[derive(Debug, Clone, Arbitrary)]
pub enum Op {
    /// The orderly handshake, accepting these features.
    Start {
        features: u64,
        queue_size: QueueSize,
    },
    /// Any register, in any state.
    Register { index: u8, value: u32 },
    /// Any access to the configuration space.
    ReadConfig { offset: u8, len: u8 },
    /// Any access to the configuration space.
    WriteConfig { offset: u8, value: u64, len: u8 },
    /// A chain of any buffers.
    Request(Request),
    /// A chain that means something to the device, from [`Host::request`].
    Typical,
    /// Any descriptor.
    Descriptor {
        queue: u8,
        index: u8,
        address: Address,
        len: Length,
        flags: u8,
        next: u8,
    },
    /// A head on the available ring.
    Available { queue: u8, head: u16 },
    /// The available ring's index, alone.
    AvailableIndex { queue: u8, index: u16 },
    /// Bytes anywhere, rings included.
    Memory { address: Address, data: Header },
    /// A notification.
    Kick { queue: u8 },
    /// The event loop gets a turn, and waits a little if there is nothing to do.
    Events { wait: bool },
    /// A reset in the middle of everything.
    Reset,
}

/// A size the handshake sets its queues to.
#[derive(Debug, Clone, Copy)]
pub struct QueueSize(u16);

impl<'a> Arbitrary<'a> for QueueSize {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(QueueSize(1 << u.int_in_range(0..=8)?))
    }
}

/// Up to 64 bytes.
#[derive(Debug, Clone)]
pub struct Header(Vec<u8>);

impl<'a> Arbitrary<'a> for Header {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let len = u.int_in_range(0..=64)?;
        Ok(Header(u.bytes(len)?.to_vec()))
    }
}

/// A chain without malformed descriptors.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Taken modulo the number of queues.
    pub queue: u8,
    /// At most 64 bytes to put in a readable buffer of their own, before the others.
    pub header: Vec<u8>,
    /// Left with whatever is in memory there.
    pub readable: Vec<Buffer>,
    /// Left as they are, too.
    pub writable: Vec<Buffer>,
}

impl<'a> Arbitrary<'a> for Request {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Request {
            queue: u.arbitrary()?,
            header: u.arbitrary::<Header>()?.0,
            readable: buffers(u)?,
            writable: buffers(u)?,
        })
    }
}

fn buffers(u: &mut Unstructured) -> Result<Vec<Buffer>> {
    let len = u.int_in_range(0..=7)?;
    (0..len)
        .map(|_| Ok((u.arbitrary::<Address>()?.0, u.arbitrary::<Length>()?.0)))
        .collect()
}

/// What a target knows of its device.
pub trait Host {
    /// A request that the device understands, or nearly: otherwise a fuzzer takes for ever to get
    /// past the first checks.
    fn request(&mut self, u: &mut Unstructured) -> Result<Request> {
        u.arbitrary()
    }

    /// The event loop had a turn: time to play the host's side (a peer, a tap).
    fn turn(&mut self, _u: &mut Unstructured) {}
}

impl Host for () {}

/// `len` bytes of the data half of memory, from a place the input chooses, in up to four buffers
/// that it chooses too.
pub fn in_buffers(u: &mut Unstructured, len: u32) -> Result<Vec<Buffer>> {
    let mut buffers = Vec::new();
    let mut left = len;
    while left > 0 {
        let most = (MEMORY_SIZE as u64 - DATA) as u32 / 2;
        let part = match buffers.len() {
            0..3 => u.int_in_range(1..=left)?,
            _ => left,
        };
        let part = part.min(most);
        buffers.push((DATA + u64::from(u.int_in_range(0..=most)?), part));
        left -= part;
    }
    Ok(buffers)
}

/// A device and the guest that has it. It may be used for many runs: each starts with memory zeroed
/// and the device reset.
pub struct Guest {
    driver: TestDriver,
    queues: usize,
    started: bool,
    headers: u64,
    /// All of guest memory, before and after what should not change it.
    contents: [Vec<u8>; 2],
}

impl Guest {
    /// A guest with `device`.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let range = (GuestAddress(0), MEMORY_SIZE);
        let memory = GuestMemory::from_ranges(&[range]).expect("memory");
        Self::with_memory(device, Arc::new(memory))
    }

    /// A guest with `device` and with [`MEMORY_SIZE`] bytes of memory that are yours.
    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Self {
        let queues = device.queue_sizes().len();
        assert!(
            queues as u64 * RINGS_SIZE <= DATA,
            "more queues than planned for"
        );
        Guest {
            queues,
            driver: TestDriver::with_memory(device, memory),
            started: false,
            headers: 0,
            contents: [vec![0; MEMORY_SIZE], vec![0; MEMORY_SIZE]],
        }
    }

    /// Does to the device what the input says, then resets it and checks that it leaves guest memory
    /// alone from there on. Returns when the input is used up.
    pub fn run(&mut self, u: &mut Unstructured, host: &mut impl Host) {
        self.contents[0].fill(0);
        self.put(0, &self.contents[0]);
        self.headers = 0;
        // Nearly every run should get past the handshake.
        let plain = u.ratio(1, 8).unwrap_or(false);
        self.apply(Op::Start {
            features: if plain { 1 << 32 } else { u64::MAX },
            queue_size: QueueSize(16),
        });
        for _ in 0..MAX_OPS {
            let op = match u.arbitrary() {
                Ok(Op::Typical) => host.request(u).map(Op::Request),
                op => op,
            };
            let Ok(op) = op else { break };
            let events = matches!(op, Op::Events { .. });
            self.apply(op);
            if events {
                host.turn(u);
            }
            if u.is_empty() {
                break;
            }
        }
        self.finish();
    }

    fn queue(&self, queue: u8) -> usize {
        usize::from(queue) % self.queues
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Start {
                features,
                queue_size,
            } => {
                // Mostly not a legacy driver, which gets nowhere.
                let modern = u64::from(features % 16 != 0) << 32;
                self.driver.start(features | modern, queue_size.0);
                self.started = true;
            }
            Op::Register { index, value } => self.driver.write(u64::from(index) * 4, value),
            Op::ReadConfig { offset, len } => {
                let mut data = vec![0; usize::from(len % 9)];
                self.driver.transport.read(u64::from(offset) * 2, &mut data);
            }
            Op::WriteConfig { offset, value, len } => {
                let data = &value.to_le_bytes()[..usize::from(len % 9)];
                self.driver.transport.write(0x100 + u64::from(offset), data);
            }
            Op::Memory { address, data } => self.put(address.0, &data.0),
            Op::Kick { queue } => self.driver.kick(self.queue(queue)),
            Op::Events { wait } => self.events(wait),
            Op::Reset => self.driver.write(0x70, 0),
            // The rest needs rings to write to.
            _ if !self.started => {}
            Op::Request(request) => self.request(request),
            // Made into a request before.
            Op::Typical => {}
            Op::Descriptor {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => {
                let buffer = (address.0, len.0);
                let queue = self.queue(queue);
                self.driver
                    .set_descriptor(queue, index.into(), buffer, flags.into(), next.into());
            }
            Op::Available { queue, head } => self.driver.add_available(self.queue(queue), head),
            Op::AvailableIndex { queue, index } => {
                self.driver.set_available_index(self.queue(queue), index);
            }
        }
    }

    fn request(&mut self, request: Request) {
        // Each in a place of its own for a while, as a request may stay in flight.
        let place = DATA + self.headers % 32 * 64;
        self.headers += 1;
        let header = &request.header[..request.header.len().min(64)];
        self.put(place, header);
        let mut readable = request.readable;
        if !header.is_empty() {
            readable.insert(0, (place, header.len() as u32));
        }
        if !readable.is_empty() || !request.writable.is_empty() {
            let queue = self.queue(request.queue);
            self.driver.add_chain(queue, &readable, &request.writable);
        }
    }

    fn events(&mut self, wait: bool) {
        self.driver.pump(wait.into());
        let _ = self.driver.transport.interrupt().line().read();
        let status = self.driver.read(0x60);
        self.driver.write(0x64, status);
        if self.started {
            for queue in 0..self.queues {
                // No more than fit, whatever the guest has written over the ring.
                for _ in 0..16 {
                    if self.driver.used(queue).is_none() {
                        break;
                    }
                }
            }
        }
    }

    fn put(&self, address: u64, data: &[u8]) {
        // Where there is no memory, nothing is written.
        let _ = self.driver.memory.write(data, GuestAddress(address));
    }

    fn finish(&mut self) {
        self.driver.transport.shutdown();
        self.read_all(0);
        // What has come from the host stays unread now, and ready.
        for _ in 0..16 {
            if !self.driver.pump(0) {
                break;
            }
        }
        self.read_all(1);
        let [before, after] = &self.contents;
        assert!(before == after, "guest memory changed after a reset");
    }

    fn read_all(&mut self, into: usize) {
        let read = self
            .driver
            .memory
            .read_slice(&mut self.contents[into], GuestAddress(0));
        read.expect("all of it is there");
    }
}
