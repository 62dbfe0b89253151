//! How many instances a machine has room for: idle ones are started until a budget is used.

use std::time::{Duration, Instant};

use crate::instance::{Instance, Setup};
use crate::memory::taken;
use crate::report::Side;

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Bytes of the host's memory.
    pub bytes: u64,
    /// Instances.
    pub instances: usize,
    /// Time.
    pub time: Duration,
}

/// Instances that are up at the same time.
pub struct Crowd<'a> {
    /// They themselves.
    pub instances: Vec<Instance<'a>>,
    /// What all of them take of the host's memory, in bytes.
    pub bytes: u64,
}

impl Crowd<'_> {
    /// How many there would be in a GiB.
    pub fn per_gib(&self) -> Option<f64> {
        let gib = self.bytes as f64 / f64::from(1 << 30);
        (gib > 0.0).then(|| self.instances.len() as f64 / gib)
    }
}

/// Starts instances until one part of the budget is used: one at least, two at a time, as they take a
/// processor each while they start.
pub fn gather<'a>(setup: &'a Setup<'a>, side: Side, budget: Budget) -> Result<Crowd<'a>, String> {
    const AT_A_TIME: usize = 2;
    let until = Instant::now() + budget.time;
    let mut crowd = Crowd {
        instances: Vec::new(),
        bytes: 0,
    };
    loop {
        let first = crowd.instances.len();
        let more = (budget.instances.max(1) - first).min(AT_A_TIME);
        for number in first..first + more {
            crowd
                .instances
                .push(Instance::begin(setup, side, 1000 + number)?);
        }
        for instance in &mut crowd.instances[first..] {
            instance.wait_ready()?;
        }
        crowd.bytes = 0;
        for instance in &crowd.instances {
            let taken = taken(side.kind(), &instance.processes()?)?;
            crowd.bytes += taken.processes() + taken.kernel.unwrap_or(0);
        }
        let full = crowd.bytes >= budget.bytes || crowd.instances.len() >= budget.instances;
        if full || Instant::now() >= until {
            return Ok(crowd);
        }
    }
}
