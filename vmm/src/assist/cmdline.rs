//! Kernel parameters for guests of a software-assisted KVM.

use super::HostKind;

/// Processor features the guest's kernel should not use, as Linux numbers them (32 times the word plus
/// the bit, `cpufeatures.h`). Its CPUID shows the hardware's, whatever KVM is told, while the emulator
/// that runs the kernel has not all of them, or not at a bearable price. With all of them the kernel
/// boots, too, only later.
///
/// Numbers, because the kernel compares each name with some 700 others, and drops without a word what
/// goes beyond 127 characters.
const CLEARED: [(u32, &str); 7] = [
    // STAC and CLAC around every access to user memory: two exits to the assist each.
    (9 * 32 + 20, "smap"),
    // String instructions go byte by byte, so that those of eight bytes (`rep_good`) are faster.
    (9 * 32 + 9, "erms"),
    (18 * 32 + 4, "fsrm"),
    // Compiled BPF programs shift with VEX instructions that nothing here knows.
    (9 * 32 + 8, "bmi2"),
    // The entry code that it brings looks up the CPU's number with LSL, which nothing here knows.
    (9 * 32, "fsgsbase"),
    // An exit each time. Compacting buys nothing where the exit is what costs, and counting bits
    // with twenty emulated instructions costs as much.
    (10 * 32 + 1, "xsavec"),
    (4 * 32 + 23, "popcnt"),
];

/// What to put on the kernel's command line for this kind of host; empty on hardware.
///
/// - `syscall_by_fault`: our kernel's patch, which takes the fault that `syscall` becomes there for
///   a system call. `no_kernel_simd` (no vector code in the kernel, which nothing here knows),
///   `tick_stretch=20` (five timer ticks a second while busy, not a hundred, of 2000 instructions each and
///   what they set off), `fault_around=512K` (few page faults that map much, not many that map little) and `fair_server=off`
///   (no timer for what real-time tasks leave to others) are our patches too. Other kernels ignore all
///   five.
/// - `cgroup.memory=nokmem`: each of the kernel's own objects is not charged to the container that it is
///   for, which is a tenth of all the kernel does there. The machine's memory is the limit for them.
/// - `nokaslr`, `rodata=off`: relocating the kernel and splitting its mapping to protect it cost seconds
///   where each instruction is emulated.
/// - `clocksource=kvm-clock`: the TSC is the host's there, and jumps when a guest is moved.
///   `tsc=nowatchdog`: nobody need look twice a second whether it is right, which is most of what an
///   idle guest does.
pub fn kernel_parameters(kind: HostKind) -> String {
    match kind {
        HostKind::Hardware => String::new(),
        HostKind::SoftwareAssisted => format!(
            "syscall_by_fault no_kernel_simd tick_stretch=20 fault_around=512K fair_server=off nokaslr rodata=off \
             cgroup.memory=nokmem clocksource=kvm-clock tsc=nowatchdog clearcpuid={}",
            CLEARED.map(|(number, _)| number.to_string()).join(",")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_reads_the_whole_list() {
        let parameters = kernel_parameters(HostKind::SoftwareAssisted);
        let (_, list) = parameters.split_once("clearcpuid=").expect("a list");
        assert_eq!(list.split(',').count(), CLEARED.len());
        assert!(list.len() < 128);
        assert_eq!(kernel_parameters(HostKind::Hardware), "");
    }
}
