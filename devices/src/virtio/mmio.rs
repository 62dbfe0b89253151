//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2).

mod snapshot;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::interrupt::Interrupt;
use super::queue::VirtQueue;
use super::{ActivateError, Activation, EventSource, VirtioDevice};
use crate::GuestMemory;
use crate::bus::BusDevice;

/// Bytes of MMIO space one device takes.
pub const WINDOW_SIZE: u64 = 0x1000;
/// Offset of the `QueueNotify` register, where ioeventfds are bound.
pub const QUEUE_NOTIFY: u64 = 0x50;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"virt");
pub(super) const VERSION: u32 = 2;
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"BLKH");
const CONFIG_SPACE: u64 = 0x100;

/// The feature bits the transport offers for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The status bits a driver may set one after the other (virtio 1.2 §3.1.1).
const HANDSHAKE: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// One virtio device and its registers.
///
/// The vCPUs reach it through [`BusDevice`]; the event loop through [`Self::process_queue`] and
/// [`Self::process_event`]. Between them stands one lock, which the two registers of the guest's
/// interrupt handler do not take.
pub struct MmioTransport {
    interrupt: Arc<Interrupt>,
    notifiers: Vec<EventFd>,
    served_elsewhere: bool,
    name: String,
    state: Mutex<State>,
}

struct State {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Queue>,
}

impl MmioTransport {
    /// Puts `device` behind a transport.
    pub fn new(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> io::Result<Self> {
        let flags = EFD_NONBLOCK | EFD_CLOEXEC;
        let interrupt = Arc::new(Interrupt::new(EventFd::new(flags)?));
        let mut device = device;
        device.set_interrupt(Arc::clone(&interrupt));
        let queues = device
            .queue_sizes()
            .iter()
            .map(|size| Queue::new(*size).map_err(io::Error::other))
            .collect::<io::Result<Vec<_>>>()?;
        let notifiers = queues
            .iter()
            .map(|_| EventFd::new(flags))
            .collect::<io::Result<Vec<_>>>()?;
        let served_elsewhere = device.take_notifiers(&notifiers)?;
        Ok(MmioTransport {
            interrupt: Arc::clone(&interrupt),
            notifiers,
            served_elsewhere,
            name: device.name().to_owned(),
            state: Mutex::new(State {
                device,
                memory,
                interrupt,
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                queues,
            }),
        })
    }

    /// The device's word for logs and metrics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interrupt to bind to a line of the VM.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One eventfd for each queue, to bind to [`QUEUE_NOTIFY`] with the queue's index as data match.
    pub fn notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// Whether another process waits for the notifiers, so that nobody else must.
    pub fn is_served_elsewhere(&self) -> bool {
        self.served_elsewhere
    }

    /// What else the event loop should watch for the device.
    pub fn event_sources(&self) -> Vec<EventSource> {
        self.lock().device.event_sources()
    }

    /// The notifier of queue `index` was written to. It is not read here: a loop that watches for edges
    /// need not, and one that watches for levels does so first.
    pub fn process_queue(&self, index: usize) {
        let mut state = self.lock();
        if state.is_running() {
            state.device.process_queue(index);
        }
    }

    /// The event source with `token` is ready.
    pub fn process_event(&self, token: u32) {
        self.lock().device.process_event(token);
    }

    /// Reports the device's counters.
    pub fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.lock().device.metrics(report);
    }

    /// Stops the device as a reset by the driver would: nothing is in flight afterwards.
    pub fn shutdown(&self) {
        self.lock().reset();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG_SPACE {
            self.lock().device.read_config(offset - CONFIG_SPACE, data);
            return;
        }
        // Registers are 32 bits wide and read as such (§4.2.2.2); anything else reads as zero.
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        *data = match offset {
            0x60 => self.interrupt.status(),
            0xfc => self.interrupt.config_generation(),
            _ => self.lock().read_register(offset),
        }
        .to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG_SPACE {
            let mut state = self.lock();
            if state.status & VIRTIO_CONFIG_S_DRIVER != 0 {
                state.device.write_config(offset - CONFIG_SPACE, data);
            }
            return;
        }
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(data);
        match offset {
            0x64 => self.interrupt.acknowledge(value),
            // Only a write that missed its ioeventfd comes here.
            QUEUE_NOTIFY => {
                if let Some(notifier) = self.notifiers.get(value as usize) {
                    // Fails only when the counter is full, and then the loop is awake already.
                    let _ = notifier.write(1);
                }
            }
            _ => self.lock().write_register(offset, value),
        }
    }
}

impl State {
    fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn is_running(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.interrupt.needs_reset()
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_type(),
            0x0c => VENDOR,
            0x10 => match self.device_features_sel {
                0 => self.offered_features() as u32,
                1 => (self.offered_features() >> 32) as u32,
                _ => 0,
            },
            0x34 => queue.map_or(0, |q| q.max_size().into()),
            0x44 => queue.map_or(0, |q| q.ready().into()),
            0x70 => self.status_register(),
            // No shared memory regions: their length reads as -1 (§4.2.2).
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn status_register(&self) -> u32 {
        if self.interrupt.needs_reset() {
            self.status | VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            self.status
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_sel = value,
            0x20 => self.set_driver_features(value),
            0x24 => self.driver_features_sel = value,
            0x30 => self.queue_sel = value,
            0x70 => self.set_status(value),
            0x38 | 0x44 | 0x80..=0xa4 => self.configure_queue(offset, value),
            _ => {}
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        // Settled once FEATURES_OK is set (§3.1.1 step 5).
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// Sets up the selected queue. Ignored outside the one phase where it is allowed, so that rings
    /// cannot move under a running device.
    fn configure_queue(&mut self, offset: u64, value: u32) {
        let phase = self.status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        if phase != VIRTIO_CONFIG_S_FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return;
        };
        // A size or alignment that breaks the rules is not taken. Such a driver and the device then
        // disagree about where the rings are, which harms nobody but the driver: wherever the device
        // thinks they are is checked against guest memory in `activate`.
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.status |= VIRTIO_CONFIG_S_FAILED;
        }
        // A driver climbs one step at a time and never down; other writes change nothing.
        for (step, bit) in HANDSHAKE.into_iter().enumerate() {
            let below: u32 = HANDSHAKE[..step].iter().sum();
            if value & bit == 0 || self.status & bit != 0 || self.status & below != below {
                continue;
            }
            match bit {
                VIRTIO_CONFIG_S_FEATURES_OK if !self.features_acceptable(self.driver_features) => {
                    log::warn!(
                        "{}: driver asked for features {:#x}, offered are {:#x}",
                        self.device.name(),
                        self.driver_features,
                        self.offered_features()
                    );
                    return;
                }
                VIRTIO_CONFIG_S_DRIVER_OK => {
                    self.status |= bit;
                    if let Err(e) = self.activate() {
                        log::warn!("{}: cannot start: {e}", self.device.name());
                        self.interrupt.signal_needs_reset();
                    }
                }
                _ => self.status |= bit,
            }
        }
    }

    /// Legacy drivers are not served, and nothing may be accepted that was not offered (§6.1).
    fn features_acceptable(&self, features: u64) -> bool {
        features & !self.offered_features() == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, configured) in self.queues.iter().enumerate() {
            if !configured.ready() {
                queues.push(None);
                continue;
            }
            if !configured.is_valid(&*self.memory) {
                return Err(ActivateError::BadQueue(index));
            }
            let mut queue =
                Queue::try_from(configured.state()).map_err(|_| ActivateError::BadQueue(index))?;
            queue.set_event_idx(event_idx);
            queues.push(Some(VirtQueue::new(
                queue,
                Arc::clone(&self.memory),
                Arc::clone(&self.interrupt),
            )));
        }
        self.device.activate(Activation {
            memory: Arc::clone(&self.memory),
            queues,
            features: self.driver_features,
        })
    }

    fn reset(&mut self) {
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.device.reset();
        }
        self.queues.iter_mut().for_each(Queue::reset);
        self.status = 0;
        self.driver_features = 0;
        self.driver_features_sel = 0;
        self.device_features_sel = 0;
        self.queue_sel = 0;
        self.interrupt.reset();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::virtio::driver::TestDriver;
    use crate::virtio::state::{SavedDevice, StateError, read_own};

    /// Returns every chain at once, its writable part "filled".
    #[derive(Default)]
    pub(super) struct Echo {
        active: Option<Activation>,
        interrupt: Option<Arc<Interrupt>>,
    }

    impl VirtioDevice for Echo {
        fn device_type(&self) -> u32 {
            crate::virtio::device_id::RNG
        }
        fn name(&self) -> &str {
            "echo"
        }
        fn queue_sizes(&self) -> &[u16] {
            &[16, 8]
        }
        fn features(&self) -> u64 {
            1
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            crate::virtio::read_config_bytes(&[1, 2, 3, 4, 5], offset, data);
        }
        fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
            self.interrupt = Some(interrupt);
        }
        fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
            self.active = Some(activation);
            Ok(())
        }
        fn reset(&mut self) {
            self.active = None;
        }
        fn save(&mut self) -> Result<SavedDevice, StateError> {
            let active = self.active.iter().flat_map(|active| &active.queues);
            let queues = active.map(|queue| queue.as_ref().map(VirtQueue::position));
            SavedDevice::new("echo", queues.collect(), &())
        }
        fn restore(
            &mut self,
            own: &serde_json::Value,
            activation: Option<Activation>,
        ) -> Result<(), StateError> {
            read_own::<()>("echo", own)?;
            self.active = activation;
            Ok(())
        }
        fn process_queue(&mut self, index: usize) {
            let queue = self.active.as_mut().unwrap().queues[index]
                .as_mut()
                .unwrap();
            let mut chain = crate::virtio::chain::DescriptorChain::new();
            loop {
                match queue.pop(&mut chain) {
                    Ok(true) => queue.push_used(chain.head(), chain.writable.len()).unwrap(),
                    Ok(false) => break,
                    Err(_) => return self.interrupt.as_ref().unwrap().signal_needs_reset(),
                }
            }
            queue.signal_used().unwrap();
        }
    }

    const OK: u32 = 0xf;

    fn driver() -> TestDriver {
        TestDriver::new(Box::<Echo>::default(), 1 << 20)
    }

    #[test]
    fn registers_when_fresh_identify_the_device() {
        let d = driver();
        assert_eq!(d.read(0x00), 0x7472_6976);
        assert_eq!(d.read(0x04), 2);
        assert_eq!(d.read(0x08), 4);
        assert_eq!(d.read(0x70), 0);
        assert_eq!(d.read(0xb0), u32::MAX);
        assert_eq!(d.offered_features(), TRANSPORT_FEATURES | 1);
    }

    #[test]
    fn config_space_when_read_across_its_end_is_zero_there() {
        let d = driver();
        let mut data = [0xaa; 8];
        d.transport.read(CONFIG_SPACE + 3, &mut data);
        assert_eq!(data, [4, 5, 0, 0, 0, 0, 0, 0]);
        d.transport.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn registers_when_read_with_another_width_are_zero() {
        let d = driver();
        let mut data = [0xff; 8];
        d.transport.read(0, &mut data);
        assert_eq!(data, [0; 8]);
        d.transport.write(0x70, &[1]);
        assert_eq!(d.read(0x70), 0);
    }

    #[test]
    fn requests_are_served_and_interrupt_once_for_a_batch() {
        let mut d = driver();
        assert_eq!(d.start(u64::MAX, 16), OK);
        let first = d.add_chain(0, &[(0x8_0000, 10)], &[(0x8_1000, 5), (0x8_2000, 7)]);
        let second = d.add_chain(0, &[], &[(0x8_1000, 1)]);
        d.kick(0);
        assert_eq!(d.used(0), Some((first, 12)));
        assert_eq!(d.used(0), Some((second, 1)));
        assert_eq!(d.used(0), None);
        assert_eq!(d.transport.interrupt().line().read().unwrap(), 1);
        assert_eq!(d.read(0x60), 1);
        d.write(0x64, 1);
        assert_eq!(d.read(0x60), 0);
    }

    #[test]
    fn features_not_offered_or_legacy_are_refused() {
        for features in [1u64 << VIRTIO_F_VERSION_1 | 2, 1] {
            let d = driver();
            d.write(0x70, 1);
            d.write(0x70, 3);
            d.write(0x24, 0);
            d.write(0x20, features as u32);
            d.write(0x24, 1);
            d.write(0x20, (features >> 32) as u32);
            d.write(0x70, 11);
            assert_eq!(d.read(0x70), 3, "features {features:#x}");
        }
    }

    #[test]
    fn rings_when_running_do_not_move() {
        let mut d = driver();
        d.start(u64::MAX, 16);
        d.write(0x30, 0);
        d.write(0x38, 2);
        d.write(0x80, 0xffff_f000);
        d.write(0x44, 0);
        assert_eq!(d.read(0x44), 1);
        let head = d.add_chain(0, &[], &[(0x8_0000, 3)]);
        d.kick(0);
        assert_eq!(d.used(0), Some((head, 3)));
    }

    #[test]
    fn rings_outside_memory_need_reset_and_reset_recovers() {
        let mut d = driver();
        d.start(u64::MAX, 16);
        d.write(0x70, 0);
        for status in [1, 3] {
            d.write(0x70, status);
        }
        d.write(0x24, 1);
        d.write(0x20, 1);
        d.write(0x70, 11);
        d.write(0x30, 0);
        d.write(0x84, 0xffff_ffff);
        d.write(0x44, 1);
        d.write(0x70, 15);
        assert_eq!(d.read(0x70), OK | VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_eq!(d.read(0x60), 2);
        d.kick(0);
        assert_eq!(d.start(u64::MAX, 16), OK);
        assert_eq!(d.read(0x60), 0);
    }

    #[test]
    fn chains_that_are_malformed_stop_the_device() {
        type Setup = fn(&mut TestDriver);
        let cases: &[(&str, Setup)] = &[
            ("loop", |d| {
                d.set_descriptor(0, 0, (0x8_0000, 1), 1, 0);
                d.add_available(0, 0);
            }),
            ("head out of range", |d| d.add_available(0, 16)),
            ("next out of range", |d| {
                d.set_descriptor(0, 0, (0x8_0000, 1), 1, 999);
                d.add_available(0, 0);
            }),
            ("buffer outside memory", |d| {
                d.add_chain(0, &[(0xf_fff0, 0x11)], &[]);
            }),
            ("buffer that overflows", |d| {
                d.add_chain(0, &[(u64::MAX - 3, 8)], &[]);
            }),
            ("readable after writable", |d| {
                d.set_descriptor(0, 0, (0x8_0000, 1), 3, 1);
                d.set_descriptor(0, 1, (0x8_0000, 1), 0, 0);
                d.add_available(0, 0);
            }),
            ("empty indirect table", |d| {
                d.set_descriptor(0, 0, (0x8_0000, 0), 4, 0);
                d.add_available(0, 0);
            }),
            ("indirect with next", |d| {
                d.set_descriptor(0, 0, (0x8_0000, 16), 5, 1);
                d.add_available(0, 0);
            }),
            ("nested indirect", |d| {
                let mut inner = [0; 16];
                inner[8] = 16;
                inner[12] = 4;
                d.put(0x8_0000, &inner);
                d.set_descriptor(0, 0, (0x8_0000, 16), 4, 0);
                d.add_available(0, 0);
            }),
            ("indirect table outside memory", |d| {
                d.set_descriptor(0, 0, (u64::MAX - 15, 16), 4, 0);
                d.add_available(0, 0);
            }),
            ("available index too far ahead", |d| {
                d.set_available_index(0, 17)
            }),
        ];
        for (what, set_up) in cases {
            let mut d = driver();
            assert_eq!(d.start(u64::MAX, 16), OK);
            set_up(&mut d);
            d.kick(0);
            assert_eq!(d.used(0), None, "{what}");
            assert_eq!(d.read(0x70), OK | VIRTIO_CONFIG_S_NEEDS_RESET, "{what}");
        }
    }

    #[test]
    fn indirect_chain_when_valid_is_followed() {
        let mut d = driver();
        d.start(u64::MAX, 16);
        let mut table = Vec::new();
        for n in 0..16u64 {
            table.extend((0x9_0000 + n * 0x100).to_le_bytes());
            table.extend(4u32.to_le_bytes());
            let flags: u16 = if n < 15 { 3 } else { 2 };
            table.extend(flags.to_le_bytes());
            table.extend((n as u16 + 1).to_le_bytes());
        }
        d.put(0x8_0000, &table);
        d.set_descriptor(0, 3, (0x8_0000, table.len() as u32), 4, 0);
        d.add_available(0, 3);
        d.kick(0);
        assert_eq!(d.used(0), Some((3, 64)));
    }
}
