//! The entropy device (virtio 1.2 §5.4), fed by the host's `getrandom`.

use std::io;
use std::sync::Arc;

use libc::iovec;

use super::chain::DescriptorChain;
use super::interrupt::Interrupt;
use super::queue::{QueueError, VirtQueue};
use super::state::{SavedDevice, StateError, read_own};
use super::wakeup::Wakeup;
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id};
use crate::GuestMemory;
use crate::rate_limiter::{RateLimit, RateLimiter};

const QUEUE_SIZES: [u16; 1] = [64];

/// Most bytes given for one request. A driver that asked for more sees how many it got and asks again.
const REQUEST_BYTES: u32 = 64 << 10;
/// Most requests served in one turn on the event loop: 256 KiB, well below a millisecond.
const TURN: u32 = 4;

const TIMER: u32 = 0;
const WAKEUP: u32 = 1;

/// The entropy device.
pub struct Rng {
    name: String,
    limiter: Option<RateLimiter>,
    wakeup: Wakeup,
    interrupt: Option<Arc<Interrupt>>,
    active: Option<Active>,
    counters: Counters,
}

struct Active {
    memory: Arc<GuestMemory>,
    queue: VirtQueue,
    chain: DescriptorChain,
    iovecs: Vec<iovec>,
}

// SAFETY: the iovecs are scratch space, filled and used within one call; what they point to is guest
// memory, which belongs to no thread.
unsafe impl Send for Active {}

#[derive(Debug, Default)]
struct Counters {
    requests: u64,
    bytes: u64,
    throttled: u64,
}

impl Rng {
    /// An entropy device that gives no more than `limit`.
    pub fn new(name: String, limit: &RateLimit) -> io::Result<Self> {
        Ok(Rng {
            name,
            limiter: RateLimiter::new(limit)?,
            wakeup: Wakeup::new()?,
            interrupt: None,
            active: None,
            counters: Counters::default(),
        })
    }

    fn run(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        match self.serve(&mut active) {
            Ok(()) => self.active = Some(active),
            Err(e) => {
                log::warn!("{}: stopped: {e}", self.name);
                if let Some(interrupt) = &self.interrupt {
                    interrupt.signal_needs_reset();
                }
            }
        }
    }

    fn serve(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let Active {
            memory,
            queue,
            chain,
            iovecs,
        } = active;
        let mut used = false;
        for turn in 0.. {
            if self.limiter.as_ref().is_some_and(RateLimiter::is_blocked) {
                break;
            }
            if turn == TURN {
                self.wakeup.ring();
                break;
            }
            if !queue.pop_or_arm(chain)? {
                break;
            }
            let len = chain.writable.len().min(REQUEST_BYTES);
            if let Some(limiter) = &mut self.limiter
                && !limiter.consume(len.into())
            {
                self.counters.throttled += 1;
                queue.undo_pop();
                break;
            }
            iovecs.clear();
            let whole = chain
                .writable
                .append_iovecs(memory, 0, len as usize, iovecs);
            let filled = if whole {
                // SAFETY: the iovecs lie in guest memory, which `memory` keeps mapped.
                unsafe { fill(iovecs) }
            } else {
                0
            };
            self.counters.requests += 1;
            self.counters.bytes += u64::from(filled);
            queue.push_used(chain.head(), filled)?;
            used = true;
        }
        if used {
            queue.signal_used()?;
        }
        Ok(())
    }
}

/// Fills `iovecs`, at most [`REQUEST_BYTES`] together, and returns how many bytes it filled: all of
/// them, if the host has entropy.
///
/// # Safety
/// Each of `iovecs` is memory that may be written until this returns.
unsafe fn fill(iovecs: &[iovec]) -> u32 {
    let mut filled = 0;
    for iov in iovecs {
        let mut done = 0;
        while done < iov.iov_len {
            // SAFETY: the rest of one iovec, good by this function's contract.
            let n = unsafe { libc::getrandom(iov.iov_base.add(done), iov.iov_len - done, 0) };
            match usize::try_from(n) {
                Ok(n) => {
                    done += n;
                    filled += n as u32; // the sum is at most REQUEST_BYTES
                }
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return filled,
            }
        }
    }
    filled
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        device_id::RNG
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active {
            queue: activation.take_queue(0)?,
            memory: activation.memory,
            chain: DescriptorChain::new(),
            iovecs: Vec::new(),
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&mut self) -> Result<SavedDevice, StateError> {
        // Each turn ends with nothing held: what the limiter stops is put back at once.
        let active = self.active.iter();
        let queues = active.map(|active| Some(active.queue.position())).collect();
        SavedDevice::new(&self.name, queues, &())
    }

    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        read_own::<()>(&self.name, own)?;
        match activation {
            Some(activation) => self
                .activate(activation)
                .map_err(|e| StateError::activating(&self.name, e)),
            None => Ok(()),
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let timer = self.limiter.as_ref().map(|limiter| EventSource {
            fd: limiter.timer_fd(),
            token: TIMER,
            edge: false,
            writable: false,
        });
        timer
            .into_iter()
            .chain([self.wakeup.source(WAKEUP)])
            .collect()
    }

    fn process_queue(&mut self, _index: usize) {
        self.run();
    }

    fn process_event(&mut self, token: u32) {
        match token {
            TIMER => {
                if let Some(limiter) = &mut self.limiter {
                    limiter.timer_fired();
                }
            }
            WAKEUP => self.wakeup.clear(),
            _ => return,
        }
        self.run();
    }

    fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("requests", self.counters.requests);
        report("bytes", self.counters.bytes);
        report("throttled", self.counters.throttled);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::virtio::driver::TestDriver;
    use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

    const BUFFER: u64 = 0x8_0000;

    fn driver(limit: RateLimit) -> TestDriver {
        let rng = Rng::new("rng".into(), &limit).unwrap();
        let mut driver = TestDriver::new(Box::new(rng), 1 << 21);
        assert_eq!(driver.start(u64::MAX, 64), 0xf);
        driver
    }

    #[test]
    fn requests_are_filled_and_differ() {
        let mut d = driver(RateLimit::default());
        let first = d.add_chain(0, &[], &[(BUFFER, 32), (BUFFER + 64, 32)]);
        d.kick(0);
        assert_eq!(d.used(0), Some((first, 64)));
        let parts: [[u8; 32]; 3] = [d.get(BUFFER), d.get(BUFFER + 64), d.get(BUFFER + 32)];
        assert_ne!(parts[0], parts[1]);
        assert_ne!(parts[0], [0; 32]);
        assert_eq!(parts[2], [0; 32], "nothing beside the buffers");
    }

    #[test]
    fn request_when_huge_gets_its_share_and_the_turn_ends() {
        let mut d = driver(RateLimit::default());
        for _ in 0..TURN + 1 {
            d.add_chain(0, &[], &[(BUFFER, 0x10_0000)]);
        }
        d.kick(0);
        for _ in 0..TURN {
            assert_eq!(d.used(0).unwrap().1, REQUEST_BYTES);
        }
        assert_eq!(d.used(0), None);
        d.transport.process_event(WAKEUP);
        assert_eq!(d.used(0).unwrap().1, REQUEST_BYTES);
    }

    #[test]
    fn request_without_writable_buffers_is_returned_empty() {
        let mut d = driver(RateLimit::default());
        let head = d.add_chain(0, &[(BUFFER, 64)], &[]);
        d.kick(0);
        assert_eq!(d.used(0), Some((head, 0)));
    }

    #[test]
    fn request_over_the_limit_waits_for_the_timer() {
        let mut d = driver(RateLimit {
            bytes_per_second: 10_000,
            burst_bytes: 100,
            ..Default::default()
        });
        let first = d.add_chain(0, &[], &[(BUFFER, 100)]);
        let second = d.add_chain(0, &[], &[(BUFFER, 100)]);
        d.kick(0);
        assert_eq!(d.used(0), Some((first, 100)));
        d.kick(0);
        assert_eq!(d.used(0), None);
        let used = loop {
            d.transport.process_event(TIMER);
            if let Some(used) = d.used(0) {
                break used;
            }
            std::thread::yield_now();
        };
        assert_eq!(used, (second, 100));
    }

    #[test]
    fn chain_that_is_malformed_stops_the_device_until_reset() {
        let mut d = driver(RateLimit::default());
        d.add_chain(0, &[], &[(u64::MAX, 8)]);
        d.kick(0);
        assert_eq!(d.read(0x70), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
        d.transport.process_event(WAKEUP);
        assert_eq!(d.start(u64::MAX, 64), 0xf);
        let head = d.add_chain(0, &[], &[(BUFFER, 8)]);
        d.kick(0);
        assert_eq!(d.used(0), Some((head, 8)));
    }

    #[test]
    fn request_that_waits_for_the_limit_is_served_by_the_next_device() {
        let mut d = driver(RateLimit {
            bytes_per_second: 1,
            burst_bytes: 100,
            ..Default::default()
        });
        let first = d.add_chain(0, &[], &[(BUFFER, 100)]);
        let second = d.add_chain(0, &[], &[(BUFFER, 100)]);
        d.kick(0);
        let state = d.save();
        let rng = Rng::new("rng".into(), &RateLimit::default()).unwrap();
        d.move_to(Box::new(rng), &state).unwrap();
        d.transport.restart();
        assert_eq!(d.used(0), Some((first, 100)));
        assert_eq!(d.used(0), Some((second, 100)));
        assert_eq!(d.used(0), None);
    }

    #[test]
    fn device_that_was_saved_goes_on() {
        let mut d = driver(RateLimit::default());
        for _ in 0..3 {
            d.save();
            let head = d.add_chain(0, &[], &[(BUFFER, 10)]);
            d.kick(0);
            assert_eq!(d.used(0), Some((head, 10)));
        }
    }

    #[test]
    fn state_with_something_of_its_own_is_refused() {
        let mut d = driver(RateLimit::default());
        let mut state = d.save();
        state.device = serde_json::json!({ "seed": 1 });
        let rng = Rng::new("rng".into(), &RateLimit::default()).unwrap();
        assert!(d.move_to(Box::new(rng), &state).is_err());
    }
}
