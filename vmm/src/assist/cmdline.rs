//! Kernel parameters for guests of a software-assisted KVM.

use super::HostKind;

/// Processor features the guest's kernel should not use. Its CPUID shows the hardware's, whatever KVM
/// is told, while the emulator that runs the kernel has not all of them, or not at a bearable price.
/// With all of them the kernel boots, too, only later.
///
/// The kernel reads at most 127 characters here and drops the rest without a word.
const CLEARED: [&str; 8] = [
    // STAC and CLAC around every access to user memory: two exits to the assist each.
    "smap", // String instructions go byte by byte, so that a loop of moves is faster.
    "erms", "fsrm", "rep_good",
    // Compiled BPF programs shift with VEX instructions that nothing here knows.
    "bmi2",
    // The entry code that it brings looks up the CPU's number with LSL, which nothing here knows.
    "fsgsbase",
    // An exit each time. Compacting buys nothing where the exit is what costs, and counting bits
    // with twenty emulated instructions costs as much.
    "xsavec", "popcnt",
];

/// What to put on the kernel's command line for this kind of host; empty on hardware.
///
/// - `syscall_by_fault=1`: our kernel's patch, which takes the fault that `syscall` becomes there for
///   a system call. Other kernels ignore it.
/// - `nokaslr`, `rodata=off`: relocating the kernel and splitting its mapping to protect it cost
///   seconds where each instruction is emulated.
pub fn kernel_parameters(kind: HostKind) -> String {
    match kind {
        HostKind::Hardware => String::new(),
        HostKind::SoftwareAssisted => format!(
            "syscall_by_fault=1 nokaslr rodata=off clearcpuid={}",
            CLEARED.join(",")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_reads_the_whole_list() {
        assert!(CLEARED.join(",").len() < 128);
        assert_eq!(kernel_parameters(HostKind::Hardware), "");
    }
}
