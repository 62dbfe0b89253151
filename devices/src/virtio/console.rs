//! The console device (virtio 1.2 §5.3): one port, `hvc0` in a Linux guest.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use libc::iovec;
use serde::{Deserialize, Serialize};

use super::chain::DescriptorChain;
use super::interrupt::Interrupt;
use super::queue::{QueueError, VirtQueue};
use super::state::{SavedDevice, StateError, read_own};
use super::wakeup::Wakeup;
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id, read_config_bytes};
use crate::GuestMemory;
use crate::stream::{Direction, Stream};

/// Index of the queue with buffers to receive into.
pub const RECEIVE_QUEUE: usize = 0;
/// Index of the queue with what the guest prints.
pub const TRANSMIT_QUEUE: usize = 1;

/// The configuration space has the window's size (§5.3.3), as a bit number.
const F_SIZE: u32 = 0;

const QUEUE_SIZES: [u16; 2] = [64, 64];

/// Most bytes moved in one system call, however large the guest's buffers are.
const CALL_BYTES: u32 = 64 << 10;
/// Most system calls and most chains in one turn on the event loop, for each direction.
const TURN: u32 = 64;

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const WAKEUP: u32 = 2;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What a console is made of.
#[derive(Debug)]
pub struct ConsoleConfig {
    /// A word for logs and metrics.
    pub name: String,
    /// What the guest reads, if anything.
    pub input: Option<OwnedFd>,
    /// Where the guest's output goes.
    pub output: OwnedFd,
    /// The window's size at the start.
    pub size: WindowSize,
}

/// A hold on a console that is behind its transport, for any thread.
#[derive(Debug, Clone)]
pub struct ConsoleHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Columns in the low half, rows in the high one, as in the configuration space.
    size: AtomicU32,
    /// Whether the driver is up and wants to hear of sizes.
    notify: AtomicBool,
    interrupt: OnceLock<Arc<Interrupt>>,
}

impl ConsoleHandle {
    /// The window has another size now: tells the guest, whose programs get `SIGWINCH`.
    pub fn set_size(&self, size: WindowSize) {
        let packed = u32::from(size.columns) | u32::from(size.rows) << 16;
        let changed = self.0.size.swap(packed, Ordering::AcqRel) != packed;
        if changed
            && self.0.notify.load(Ordering::Acquire)
            && let Some(interrupt) = self.0.interrupt.get()
        {
            interrupt.signal_config();
        }
    }
}

/// The console device.
///
/// Nothing is buffered here: input stays where it comes from until the guest has room for it, and
/// what the guest prints stays in its buffers until it can be written, so that a reader who does not
/// read holds up the guest and costs the host nothing. A stream that has broken is different, since
/// it may stay so for ever: what is written to it is dropped.
pub struct Console {
    name: String,
    input: Option<Stream>,
    output: Stream,
    shared: Arc<Shared>,
    wakeup: Wakeup,
    active: Option<Active>,
    state: State,
    counters: Counters,
}

/// What there is between `DRIVER_OK` and the next reset.
struct Active {
    memory: Arc<GuestMemory>,
    receive: VirtQueue,
    transmit: VirtQueue,
    input_chain: DescriptorChain,
    output_chain: DescriptorChain,
    iovecs: Vec<iovec>,
}

// SAFETY: the iovecs are scratch space, filled and used within one call; what they point to is guest
// memory, which belongs to no thread.
unsafe impl Send for Active {}

/// What the device remembers between turns.
#[derive(Debug, Default)]
struct State {
    /// Bytes already written of the chain in `output_chain`, while there is one.
    output_offset: Option<u32>,
    /// Bytes that a device before this one has written of the next chain.
    output_resume: u32,
    /// The input has ended and is not looked at any more.
    input_ended: bool,
    /// The output has refused bytes; kept so as to say so once.
    output_broken: bool,
}

#[derive(Debug, Default)]
struct Counters {
    input_bytes: u64,
    output_bytes: u64,
    output_dropped_bytes: u64,
    output_stalls: u64,
}

/// What a snapshot keeps. That the input has ended is not in it: another device has another input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnState {
    columns: u16,
    rows: u16,
    /// Bytes that were written of the next chain to transmit.
    output_offset: u32,
}

impl Console {
    /// A console on the given streams.
    pub fn new(config: ConsoleConfig) -> io::Result<Self> {
        let input = config
            .input
            .map(|fd| Stream::new(fd, Direction::Input))
            .transpose()?;
        let console = Console {
            name: config.name,
            input,
            output: Stream::new(config.output, Direction::Output)?,
            shared: Arc::default(),
            wakeup: Wakeup::new()?,
            active: None,
            state: State::default(),
            counters: Counters::default(),
        };
        console.handle().set_size(config.size);
        Ok(console)
    }

    /// A handle with which to change the window's size later.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.shared))
    }

    fn run(&mut self, work: fn(&mut Self, &mut Active) -> Result<(), QueueError>) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        match work(self, &mut active) {
            Ok(()) => self.active = Some(active),
            Err(e) => {
                log::warn!("{}: stopped: {e}", self.name);
                if let Some(interrupt) = self.shared.interrupt.get() {
                    interrupt.signal_needs_reset();
                }
            }
        }
    }

    /// Moves input into the guest's buffers, as long as there are both.
    fn receive(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let Some(input) = &self.input else {
            return Ok(());
        };
        let (queue, chain) = (&mut active.receive, &mut active.input_chain);
        let mut used = false;
        for turn in 0.. {
            if self.state.input_ended {
                break;
            }
            if turn == TURN {
                self.wakeup.ring();
                break;
            }
            if !queue.pop_or_arm(chain)? {
                break;
            }
            let len = chain.writable.len().min(CALL_BYTES);
            active.iovecs.clear();
            if len == 0
                || !chain.writable.append_iovecs(
                    &active.memory,
                    0,
                    len as usize,
                    &mut active.iovecs,
                )
            {
                queue.push_used(chain.head(), 0)?;
                used = true;
                continue;
            }
            // SAFETY: the iovecs lie in guest memory, which `active.memory` keeps mapped.
            match unsafe { input.readv(&active.iovecs) } {
                Ok(n) if n > 0 => {
                    self.counters.input_bytes += n as u64;
                    // At most CALL_BYTES.
                    queue.push_used(chain.head(), n as u32)?;
                    used = true;
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => self.wakeup.ring(),
                Ok(_) => self.state.input_ended = true,
                Err(e) => {
                    log::info!("{}: input ended: {e}", self.name);
                    self.state.input_ended = true;
                }
            }
            queue.undo_pop();
            break;
        }
        if used {
            queue.signal_used()?;
        }
        Ok(())
    }

    /// Writes what the guest has printed, as long as the output takes it.
    fn transmit(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let (queue, chain) = (&mut active.transmit, &mut active.output_chain);
        let mut used = false;
        for turn in 0.. {
            let offset = match self.state.output_offset {
                Some(offset) => offset,
                None => {
                    let resume = std::mem::take(&mut self.state.output_resume);
                    if !queue.pop_or_arm(chain)? {
                        break;
                    }
                    // From a state, which may say anything.
                    resume.min(chain.readable.len())
                }
            };
            self.state.output_offset = Some(offset);
            if turn == TURN {
                self.wakeup.ring();
                break;
            }
            // `offset` never passes the end.
            let left = chain.readable.len() - offset;
            let len = left.min(CALL_BYTES);
            active.iovecs.clear();
            let whole = chain.readable.append_iovecs(
                &active.memory,
                offset,
                len as usize,
                &mut active.iovecs,
            );
            let done = if len == 0 || !whole {
                left
            } else {
                // SAFETY: the iovecs lie in guest memory, which `active.memory` keeps mapped.
                match unsafe { self.output.writev(&active.iovecs) } {
                    Ok(n) => {
                        self.counters.output_bytes += n as u64;
                        n as u32 // at most CALL_BYTES
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.counters.output_stalls += 1;
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                    Err(e) => {
                        if !self.state.output_broken {
                            self.state.output_broken = true;
                            log::warn!("{}: output is lost: {e}", self.name);
                        }
                        self.counters.output_dropped_bytes += u64::from(left);
                        left
                    }
                }
            };
            if done < left {
                self.state.output_offset = Some(offset + done);
            } else {
                self.state.output_offset = None;
                queue.push_used(chain.head(), 0)?;
                used = true;
            }
        }
        if used {
            queue.signal_used()?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        device_id::CONSOLE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << F_SIZE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // Only `cols` and `rows`: the rest belongs to features that are not offered.
        let size = self.shared.size.load(Ordering::Acquire).to_le_bytes();
        read_config_bytes(&size, offset, data);
    }

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        // Called once, so there is nothing there yet.
        let _ = self.shared.interrupt.set(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active {
            receive: activation.take_queue(RECEIVE_QUEUE)?,
            transmit: activation.take_queue(TRANSMIT_QUEUE)?,
            memory: activation.memory,
            input_chain: DescriptorChain::new(),
            output_chain: DescriptorChain::new(),
            iovecs: Vec::new(),
        });
        let wants_size = activation.features & 1 << F_SIZE != 0;
        self.shared.notify.store(wants_size, Ordering::Release);
        // Input may have come while nobody listened, and its edge is gone.
        self.wakeup.ring();
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.notify.store(false, Ordering::Release);
        self.active = None;
        self.state.output_offset = None;
        self.state.output_resume = 0;
    }

    fn save(&mut self) -> Result<SavedDevice, StateError> {
        let packed = self.shared.size.load(Ordering::Acquire);
        let held = self.state.output_offset;
        let own = OwnState {
            columns: packed as u16,
            rows: (packed >> 16) as u16,
            output_offset: held.unwrap_or(self.state.output_resume),
        };
        let mut queues = Vec::new();
        if let Some(active) = &self.active {
            let transmit = active.transmit.position();
            queues.push(Some(active.receive.position()));
            queues.push(Some(transmit.put_back(held.is_some().into())));
        }
        SavedDevice::new(&self.name, queues, &own)
    }

    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        let own: OwnState = read_own(&self.name, own)?;
        self.handle().set_size(WindowSize {
            columns: own.columns,
            rows: own.rows,
        });
        if let Some(activation) = activation {
            self.activate(activation)
                .map_err(|e| StateError::activating(&self.name, e))?;
            self.state.output_resume = own.output_offset;
        }
        Ok(())
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let edge = |fd, token, writable| EventSource {
            fd,
            token,
            edge: true,
            writable,
        };
        let input = self.input.as_ref().and_then(Stream::watch_fd);
        let output = self.output.watch_fd();
        [
            input.map(|fd| edge(fd, INPUT, false)),
            output.map(|fd| edge(fd, OUTPUT, true)),
            Some(self.wakeup.source(WAKEUP)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn process_queue(&mut self, index: usize) {
        match index {
            RECEIVE_QUEUE => self.run(Self::receive),
            TRANSMIT_QUEUE => self.run(Self::transmit),
            _ => {}
        }
    }

    fn process_event(&mut self, token: u32) {
        match token {
            INPUT => self.run(Self::receive),
            OUTPUT => self.run(Self::transmit),
            WAKEUP => {
                self.wakeup.clear();
                self.run(Self::receive);
                self.run(Self::transmit);
            }
            _ => {}
        }
    }

    fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("input_bytes", self.counters.input_bytes);
        report("output_bytes", self.counters.output_bytes);
        report("output_dropped_bytes", self.counters.output_dropped_bytes);
        report("output_stalls", self.counters.output_stalls);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
