//! Timers that are always pending, and clocks that are always looked at.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::Reply;

/// How long each timer takes.
const PERIOD: Duration = Duration::from_millis(20);
/// Those that nobody sets here.
const CLOCKS: [ClockId; 3] = [ClockId::Monotonic, ClockId::MonotonicRaw, ClockId::Boottime];

/// How often the timer of each processor has come.
static EXPIRED: OnceLock<Vec<AtomicU64>> = OnceLock::new();
/// The latest that any processor has seen of each clock, in nanoseconds.
static LATEST: [AtomicU64; CLOCKS.len()] = [const { AtomicU64::new(0) }; CLOCKS.len()];
static WENT_BACK: AtomicBool = AtomicBool::new(false);

/// Has each processor wait for one timer after the other from the first time on, and look at the clocks each time.
pub fn timers() -> io::Result<Reply> {
    let expired = match EXPIRED.get() {
        Some(expired) => expired,
        None => start()?,
    };
    if WENT_BACK.load(Ordering::Relaxed) {
        return Err(io::Error::other("a clock went back"));
    }
    let slowest = expired.iter().map(|count| count.load(Ordering::Relaxed));
    Ok(Reply {
        count: slowest.min().unwrap_or(0),
        ..Reply::default()
    })
}

fn start() -> io::Result<&'static [AtomicU64]> {
    let allowed = sched_getaffinity(None)?;
    let online: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .collect();
    let expired = EXPIRED.get_or_init(|| online.iter().map(|_| AtomicU64::new(0)).collect());
    for (count, cpu) in expired.iter().zip(online) {
        std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(cpu);
            // Otherwise its timer does not come, which is noticed.
            if sched_setaffinity(None, &only).is_ok() {
                loop {
                    std::thread::sleep(PERIOD);
                    look_at_clocks();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    Ok(expired)
}

fn look_at_clocks() {
    for (clock, latest) in CLOCKS.into_iter().zip(&LATEST) {
        let before = latest.load(Ordering::SeqCst);
        let time = clock_gettime(clock);
        let now = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        if now < before {
            WENT_BACK.store(true, Ordering::Relaxed);
        }
        latest.fetch_max(now, Ordering::SeqCst);
    }
}
