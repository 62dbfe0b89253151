//! The guest's clock.

use std::io;
use std::mem::MaybeUninit;

const NS_PER_S: u64 = 1_000_000_000;

/// `CLOCK_BOOTTIME` in nanoseconds: 0 is when the kernel set up its timekeeping. Read through the
/// vDSO, without a system call.
pub fn boot_ns() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is to a timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, now.as_mut_ptr()) };
    // SAFETY: a timespec of zeros is valid, so it is whether or not the call filled it.
    let now = unsafe { now.assume_init() };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NS_PER_S)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// `CLOCK_REALTIME` in nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NS_PER_S)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Moves `CLOCK_REALTIME` forward by so many nanoseconds, in one step: the time that passes meanwhile counts.
pub fn advance(ns: u64) -> io::Result<()> {
    if ns == 0 {
        return Ok(());
    }
    // SAFETY: a `timex` is integers all through, and zeros are a value of it.
    let mut step: libc::timex = unsafe { std::mem::zeroed() };
    step.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    // Below 2^35, and below 10^9. With ADJ_NANO the field for microseconds has nanoseconds.
    step.time.tv_sec = (ns / NS_PER_S) as _;
    step.time.tv_usec = (ns % NS_PER_S) as _;
    // SAFETY: clock_adjtime reads and writes the timex, which lives through the call.
    if unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut step) } >= 0 {
        return Ok(());
    }
    // A kernel that knows no such step: what passes between the two calls is lost.
    set_unix_ns(unix_ns().saturating_add(ns))
}

/// Sets `CLOCK_REALTIME`.
pub fn set_unix_ns(unix_ns: u64) -> io::Result<()> {
    let time = rustix::time::Timespec {
        // Below 2^35, and below 10^9.
        tv_sec: (unix_ns / NS_PER_S) as i64,
        tv_nsec: (unix_ns % NS_PER_S) as i64,
    };
    Ok(rustix::time::clock_settime(
        rustix::time::ClockId::Realtime,
        time,
    )?)
}
