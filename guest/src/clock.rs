//! The guest's clock.

use std::io;
use std::mem::MaybeUninit;

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
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// `CLOCK_REALTIME` in nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Sets `CLOCK_REALTIME`.
pub fn set_unix_ns(unix_ns: u64) -> io::Result<()> {
    let time = rustix::time::Timespec {
        // Below 2^35, and below 10^9.
        tv_sec: (unix_ns / 1_000_000_000) as i64,
        tv_nsec: (unix_ns % 1_000_000_000) as i64,
    };
    Ok(rustix::time::clock_settime(
        rustix::time::ClockId::Realtime,
        time,
    )?)
}
