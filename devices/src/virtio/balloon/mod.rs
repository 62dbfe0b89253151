//! The memory balloon (virtio 1.2 §5.5): memory goes back to the host, because we ask for it
//! (inflation) or because the guest has no use for it just now (free page reporting).
//!
//! What the guest names is released if it is guest memory; the guest then reads zeros there. That is
//! all the harm a hostile one can do, to itself.

mod handle;
mod release;
mod statistics;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::chain::DescriptorChain;
use super::interrupt::Interrupt;
use super::queue::{QueueError, VirtQueue};
use super::state::{SavedDevice, StateError, read_own};
use super::wakeup::Wakeup;
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id, read_config_bytes};
use crate::GuestMemory;
use handle::Shared;
use release::{Released, for_runs, release};

pub use handle::BalloonHandle;
pub use statistics::MemoryStatistics;

const INFLATE_QUEUE: usize = 0;
const DEFLATE_QUEUE: usize = 1;

/// Linux reports up to 32 ranges in one chain.
const QUEUE_SIZES: [u16; 4] = [128; 4];

/// Feature bits (§5.5.3).
const F_STATS_VQ: u32 = 1;
const F_DEFLATE_ON_OOM: u32 = 2;
const F_PAGE_POISON: u32 = 4;
const F_REPORTING: u32 = 5;

/// Offsets in the configuration space (§5.5.4).
const CONFIG_ACTUAL: u64 = 4;
const CONFIG_POISON: u64 = 12;

/// Most page numbers looked at in one chain; Linux sends 256. Those beyond stay where they are, which
/// is what a balloon may always do.
const CHAIN_PAGES: u32 = 4096;
/// Most chains in one turn on the event loop: releasing a page takes microseconds.
const TURN: u32 = 4;

const WAKEUP: u32 = 0;

/// What a balloon is made of.
#[derive(Debug, Clone, Default)]
pub struct BalloonConfig {
    /// A word for logs and metrics.
    pub name: String,
    /// Bytes the guest is asked to give up at the start.
    pub target: u64,
    /// Whether the guest may take memory back rather than run out of it.
    pub deflate_on_oom: bool,
    /// Whether the guest reports what it has freed.
    pub free_page_reporting: bool,
    /// Whether the guest can be asked for statistics.
    pub statistics: bool,
}

/// The balloon.
pub struct Balloon {
    name: String,
    features: u64,
    shared: Arc<Shared>,
    /// What the guest expects to find in free pages that it has reported. It says so before it is up.
    poison: u32,
    active: Option<Active>,
    counters: Counters,
}

struct Active {
    memory: Arc<GuestMemory>,
    inflate: VirtQueue,
    deflate: VirtQueue,
    statistics: Option<(usize, VirtQueue)>,
    reporting: Option<(usize, VirtQueue)>,
    chain: DescriptorChain,
    pages: Vec<u32>,
    state: State,
}

/// What the device remembers between turns while it is active.
#[derive(Debug, Default)]
struct State {
    /// Whether the driver knows of poison.
    poisons: bool,
    /// The driver's one statistics buffer, kept until statistics are wanted.
    statistics_head: Option<u16>,
}

/// What a snapshot keeps, the sizes in pages. Which pages are in the balloon only the guest knows; they
/// are the host's in guest memory as it was saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnState {
    target: u32,
    actual: u32,
    poison: u32,
}

#[derive(Debug, Default)]
struct Counters {
    inflated_bytes: u64,
    deflated_chains: u64,
    reported_bytes: u64,
    failed_bytes: u64,
}

impl Balloon {
    /// A balloon of which nothing is inflated.
    pub fn new(config: BalloonConfig) -> io::Result<Self> {
        let features = [
            (config.statistics, F_STATS_VQ),
            (config.deflate_on_oom, F_DEFLATE_ON_OOM),
            // Without the word on poison a guest that clears pages as it frees them does not report.
            (config.free_page_reporting, F_PAGE_POISON),
            (config.free_page_reporting, F_REPORTING),
        ]
        .into_iter()
        .fold(0, |features, (on, bit)| features | u64::from(on) << bit);
        let balloon = Balloon {
            name: config.name,
            features,
            shared: Arc::new(Shared {
                target: AtomicU32::new(0),
                actual: AtomicU32::new(0),
                notify: AtomicBool::new(false),
                interrupt: OnceLock::new(),
                statistics_wanted: AtomicBool::new(false),
                statistics: Mutex::default(),
                wakeup: Wakeup::new()?,
            }),
            poison: 0,
            active: None,
            counters: Counters::default(),
        };
        balloon.handle().set_target(config.target);
        Ok(balloon)
    }

    /// A handle with which to change and read the balloon's size later.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }

    fn run(&mut self, work: impl FnOnce(&mut Self, &mut Active) -> Result<(), QueueError>) {
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

    fn process(&mut self, active: &mut Active, index: usize) -> Result<(), QueueError> {
        match index {
            INFLATE_QUEUE => self.inflate(active),
            DEFLATE_QUEUE => self.deflate(active),
            _ if is(&active.statistics, index) => self.take_statistics(active),
            _ if is(&active.reporting, index) => self.take_reports(active),
            _ => Ok(()),
        }
    }

    fn inflate(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let Active {
            memory,
            inflate: queue,
            chain,
            pages,
            ..
        } = active;
        for turn in 0.. {
            if turn == TURN {
                self.shared.wakeup.ring();
                break;
            }
            if !queue.pop_or_arm(chain)? {
                break;
            }
            pages.clear();
            for n in 0..(chain.readable.len() / 4).min(CHAIN_PAGES) {
                pages.extend(chain.readable.read_obj(memory, 4 * n).map(u32::from_le));
            }
            let mut sum = Released::default();
            for_runs(pages, |start, len| {
                let released = release(memory, start, len);
                sum.bytes += released.bytes;
                sum.failed += released.failed;
            });
            self.counters.inflated_bytes += sum.bytes;
            self.count_failed(sum.failed);
            queue.push_used(chain.head(), 0)?;
        }
        queue.signal_used()
    }

    /// Memory comes back by being touched: there is nothing to do but to agree.
    fn deflate(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let (queue, chain) = (&mut active.deflate, &mut active.chain);
        for turn in 0.. {
            if turn == TURN {
                self.shared.wakeup.ring();
                break;
            }
            if !queue.pop_or_arm(chain)? {
                break;
            }
            self.counters.deflated_chains += 1;
            queue.push_used(chain.head(), 0)?;
        }
        queue.signal_used()
    }

    fn take_reports(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let Some((_, queue)) = &mut active.reporting else {
            return Ok(());
        };
        let chain = &mut active.chain;
        for turn in 0.. {
            if turn == TURN {
                self.shared.wakeup.ring();
                break;
            }
            if !queue.pop_or_arm(chain)? {
                break;
            }
            // What the guest wants to find as it left it cannot become zeros.
            if self.poison == 0 || !active.state.poisons {
                let mut failed = 0;
                for segment in chain.writable.segments() {
                    let released = release(&active.memory, segment.addr.0, segment.len.into());
                    self.counters.reported_bytes += released.bytes;
                    failed += released.failed;
                }
                self.count_failed(failed);
            }
            queue.push_used(chain.head(), 0)?;
        }
        queue.signal_used()
    }

    /// Takes the driver's statistics buffer, if there is one and we do not have it.
    fn take_statistics(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let Some((_, queue)) = &mut active.statistics else {
            return Ok(());
        };
        if active.state.statistics_head.is_some() || !queue.pop_or_arm(&mut active.chain)? {
            return Ok(());
        }
        active.state.statistics_head = Some(active.chain.head());
        let read = MemoryStatistics::read(&active.memory, &active.chain.readable);
        let mut statistics = self.shared.statistics();
        *statistics = (statistics.0 + 1, read);
        Ok(())
    }

    /// Gives the statistics buffer back if fresh ones are wanted: the driver then fills it again.
    fn ask_statistics(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let Some((_, queue)) = &mut active.statistics else {
            return Ok(());
        };
        let Some(head) = active.state.statistics_head else {
            return Ok(());
        };
        let wanted = self.shared.statistics_wanted.swap(false, Ordering::AcqRel);
        if !wanted {
            return Ok(());
        }
        active.state.statistics_head = None;
        queue.push_used(head, 0)?;
        queue.signal_used()
    }

    fn count_failed(&mut self, bytes: u64) {
        if bytes > 0 && self.counters.failed_bytes == 0 {
            log::warn!("{}: the host does not take memory back", self.name);
        }
        self.counters.failed_bytes += bytes;
    }
}

fn is(queue: &Option<(usize, VirtQueue)>, index: usize) -> bool {
    matches!(queue, Some((at, _)) if *at == index)
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        device_id::BALLOON
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        let optional = [F_STATS_VQ, F_REPORTING]
            .iter()
            .filter(|bit| self.features & 1 << **bit != 0)
            .count();
        &QUEUE_SIZES[..2 + optional]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 16];
        for (field, value) in [
            (0, self.shared.target.load(Ordering::Acquire)),
            (1, self.shared.actual.load(Ordering::Acquire)),
            // 2 belongs to free page hints, which are not offered.
            (3, self.poison),
        ] {
            config[4 * field..4 * field + 4].copy_from_slice(&value.to_le_bytes());
        }
        let len = if self.features & 1 << F_PAGE_POISON != 0 {
            16
        } else {
            8
        };
        read_config_bytes(&config[..len], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            CONFIG_ACTUAL => self.shared.actual.store(value, Ordering::Release),
            CONFIG_POISON => self.poison = value,
            _ => {}
        }
    }

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        // Called once, so there is nothing there yet.
        let _ = self.shared.interrupt.set(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let inflate = activation.take_queue(INFLATE_QUEUE)?;
        let deflate = activation.take_queue(DEFLATE_QUEUE)?;
        // Queues of features that the driver left out take no number (§5.5.2), whatever was offered.
        let mut index = DEFLATE_QUEUE;
        let mut optional = |bit: u32| {
            if activation.features & 1 << bit == 0 {
                return None;
            }
            index += 1;
            let queue = activation.queues.get_mut(index)?.take()?;
            Some((index, queue))
        };
        let statistics = optional(F_STATS_VQ);
        let reporting = optional(F_REPORTING);
        self.active = Some(Active {
            memory: activation.memory,
            inflate,
            deflate,
            statistics,
            reporting,
            chain: DescriptorChain::new(),
            pages: Vec::new(),
            state: State {
                poisons: activation.features & 1 << F_PAGE_POISON != 0,
                statistics_head: None,
            },
        });
        self.shared.notify.store(true, Ordering::Release);
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.notify.store(false, Ordering::Release);
        // The driver that had the pages is gone, and the next one counts them all as its own.
        self.shared.actual.store(0, Ordering::Release);
        self.poison = 0;
        self.active = None;
    }

    fn save(&mut self) -> Result<SavedDevice, StateError> {
        let own = OwnState {
            target: self.shared.target.load(Ordering::Acquire),
            actual: self.shared.actual.load(Ordering::Acquire),
            poison: self.poison,
        };
        let mut queues = vec![None; QUEUE_SIZES.len()];
        if let Some(active) = &self.active {
            queues[INFLATE_QUEUE] = Some(active.inflate.position());
            queues[DEFLATE_QUEUE] = Some(active.deflate.position());
            if let Some((index, queue)) = &active.statistics {
                // The buffer with statistics is given back only to have it filled again. Whoever goes
                // on takes it again, and with it what the guest has told.
                let held = active.state.statistics_head.is_some();
                queues[*index] = Some(queue.position().put_back(held.into()));
            }
            if let Some((index, queue)) = &active.reporting {
                queues[*index] = Some(queue.position());
            }
        }
        SavedDevice::new(&self.name, queues, &own)
    }

    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        let own: OwnState = read_own(&self.name, own)?;
        self.shared.target.store(own.target, Ordering::Release);
        self.shared.actual.store(own.actual, Ordering::Release);
        self.poison = own.poison;
        match activation {
            Some(activation) => self
                .activate(activation)
                .map_err(|e| StateError::activating(&self.name, e)),
            None => Ok(()),
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![self.shared.wakeup.source(WAKEUP)]
    }

    fn process_queue(&mut self, index: usize) {
        self.run(|balloon, active| {
            balloon.process(active, index)?;
            balloon.ask_statistics(active)
        });
    }

    fn process_event(&mut self, token: u32) {
        if token != WAKEUP {
            return;
        }
        self.shared.wakeup.clear();
        self.run(|balloon, active| {
            for index in 0..QUEUE_SIZES.len() {
                balloon.process(active, index)?;
            }
            balloon.ask_statistics(active)
        });
    }

    fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let handle = self.handle();
        report("target_bytes", handle.target());
        report("actual_bytes", handle.actual());
        report("inflated_bytes", self.counters.inflated_bytes);
        report("deflated_chains", self.counters.deflated_chains);
        report("reported_bytes", self.counters.reported_bytes);
        report("failed_bytes", self.counters.failed_bytes);
    }
}
