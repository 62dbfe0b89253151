//! How often the assist was needed, by instruction.

use std::sync::atomic::{AtomicU64, Ordering};

use super::decode::Operation;

/// Counters shared by the assists of all vCPUs of a VM.
#[derive(Debug, Default)]
pub struct Counters {
    breakpoint: AtomicU64,
    undefined: AtomicU64,
    x87: AtomicU64,
    save: AtomicU64,
    restore: AtomicU64,
    mxcsr: AtomicU64,
    compare_exchange: AtomicU64,
    arithmetic: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, operation: Operation) {
        let counter = match operation {
            Operation::Breakpoint => &self.breakpoint,
            Operation::Undefined => &self.undefined,
            Operation::Fwait => &self.x87,
            Operation::Save(_) => &self.save,
            Operation::Restore | Operation::RestoreSupervisor => &self.restore,
            Operation::LoadMxcsr | Operation::StoreMxcsr => &self.mxcsr,
            Operation::CompareExchange16 => &self.compare_exchange,
            Operation::PopulationCount | Operation::Crc32 => &self.arithmetic,
            Operation::AlignmentCheck(_) | Operation::GetXcr | Operation::CacheHint => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Reports each counter by name, for the metrics endpoint.
    pub fn report(&self, report: &mut dyn FnMut(&'static str, u64)) {
        for (name, counter) in [
            ("int3", &self.breakpoint),
            ("ud", &self.undefined),
            ("x87", &self.x87),
            ("xsave", &self.save),
            ("xrstor", &self.restore),
            ("mxcsr", &self.mxcsr),
            ("cmpxchg16b", &self.compare_exchange),
            ("popcnt_crc32", &self.arithmetic),
            ("other", &self.other),
        ] {
            report(name, counter.load(Ordering::Relaxed));
        }
    }

    /// All instructions finished.
    pub fn total(&self) -> u64 {
        let mut total = 0u64;
        self.report(&mut |_, count| total = total.wrapping_add(count));
        total
    }
}
