//! Where a boot's time goes, as far as the VMM sees it.

use std::sync::OnceLock;

use serde::Serialize;

/// Now, in nanoseconds of `CLOCK_MONOTONIC`: comparable between processes of one host.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec to write to, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The moments of a start, in nanoseconds of `CLOCK_MONOTONIC`, in the order they come. When a VM is restored, KVM's side of
/// it is made beside all that, and put together with the rest last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct StartTimes {
    /// `main` was entered.
    pub process_ns: u64,
    /// The configuration was read and KVM was opened and probed; or the snapshot's state was read.
    pub host_ns: u64,
    /// Guest memory was mapped and, unless the VM is restored, given to KVM.
    pub memory_ns: u64,
    /// The kernel, the initrd and the boot tables were in guest memory; or the devices were as they were.
    pub kernel_ns: u64,
    /// Devices and vCPUs were ready: the first `KVM_RUN` came next.
    pub run_ns: u64,
    /// CPU time the process had used by then, in nanoseconds.
    pub cpu_ns: u64,
}

static START: OnceLock<StartTimes> = OnceLock::new();

/// CPU time this process has used, in nanoseconds.
pub fn process_cpu() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: as in `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Keeps `times` for the control socket to report.
pub fn record(times: StartTimes) {
    // A process starts one VM, so there is nothing to overwrite.
    let _ = START.set(times);
}

/// What was recorded, once the VM runs.
pub fn recorded() -> Option<StartTimes> {
    START.get().copied()
}
