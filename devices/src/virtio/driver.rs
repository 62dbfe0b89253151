//! A small virtio driver, for tests, benchmarks and fuzzers (feature `test-driver`).
//!
//! It speaks to a device the way a guest does, through the transport's registers and through rings in
//! guest memory, so what it exercises is the real path.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::mmio::MmioTransport;
use super::state::{DeviceState, StateError};
use crate::GuestMemory;
use crate::bus::BusDevice;

/// Guest memory the driver keeps for the rings of each queue, from address 0 up.
pub const RINGS_SIZE: u64 = 0x1_0000;

const AVAIL_OFFSET: u64 = 0x8000;
const USED_OFFSET: u64 = 0xa000;

/// A buffer of a request: guest-physical address and length in bytes.
pub type Buffer = (u64, u32);

/// A driver, and the device it drives.
pub struct TestDriver {
    /// The guest's memory: rings in the first `queues * RINGS_SIZE` bytes, the rest free to use.
    pub memory: Arc<GuestMemory>,
    /// The device under test.
    pub transport: MmioTransport,
    rings: Vec<Ring>,
}

#[derive(Clone)]
struct Ring {
    base: u64,
    size: u16,
    next_descriptor: u16,
    avail: u16,
    used: u16,
}

impl TestDriver {
    /// Makes `memory_size` bytes of guest memory and a transport with `device` behind it.
    ///
    /// # Panics
    /// When the host gives no memory or no eventfds: there is no test without them.
    #[allow(clippy::unwrap_used)]
    pub fn new(device: Box<dyn VirtioDevice>, memory_size: usize) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), memory_size)]).unwrap();
        Self::with_memory(device, Arc::new(memory))
    }

    /// The same with guest memory of your own, which has to have room for the rings.
    ///
    /// # Panics
    /// When the host gives no eventfds.
    #[allow(clippy::unwrap_used)]
    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Self {
        let transport = MmioTransport::new(device, Arc::clone(&memory)).unwrap();
        TestDriver {
            memory,
            transport,
            rings: Vec::new(),
        }
    }

    /// Saves the device, by way of the text a snapshot keeps.
    ///
    /// # Panics
    /// When the device cannot be saved.
    #[allow(clippy::unwrap_used)]
    pub fn save(&self) -> DeviceState {
        let state = self.transport.save().unwrap();
        serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()
    }

    /// Goes on with `device` in place of the one there is, in the state `state`.
    ///
    /// # Panics
    /// When the host gives no eventfds.
    #[allow(clippy::unwrap_used)]
    pub fn move_to(
        &mut self,
        device: Box<dyn VirtioDevice>,
        state: &DeviceState,
    ) -> Result<(), StateError> {
        let transport = MmioTransport::new(device, Arc::clone(&self.memory)).unwrap();
        transport.restore(state)?;
        self.transport = transport;
        Ok(())
    }

    /// Reads a 32-bit register.
    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// The 64 feature bits the device offers.
    pub fn offered_features(&self) -> u64 {
        self.write(0x14, 0);
        let low = u64::from(self.read(0x10));
        self.write(0x14, 1);
        low | u64::from(self.read(0x10)) << 32
    }

    /// Goes through the whole initialization (virtio 1.2 §3.1.1), accepting the offered features
    /// that are in `features`, with every queue at the size `queue_size` allows. Returns the status
    /// register.
    pub fn start(&mut self, features: u64, queue_size: u16) -> u32 {
        self.write(0x70, 0);
        let mut status = VIRTIO_CONFIG_S_ACKNOWLEDGE;
        self.write(0x70, status);
        status |= VIRTIO_CONFIG_S_DRIVER;
        self.write(0x70, status);
        let accepted = self.offered_features() & features;
        self.write(0x24, 0);
        self.write(0x20, accepted as u32);
        self.write(0x24, 1);
        self.write(0x20, (accepted >> 32) as u32);
        status |= VIRTIO_CONFIG_S_FEATURES_OK;
        self.write(0x70, status);

        self.rings.clear();
        for index in 0.. {
            self.write(0x30, index);
            let max = self.read(0x34) as u16;
            if max == 0 {
                break;
            }
            let size = max.min(queue_size);
            let base = u64::from(index) * RINGS_SIZE;
            self.clear(base, RINGS_SIZE);
            self.write(0x38, size.into());
            for (register, offset) in [(0x80, 0), (0x90, AVAIL_OFFSET), (0xa0, USED_OFFSET)] {
                self.write(register, (base + offset) as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
            self.rings.push(Ring {
                base,
                size,
                next_descriptor: 0,
                avail: 0,
                used: 0,
            });
        }
        status |= VIRTIO_CONFIG_S_DRIVER_OK;
        self.write(0x70, status);
        self.read(0x70)
    }

    /// Writes a descriptor of queue `queue` as it is, for malformed chains.
    pub fn set_descriptor(&self, queue: usize, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&buffer.0.to_le_bytes());
        raw[8..12].copy_from_slice(&buffer.1.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.put(self.rings[queue].base + 16 * u64::from(index), &raw);
    }

    /// Makes descriptor `head` available.
    pub fn add_available(&mut self, queue: usize, head: u16) {
        let Ring {
            base, size, avail, ..
        } = self.rings[queue];
        let slot = base + AVAIL_OFFSET + 4 + 2 * u64::from(avail % size);
        self.put(slot, &head.to_le_bytes());
        self.set_available_index(queue, avail.wrapping_add(1));
    }

    /// Sets the available ring's index as it is.
    pub fn set_available_index(&mut self, queue: usize, index: u16) {
        self.rings[queue].avail = index;
        let base = self.rings[queue].base;
        self.put(base + AVAIL_OFFSET + 2, &index.to_le_bytes());
    }

    /// Adds a chain with these readable and then these writable buffers. Returns its head.
    pub fn add_chain(&mut self, queue: usize, readable: &[Buffer], writable: &[Buffer]) -> u16 {
        let size = self.rings[queue].size;
        let head = self.rings[queue].next_descriptor;
        let total = readable.len() + writable.len();
        for (n, buffer) in readable.iter().chain(writable).enumerate() {
            let index = (head + n as u16) % size;
            let mut flags = 0;
            if n + 1 < total {
                flags |= VRING_DESC_F_NEXT;
            }
            if n >= readable.len() {
                flags |= VRING_DESC_F_WRITE;
            }
            self.set_descriptor(queue, index, *buffer, flags as u16, (index + 1) % size);
        }
        self.rings[queue].next_descriptor = (head + total as u16) % size;
        self.add_available(queue, head);
        head
    }

    /// Notifies queue `queue` and has the device look at it, as the event loop would.
    pub fn kick(&self, queue: usize) {
        self.transport.process_queue(queue);
    }

    /// Waits up to `timeout_ms` (-1: for ever) for one of the device's event sources and calls the
    /// device for those that are ready, as the event loop would. `false` if none was.
    ///
    /// # Panics
    /// When the host's `poll` fails on descriptors that are open.
    pub fn pump(&self, timeout_ms: i32) -> bool {
        let sources = self.transport.event_sources();
        let mut fds: Vec<_> = sources
            .iter()
            .map(|source| libc::pollfd {
                fd: source.fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let ready = loop {
            // SAFETY: the pointer and the count are those of `fds`, borrowed for the call.
            let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
            if n >= 0 {
                break n;
            }
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EINTR), "poll: {error}");
        };
        for (source, fd) in sources.iter().zip(&fds) {
            if fd.revents != 0 {
                self.transport.process_event(source.token);
            }
        }
        ready > 0
    }

    /// The next used buffer, if the device has returned one: head and bytes written.
    pub fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let Ring {
            base, size, used, ..
        } = self.rings[queue];
        let index = u16::from_le_bytes(self.get(base + USED_OFFSET + 2));
        if index == used {
            return None;
        }
        let slot = base + USED_OFFSET + 4 + 8 * u64::from(used % size);
        self.rings[queue].used = used.wrapping_add(1);
        Some((
            u32::from_le_bytes(self.get(slot)) as u16,
            u32::from_le_bytes(self.get(slot + 4)),
        ))
    }

    /// Writes guest memory.
    ///
    /// # Panics
    /// When `addr` is not guest memory: the test is wrong.
    #[allow(clippy::unwrap_used)]
    pub fn put(&self, addr: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(addr)).unwrap();
    }

    /// Reads guest memory.
    ///
    /// # Panics
    /// When `addr` is not guest memory: the test is wrong.
    #[allow(clippy::unwrap_used)]
    pub fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory
            .read_slice(&mut data, GuestAddress(addr))
            .unwrap();
        data
    }

    fn clear(&self, addr: u64, len: u64) {
        self.put(addr, &vec![0; len as usize]);
    }
}
