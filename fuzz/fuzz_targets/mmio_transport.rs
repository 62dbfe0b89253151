//! Any access to the transport's registers, in any order, over a device that holds the transport to
//! its promises.
#![no_main]

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use bulkhead_devices::GuestMemory;
use bulkhead_devices::bus::BusDevice;
use bulkhead_devices::virtio::chain::DescriptorChain;
use bulkhead_devices::virtio::interrupt::Interrupt;
use bulkhead_devices::virtio::mmio::MmioTransport;
use bulkhead_devices::virtio::queue::{QueueError, VirtQueue};
use bulkhead_devices::virtio::{ActivateError, Activation, VirtioDevice};
use bulkhead_devices::virtio::state::{SavedDevice, StateError};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_SIZE: usize = 64 << 10;
const QUEUES: [u16; 3] = [8, 256, 1];
const FEATURES: u64 = 0b1011;
const MAX_OPS: usize = 256;

/// Reads and fills everything that the guest gives it.
#[derive(Default)]
struct Witness {
    interrupt: Option<Arc<Interrupt>>,
    active: bool,
    queues: Vec<Option<VirtQueue>>,
}

impl Witness {
    fn serve(queue: &mut VirtQueue) -> Result<(), QueueError> {
        let memory = Arc::clone(queue.memory());
        let mut chain = DescriptorChain::new();
        for _ in 0..16 {
            if !queue.pop_or_arm(&mut chain)? {
                break;
            }
            assert!(chain.head() < queue.size());
            let readable = chain.readable.len().min(1 << 16);
            let mut data = vec![0; readable as usize];
            assert!(chain.readable.read_at(&memory, 0, &mut data));
            let writable = chain.writable.len().min(1 << 16);
            data.resize(writable as usize, 0x11);
            assert!(chain.writable.write_at(&memory, 0, &data));
            queue.push_used(chain.head(), writable)?;
        }
        queue.signal_used()
    }
}

impl VirtioDevice for Witness {
    fn device_type(&self) -> u32 {
        4
    }
    fn name(&self) -> &str {
        "witness"
    }
    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        bulkhead_devices::virtio::read_config_bytes(&[7; 13], offset, data);
    }
    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.active, "activated twice");
        assert_eq!(activation.queues.len(), QUEUES.len());
        let transport = 1 << 32 | 1 << 29 | 1 << 28;
        assert_eq!(activation.features & !(FEATURES | transport), 0);
        assert_ne!(activation.features & 1 << 32, 0);
        for (queue, max) in activation.queues.iter().zip(QUEUES) {
            let size = queue.as_ref().map_or(1, VirtQueue::size);
            assert!(size.is_power_of_two() && size <= max);
        }
        self.active = true;
        self.queues = activation.queues;
        Ok(())
    }
    fn reset(&mut self) {
        self.active = false;
        self.queues.clear();
    }
    fn save(&mut self) -> Result<SavedDevice, StateError> {
        let queues = self.queues.iter().map(|queue| queue.as_ref().map(VirtQueue::position));
        SavedDevice::new("witness", queues.collect(), &())
    }
    fn restore(
        &mut self,
        _own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        match activation {
            Some(activation) => self
                .activate(activation)
                .map_err(|e| StateError::activating("witness", e)),
            None => Ok(()),
        }
    }
    fn process_queue(&mut self, index: usize) {
        assert!(self.active, "called while inactive");
        let Some(queue) = &mut self.queues[index] else {
            return;
        };
        if Self::serve(queue).is_err() {
            let interrupt = self.interrupt.as_ref().expect("set before anything");
            interrupt.signal_needs_reset();
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Op {
    /// A register that has a meaning, with a small value or any.
    Register { which: u8, value: Value },
    /// Any read, of any width.
    Read { offset: u16, len: u8 },
    /// Any write, of any width.
    Write { offset: u16, len: u8, value: u64 },
    /// The next step of the handshake.
    Climb,
    /// A queue at its place, ready.
    Queue { index: u8, size_log: u8 },
    /// Guest memory.
    Memory { address: u16, value: u64 },
    /// A buffer on a queue.
    Buffer {
        queue: u8,
        address: u16,
        len: u16,
        flags: u8,
    },
    /// A notification, seen by the event loop.
    Kick { index: u8 },
}

#[derive(Debug, Arbitrary)]
enum Value {
    Small(u8),
    Any(u32),
}

const REGISTERS: [u64; 18] = [
    0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94,
    0xa0, 0xa4,
];

/// Descriptors, then the available ring, then the used ring of each queue.
fn ring(queue: u8) -> u64 {
    u64::from(queue) * 0x4000
}
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

struct Machine {
    transport: MmioTransport,
    memory: Arc<GuestMemory>,
}

impl Machine {
    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, address: u64, data: &[u8]) {
        let _ = self.memory.write(data, GuestAddress(address));
    }

    fn apply(&self, op: Op) {
        match op {
            Op::Register { which, value } => {
                let value = match value {
                    Value::Small(value) => value.into(),
                    Value::Any(value) => value,
                };
                self.write(REGISTERS[usize::from(which) % REGISTERS.len()], value);
            }
            Op::Read { offset, len } => {
                let mut data = vec![0xee; usize::from(len % 17)];
                self.transport.read(offset.into(), &mut data);
                assert!(!data.contains(&0xee), "left a part of what is read");
            }
            Op::Write { offset, len, value } => {
                let data = &value.to_le_bytes()[..usize::from(len % 9)];
                self.transport.write(offset.into(), data);
            }
            Op::Climb => {
                let status = self.read(0x70);
                if status & 2 != 0 && status & 8 == 0 {
                    self.write(0x24, 1);
                    self.write(0x20, 1);
                }
                let next = [1, 2, 8, 4].into_iter().find(|bit| status & bit == 0);
                self.write(0x70, status | next.unwrap_or(0));
            }
            Op::Queue { index, size_log } => {
                let index = index % 3;
                self.write(0x30, index.into());
                self.write(0x38, 1 << (size_log % 9));
                let base = ring(index) as u32;
                self.write(0x80, base);
                self.write(0x90, base + AVAILABLE as u32);
                self.write(0xa0, base + USED as u32);
                self.write(0x44, 1);
            }
            Op::Memory { address, value } => self.put(address.into(), &value.to_le_bytes()),
            Op::Buffer {
                queue,
                address,
                len,
                flags,
            } => {
                // Descriptor 0, available at once: the index goes up by one.
                let base = ring(queue % 3);
                let mut descriptor = u64::from(address).to_le_bytes().to_vec();
                descriptor.extend(u32::from(len).to_le_bytes());
                descriptor.extend(u16::from(flags).to_le_bytes());
                descriptor.extend([1, 0]);
                self.put(base, &descriptor);
                let mut index = [0; 2];
                let at = GuestAddress(base + AVAILABLE + 2);
                if self.memory.read_slice(&mut index, at).is_ok() {
                    let index = u16::from_le_bytes(index).wrapping_add(1);
                    self.put(at.0, &index.to_le_bytes());
                }
            }
            Op::Kick { index } => {
                self.write(0x50, index.into());
                // The event loop knows how many notifiers there are.
                self.transport
                    .process_queue(usize::from(index) % QUEUES.len());
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let range = (GuestAddress(0), MEMORY_SIZE);
    let memory = Arc::new(GuestMemory::from_ranges(&[range]).expect("memory"));
    let device = Box::<Witness>::default();
    let transport = MmioTransport::new(device, Arc::clone(&memory)).expect("transport");
    let machine = Machine { transport, memory };
    let mut u = Unstructured::new(data);
    for _ in 0..MAX_OPS {
        match u.arbitrary() {
            Ok(op) if !u.is_empty() => machine.apply(op),
            _ => break,
        }
    }
    machine.transport.shutdown();
    assert_eq!(machine.read(0x70), 0);
    assert_eq!(machine.read(0x60), 0);
});
