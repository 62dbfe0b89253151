//! The main thread: serves devices, the control socket and signals until the VM is over.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use bulkhead_devices::virtio::EventSource;
use bulkhead_devices::virtio::mmio::MmioTransport;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::exit::{ExitSlot, VmExit};

/// The event loop of one VM.
pub struct EventLoop {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    exit: Arc<ExitSlot>,
}

impl EventLoop {
    /// A loop that ends when `exit` is filled.
    pub fn new(exit: Arc<ExitSlot>) -> io::Result<Self> {
        // Few descriptors: a device hides its many behind one. Events that do not fit come next time.
        let mut manager = EventManager::new_with_capacity(32).map_err(io::Error::other)?;
        manager.add_subscriber(Box::new(Wake(Arc::clone(&exit))) as Box<dyn MutEventSubscriber>);
        Ok(EventLoop { manager, exit })
    }

    /// Adds a virtio device.
    pub fn add_device(&mut self, transport: Arc<MmioTransport>) {
        self.add(Box::new(VirtioSource(transport)));
    }

    /// Adds anything else.
    pub fn add(&mut self, subscriber: Box<dyn MutEventSubscriber>) {
        self.manager.add_subscriber(subscriber);
    }

    /// Serves until the VM is over.
    pub fn run(&mut self) -> VmExit {
        loop {
            if let Err(e) = self.manager.run() {
                return VmExit::Unsupported(format!("the event loop failed: {e}"));
            }
            if let Some(exit) = self.exit.get() {
                return exit;
            }
        }
    }
}

/// Watches `fd`, and says so in the log if the host will not: then the VM runs on without it.
pub fn watch(ops: &mut EventOps<'_>, what: &str, events: Events) {
    if let Err(e) = ops.add(events) {
        log::error!("{what}: cannot watch a file descriptor: {e}");
    }
}

/// Watches what a device asked for.
pub fn watch_source(ops: &mut EventOps<'_>, what: &str, source: &EventSource) {
    let mut events = EventSet::IN;
    if source.edge {
        events |= EventSet::EDGE_TRIGGERED;
    }
    if source.writable {
        events |= EventSet::OUT;
    }
    watch(
        ops,
        what,
        Events::with_data_raw(source.fd, source.token, events),
    );
}

/// Only wakes the loop, which then looks at the slot itself.
struct Wake(Arc<ExitSlot>);

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(ops, "exit", Events::new(self.0.event(), events));
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
}

/// Tokens from here up are queue notifications; below are the device's own.
const QUEUE_TOKENS: u32 = 0x8000_0000;

/// The descriptors of one virtio device.
struct VirtioSource(Arc<MmioTransport>);

impl MutEventSubscriber for VirtioSource {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let name = self.0.name();
        let notifiers = match self.0.is_served_elsewhere() {
            true => &[],
            false => self.0.notifiers(),
        };
        for (index, notifier) in (QUEUE_TOKENS..).zip(notifiers) {
            // On the edge, so that the counter never needs to be read: every notification is an edge,
            // and that saves a system call for each. (2^64 of them before the counter is full.)
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            watch(ops, name, Events::with_data(notifier, index, events));
        }
        for source in self.0.event_sources() {
            watch_source(ops, name, &source);
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data().checked_sub(QUEUE_TOKENS) {
            Some(queue) => self.0.process_queue(queue as usize),
            None => self.0.process_event(events.data()),
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP: an orderly end.
pub struct Signals {
    fd: OwnedFd,
    exit: Arc<ExitSlot>,
}

impl Signals {
    /// Routes the signals to the loop. Call it before any thread is started: the mask is inherited.
    pub fn new(exit: Arc<ExitSlot>) -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before it is used; pthread_sigmask and
        // signalfd take a valid pointer to it; a non-negative result is a descriptor we then own.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Signals { fd, exit })
    }
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(
            ops,
            "signals",
            Events::with_data_raw(self.fd.as_raw_fd(), 0, events),
        );
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.exit.report(VmExit::Stopped);
    }
}
