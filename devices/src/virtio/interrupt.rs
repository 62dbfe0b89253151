//! A device's way to call its driver: the interrupt line and what it stands for.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A used buffer notification is pending (virtio 1.2 §4.2.2, `InterruptStatus` bit 0).
pub const USED_RING: u32 = 1;
/// A configuration change notification is pending (bit 1).
pub const CONFIG_CHANGE: u32 = 2;

/// The interrupt line of one virtio-mmio device, shared by the device and its transport.
///
/// The status bits live here, outside the transport's lock, because the guest's interrupt handler
/// reads and acknowledges them for every interrupt, on a vCPU thread, while the event loop may be
/// holding that lock to serve requests.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
    config_generation: AtomicU32,
    needs_reset: AtomicBool,
    /// Status bits that are set at all times.
    constant: AtomicU32,
}

impl Interrupt {
    /// Makes an interrupt whose assertions are written to `line` (an irqfd, in a VM).
    pub fn new(line: EventFd) -> Self {
        Interrupt {
            line,
            status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            constant: AtomicU32::new(0),
        }
    }

    /// The line for another process, which serves the queues and asserts it by itself. It cannot set
    /// the status bit that says what for, so from now on that is always set: a driver that looks at its
    /// used rings once too often finds nothing there.
    pub fn share_line(&self) -> io::Result<EventFd> {
        self.constant.store(USED_RING, Ordering::Release);
        self.line.try_clone()
    }

    /// The eventfd to bind to an interrupt of the VM.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Tells the driver that used buffers are on a ring.
    pub fn signal_used(&self) {
        self.raise(USED_RING);
    }

    /// Tells the driver that the configuration space changed.
    pub fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE);
    }

    /// The device met something it cannot recover from: the driver sees `DEVICE_NEEDS_RESET` and is
    /// told by a configuration change (virtio 1.2 §2.1.2).
    pub fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }

    /// Whether the device has asked for a reset since the last one.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire) | self.constant.load(Ordering::Acquire)
    }

    /// The `InterruptACK` register: clears `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The `ConfigGeneration` register.
    pub fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    /// Back to the state after a device reset. The configuration generation goes on counting, so
    /// that a driver which reads across a reset still sees a change.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    /// Takes over from the interrupt of a device that was saved. The line stays as it is, because
    /// nobody may be bound to it yet: [`Self::reassert`].
    pub fn restore(&self, status: u32, config_generation: u32, needs_reset: bool) {
        self.status.store(status, Ordering::Release);
        self.config_generation
            .store(config_generation, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// Asserts the line again for what the driver has not acknowledged: it may never have heard of it.
    pub fn reassert(&self) {
        if self.status() != 0 {
            self.assert_line();
        }
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        self.assert_line();
    }

    fn assert_line(&self) {
        match self.line.write(1) {
            Ok(()) => {}
            // The counter is full: an interrupt is pending already, which is all a line can say.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // An eventfd write has no other way to fail while the descriptor is open, and we own it.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn interrupt() -> Interrupt {
        Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"))
    }

    #[test]
    fn acknowledge_clears_only_the_bits_it_names() {
        let i = interrupt();
        i.signal_used();
        i.signal_config();
        assert_eq!(i.status(), USED_RING | CONFIG_CHANGE);
        assert_eq!(i.line().read().expect("line"), 2);
        i.acknowledge(USED_RING);
        assert_eq!(i.status(), CONFIG_CHANGE);
    }

    #[test]
    fn line_when_shared_says_used_at_all_times() {
        let i = interrupt();
        let line = i.share_line().expect("line");
        line.write(1).expect("write");
        assert_eq!(i.line().read().expect("line"), 1);
        i.acknowledge(USED_RING);
        assert_eq!(i.status(), USED_RING);
        i.signal_config();
        i.acknowledge(CONFIG_CHANGE);
        i.reset();
        assert_eq!(i.status(), USED_RING);
    }

    #[test]
    fn config_generation_survives_a_reset() {
        let i = interrupt();
        i.signal_config();
        i.signal_needs_reset();
        assert!(i.needs_reset());
        i.reset();
        assert!(!i.needs_reset());
        assert_eq!((i.status(), i.config_generation()), (0, 1));
    }
}
