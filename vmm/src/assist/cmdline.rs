//! Kernel parameters for guests of a software-assisted KVM.

use super::HostKind;

/// Processor features the guest's kernel must not use, because its CPUID shows the hardware's bits
/// whatever KVM is told, while the emulator that runs the kernel has no such thing:
/// - `smap`, `smep`, `umip`, `fsgsbase`: KVM refuses the bits in CR4 that switch them on;
/// - `invpcid`: not emulated, and nothing but KVM can flush its translations;
/// - `erms`, `fsrm`, `rep_good`: string instructions go byte by byte, so that a loop of moves is
///   faster;
/// - `popcnt` and the rest: an exit to the assist each time, and the generic code does without.
const CLEARED: &str = "smap,smep,umip,fsgsbase,invpcid,pcid,erms,fsrm,rep_good,cx16,popcnt,rdrand,\
rdseed,movbe,bmi1,bmi2,rdpid,rdtscp,xsavec,xsaves,xsaveopt,xgetbv1";

/// What to put on the kernel's command line for this kind of host; empty on hardware.
pub fn kernel_parameters(kind: HostKind) -> String {
    match kind {
        HostKind::Hardware => String::new(),
        // `nokaslr`: relocating the kernel costs seconds where each instruction is emulated.
        HostKind::SoftwareAssisted => format!("syscall_by_fault=1 nokaslr clearcpuid={CLEARED}"),
    }
}
