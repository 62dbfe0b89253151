//! The guest's clock.

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
