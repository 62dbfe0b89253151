//! The processor a guest sees: KVM's, as one socket of single-threaded cores.
//!
//! (Intel SDM 2A, CPUID; AMD APM 3, appendix E; `Documentation/virt/kvm/x86/cpuid.rst`.)

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use crate::assist::HostKind;

/// More vCPUs than this a VM cannot have.
pub const MAX_CPUS: u8 = 32;

/// The first and last leaf of the hypervisor's range that we fill.
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf 1, ECX.
const ECX_MONITOR: u32 = 1 << 3;
const ECX_VMX: u32 = 1 << 5;
const ECX_CMPXCHG16B: u32 = 1 << 13;
const ECX_PDCM: u32 = 1 << 15;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer runs in every power state.
const EAX_ARAT: u32 = 1 << 2;
/// Leaf 7, EBX: SGX. ECX: WAITPKG. EDX: AMX (BF16, TILE, INT8).
const EBX_SGX: u32 = 1 << 2;
const ECX_WAITPKG: u32 = 1 << 5;
const ECX_SGX_LC: u32 = 1 << 30;
const EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Leaf 0xD, EAX: the two AMX components.
const XCR0_AMX: u32 = 3 << 17;
/// Leaf 0x8000_0001, ECX.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_SVM: u32 = 1 << 2;
const ECX_AMD_PERFORMANCE: u32 = 1 << 10 | 1 << 23 | 1 << 24 | 1 << 27 | 1 << 28;
/// Leaf 0x8000_0007, EDX.
const EDX_INVARIANT_TSC: u32 = 1 << 8;

/// The paravirtual features that need neither a hypercall, which an emulated kernel cannot make, nor
/// an asynchronous page fault, which it cannot take: both kvmclocks, no delay after port I/O, and the
/// promise that the clock is stable.
const ASSISTED_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;

/// Why there is no CPUID for the guest.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM does not say what it supports.
    #[error("cannot read the supported CPUID from KVM: {0}")]
    Supported(kvm_ioctls::Error),
    /// Too many leaves, with ours.
    #[error("KVM supports more CPUID leaves than fit")]
    TooMany,
}

/// How many processors the guest has: one socket, one thread a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTopology {
    /// Cores, 1 to [`MAX_CPUS`].
    pub cpus: u8,
}

impl CpuTopology {
    /// Bits of an APIC id that tell the cores apart.
    fn id_bits(self) -> u32 {
        u32::from(self.cpus.max(1)).next_power_of_two().ilog2()
    }

    /// One less than the number of ids the cores may have.
    fn id_mask(self) -> u32 {
        (1 << self.id_bits()) - 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
}

/// What the CPUIDs of all vCPUs of a VM have in common.
#[derive(Debug, Clone)]
pub struct GuestCpuid {
    common: Vec<kvm_cpuid_entry2>,
    vendor: Vendor,
    topology: CpuTopology,
}

impl GuestCpuid {
    /// Asks KVM what there is. `tsc_khz` is a vCPU's `KVM_GET_TSC_KHZ`, if it has one.
    pub fn new(
        kvm: &Kvm,
        topology: CpuTopology,
        tsc_khz: Option<u32>,
        kind: HostKind,
    ) -> Result<Self, CpuidError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_supported(
            supported.as_slice(),
            topology,
            tsc_khz,
            tsc_deadline,
            kind,
        ))
    }

    fn from_supported(
        supported: &[kvm_cpuid_entry2],
        topology: CpuTopology,
        tsc_khz: Option<u32>,
        tsc_deadline: bool,
        kind: HostKind,
    ) -> Self {
        let vendor = match find(supported, 0).map(|leaf| leaf.ebx.to_le_bytes()) {
            Some(name) if &name == b"Auth" || &name == b"Hygo" => Vendor::Amd,
            _ => Vendor::Intel,
        };
        let mut common: Vec<_> = supported
            .iter()
            .filter(|leaf| !is_made_here(leaf.function))
            .copied()
            .collect();
        let has_amx = find(supported, 0xd).is_some_and(|leaf| leaf.eax & XCR0_AMX == XCR0_AMX);
        for leaf in &mut common {
            adjust(leaf, vendor, topology, kind);
            match (leaf.function, leaf.index) {
                (1, _) if tsc_deadline => leaf.ecx |= ECX_TSC_DEADLINE,
                // AMX is a program's only once the VMM has asked the host for it.
                (7, 0) if !has_amx => leaf.edx &= !EDX_AMX,
                _ => {}
            }
        }
        add_hypervisor(&mut common, supported, tsc_khz, kind);
        let last = find(&common, 0).map_or(0, |leaf| leaf.eax);
        if vendor == Vendor::Intel
            && last >= 0x15
            && let Some(tsc_khz) = tsc_khz
        {
            // TSC ticks in so many ticks of a clock of one gigahertz.
            put(
                &mut common,
                kvm_cpuid_entry2 {
                    function: 0x15,
                    eax: APIC_BUS_KHZ,
                    ebx: tsc_khz,
                    ecx: APIC_BUS_KHZ * 1000,
                    ..Default::default()
                },
            );
        }
        for function in [0xb, 0x1f] {
            let supported_here = supported.iter().any(|leaf| leaf.function == function);
            if last >= function && (function == 0xb || supported_here) {
                common.extend(topology_leaves(function, topology));
            }
        }
        GuestCpuid {
            common,
            vendor,
            topology,
        }
    }

    /// The CPUID of vCPU `index`, whose APIC id is its index.
    pub fn for_vcpu(&self, index: u8) -> Result<CpuId, CpuidError> {
        let id = u32::from(index);
        let mut leaves = self.common.clone();
        for leaf in &mut leaves {
            match leaf.function {
                1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
                0xb | 0x1f => leaf.edx = id,
                0x8000_001e if self.vendor == Vendor::Amd => {
                    leaf.eax = id;
                    leaf.ebx = id & 0xff; // one thread a core
                    leaf.ecx = 0; // node 0, the only one
                    leaf.edx = 0;
                }
                _ => {}
            }
        }
        CpuId::from_entries(&leaves).map_err(|_| CpuidError::TooMany)
    }

    /// The number of processors this was made for.
    pub fn topology(&self) -> CpuTopology {
        self.topology
    }
}

/// Leaves of KVM's that we replace.
fn is_made_here(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x15) || (HYPERVISOR..HYPERVISOR + 0x100).contains(&function)
}

/// Takes from one of KVM's leaves what this VM has not, and puts in how many processors there are.
fn adjust(leaf: &mut kvm_cpuid_entry2, vendor: Vendor, topology: CpuTopology, kind: HostKind) {
    let cpus = u32::from(topology.cpus.max(1));
    match leaf.function {
        1 => {
            leaf.ebx = leaf.ebx & 0x0000_ffff | cpus << 16;
            // No nested virtualization: more of the host's KVM to attack, and nobody has asked.
            leaf.ecx &= !(ECX_MONITOR | ECX_VMX | ECX_PDCM | ECX_TSC_DEADLINE);
            leaf.ecx |= ECX_X2APIC | ECX_HYPERVISOR;
            set(&mut leaf.edx, EDX_HTT, cpus > 1);
            // The assist knows it, and the allocator uses it all the time: doing without is faster.
            if kind == HostKind::SoftwareAssisted {
                leaf.ecx &= !ECX_CMPXCHG16B;
            }
        }
        // Caches: the last level is everybody's, the others each core's own.
        4 if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 {
                topology.id_mask()
            } else {
                0
            };
            leaf.eax = leaf.eax & 0x3fff | sharing << 14 | topology.id_mask() << 26;
        }
        // MONITOR and MWAIT, the performance counters, SGX, processor trace.
        5 | 0xa | 0x12 | 0x14 => clear(leaf),
        6 => {
            leaf.eax &= EAX_ARAT;
            (leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0);
        }
        7 if leaf.index == 0 => {
            leaf.ebx &= !EBX_SGX;
            leaf.ecx &= !(ECX_WAITPKG | ECX_SGX_LC);
        }
        0x8000_0001 => {
            leaf.ecx &= !(ECX_SVM | ECX_AMD_PERFORMANCE);
            if cpus == 1 {
                leaf.ecx &= !ECX_CMP_LEGACY;
            }
        }
        // Without an offset of its own the guest's TSC cannot be carried from host to host, and the
        // guest must not trust it more than KVM's clock.
        0x8000_0007 if kind == HostKind::SoftwareAssisted => leaf.edx &= !EDX_INVARIANT_TSC,
        // On Intel ECX is reserved.
        0x8000_0008 if vendor == Vendor::Amd => {
            leaf.ecx = leaf.ecx & !0xf0ff | topology.id_bits() << 12 | (cpus - 1);
        }
        0x8000_0022 => clear(leaf),
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
            leaf.eax = leaf.eax & !(0xfff << 14) | sharing << 14;
        }
        _ => {}
    }
}

/// The hypervisor's leaves: who it is, what it offers, how fast its clocks are.
fn add_hypervisor(
    leaves: &mut Vec<kvm_cpuid_entry2>,
    supported: &[kvm_cpuid_entry2],
    tsc_khz: Option<u32>,
    kind: HostKind,
) {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let offered = find(supported, HYPERVISOR_FEATURES).copied();
    let mut features = kvm_cpuid_entry2 {
        function: HYPERVISOR_FEATURES,
        ..offered.unwrap_or_default()
    };
    if kind == HostKind::SoftwareAssisted {
        features.eax &= ASSISTED_FEATURES;
    }
    put(
        leaves,
        kvm_cpuid_entry2 {
            function: HYPERVISOR,
            eax: HYPERVISOR_TIMING,
            ebx: word(b"KVMK"),
            ecx: word(b"VMKV"),
            edx: word(b"M\0\0\0"),
            ..Default::default()
        },
    );
    put(leaves, features);
    put(
        leaves,
        kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: tsc_khz.unwrap_or(0),
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        },
    );
}

/// Extended topology: a level of threads, one a core; a level of cores; the end.
fn topology_leaves(function: u32, topology: CpuTopology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, topology.id_bits(), u32::from(topology.cpus), 2),
        level(2, 0, 0, 0),
    ]
}

fn find(leaves: &[kvm_cpuid_entry2], function: u32) -> Option<&kvm_cpuid_entry2> {
    leaves
        .iter()
        .find(|leaf| leaf.function == function && leaf.index == 0)
}

fn put(leaves: &mut Vec<kvm_cpuid_entry2>, leaf: kvm_cpuid_entry2) {
    leaves.retain(|old| old.function != leaf.function);
    leaves.push(leaf);
}

fn clear(leaf: &mut kvm_cpuid_entry2) {
    (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
}

fn set(register: &mut u32, bits: u32, value: bool) {
    if value {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: registers[0],
            ebx: registers[1],
            ecx: registers[2],
            edx: registers[3],
            ..Default::default()
        }
    }

    fn vendor(name: &[u8; 12], last: u32) -> kvm_cpuid_entry2 {
        let word =
            |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        leaf(0, 0, [last, word(0), word(8), word(4)])
    }

    fn intel() -> Vec<kvm_cpuid_entry2> {
        vec![
            vendor(b"GenuineIntel", 0x20),
            leaf(1, 0, [0x806f8, 0x0340_0800, u32::MAX, u32::MAX]),
            leaf(4, 0, [0xfc00_4121, 0x02c0_003f, 63, 0]),
            leaf(4, 1, [0xfc00_4122, 0x01c0_003f, 63, 0]),
            leaf(4, 2, [0xfc01_c143, 0x03c0_003f, 0x7ff, 0]),
            leaf(4, 3, [0xfc1f_c163, 0x0380_003f, 0x1_bfff, 4]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(5, 0, [64, 64, 3, 0x11142]),
            leaf(6, 0, [u32::MAX; 4]),
            leaf(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
            leaf(0xa, 0, [0x0830_0802, 0, 0, 0x603]),
            leaf(0xb, 0, [1, 2, 0x100, 9]),
            leaf(0xb, 1, [7, 128, 0x201, 9]),
            leaf(0xd, 0, [0xe7, 0, 0, 0]),
            leaf(0x14, 0, [1, 0xff, 7, 0]),
            leaf(0x1f, 0, [1, 2, 0x100, 9]),
            leaf(HYPERVISOR, 0, [HYPERVISOR_FEATURES, 1, 2, 3]),
            leaf(HYPERVISOR_FEATURES, 0, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
            leaf(0x8000_0007, 0, [0, 0, 0, EDX_INVARIANT_TSC]),
            leaf(0x8000_0008, 0, [0x3934, 0, 0, 0]),
        ]
    }

    fn amd() -> Vec<kvm_cpuid_entry2> {
        vec![
            vendor(b"AuthenticAMD", 0x10),
            leaf(1, 0, [0xa1_0f11, 0x0102_0800, 0x8120_2000, 0x078b_fbff]),
            leaf(HYPERVISOR_FEATURES, 0, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0xa1_0f11, 0, 0x1840_0397, 0x23d3_fbff]),
            leaf(0x8000_0007, 0, [0, 0, 0, EDX_INVARIANT_TSC]),
            leaf(0x8000_0008, 0, [0x3030, 0x5002_0005, 0x7001, 0]),
            leaf(0x8000_001d, 0, [0x121, 0x01c0_003f, 63, 0]),
            leaf(0x8000_001d, 1, [0x122, 0x01c0_003f, 63, 0]),
            leaf(0x8000_001d, 2, [0x143, 0x01c0_003f, 0x7ff, 2]),
            leaf(0x8000_001d, 3, [0x3_c163, 0x03c0_003f, 0x7fff, 1]),
            leaf(0x8000_001e, 0, [9, 9, 9, 9]),
        ]
    }

    fn cpuid(supported: &[kvm_cpuid_entry2], cpus: u8, index: u8, kind: HostKind) -> CpuId {
        let topology = CpuTopology { cpus };
        GuestCpuid::from_supported(supported, topology, Some(2_600_000), true, kind)
            .for_vcpu(index)
            .expect("cpuid")
    }

    fn get(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> = cpuid
            .as_slice()
            .iter()
            .filter(|leaf| leaf.function == function && leaf.index == index)
            .collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
        *found[0]
    }

    #[test]
    fn every_count_of_cpus_gives_one_consistent_socket() {
        for supported in [intel(), amd()] {
            for cpus in 1..=MAX_CPUS {
                for index in 0..cpus {
                    let cpuid = cpuid(&supported, cpus, index, HostKind::Hardware);
                    let (id, count) = (u32::from(index), u32::from(cpus));
                    let one = get(&cpuid, 1, 0);
                    assert_eq!(one.ebx >> 24, id);
                    assert_eq!(one.ebx >> 16 & 0xff, count);
                    assert_eq!(one.edx & EDX_HTT != 0, count > 1);
                    let threads = get(&cpuid, 0xb, 0);
                    assert_eq!((threads.eax, threads.ebx, threads.edx), (0, 1, id));
                    assert_eq!(threads.ecx, 0x100);
                    let cores = get(&cpuid, 0xb, 1);
                    assert_eq!((cores.ebx, cores.ecx, cores.edx), (count, 0x201, id));
                    // The shift leaves one socket, and no larger than need be.
                    assert_eq!(id >> cores.eax, 0);
                    assert!(1 << cores.eax >= count && 1 << cores.eax < 2 * count);
                    let end = get(&cpuid, 0xb, 2);
                    assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
                }
            }
        }
    }

    #[test]
    fn intel_caches_are_shared_at_the_last_level_only() {
        for cpus in 1..=MAX_CPUS {
            let cpuid = cpuid(&intel(), cpus, 0, HostKind::Hardware);
            let mask = u32::from(cpus).next_power_of_two() - 1;
            for index in 0..3 {
                let cache = get(&cpuid, 4, index);
                assert_eq!((cache.eax >> 14 & 0xfff, cache.eax >> 26), (0, mask));
            }
            assert_eq!(get(&cpuid, 4, 3).eax >> 14 & 0xfff, mask);
            assert_eq!(get(&cpuid, 4, 3).eax & 0x3fff, 0x163);
            assert_eq!(get(&cpuid, 4, 4).eax, 0);
            assert_eq!(get(&cpuid, 0x1f, 1).ebx, u32::from(cpus));
            assert_eq!(get(&cpuid, 0x8000_0008, 0).ecx, 0);
        }
    }

    #[test]
    fn amd_leaves_count_cores_and_identify_each() {
        for cpus in 1..=MAX_CPUS {
            let index = cpus - 1;
            let cpuid = cpuid(&amd(), cpus, index, HostKind::Hardware);
            let size = get(&cpuid, 0x8000_0008, 0);
            assert_eq!(size.ecx & 0xff, u32::from(index));
            assert!(1 << (size.ecx >> 12 & 0xf) >= u32::from(cpus));
            assert_eq!(get(&cpuid, 0x8000_001d, 2).eax >> 14 & 0xfff, 0);
            assert_eq!(
                get(&cpuid, 0x8000_001d, 3).eax >> 14 & 0xfff,
                u32::from(index)
            );
            let id = get(&cpuid, 0x8000_001e, 0);
            assert_eq!((id.eax, id.ebx, id.ecx), (index.into(), index.into(), 0));
            assert_eq!(
                get(&cpuid, 0x8000_0001, 0).ecx & ECX_CMP_LEGACY != 0,
                cpus > 1
            );
        }
        // Not supported by this one.
        let cpuid = cpuid(&amd(), 2, 0, HostKind::Hardware);
        assert!(!cpuid.as_slice().iter().any(|leaf| leaf.function == 0x1f));
    }

    #[test]
    fn what_the_vm_has_not_is_not_announced() {
        let intel = cpuid(&intel(), 2, 0, HostKind::Hardware);
        let one = get(&intel, 1, 0);
        assert_eq!(one.ecx & (ECX_MONITOR | ECX_VMX | ECX_PDCM), 0);
        assert_eq!(
            one.ecx & (ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE),
            ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE
        );
        for function in [5, 0xa, 0x14] {
            let leaf = get(&intel, function, 0);
            assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
        }
        assert_eq!(get(&intel, 6, 0).eax, EAX_ARAT);
        let seven = get(&intel, 7, 0);
        assert_eq!(seven.edx & EDX_AMX, 0);
        assert_eq!(seven.ecx & ECX_WAITPKG, 0);
        let amd = cpuid(&amd(), 2, 0, HostKind::Hardware);
        let extended = get(&amd, 0x8000_0001, 0).ecx;
        assert_eq!(extended & (ECX_SVM | ECX_AMD_PERFORMANCE), 0);
    }

    #[test]
    fn the_hypervisor_leaves_name_kvm_and_its_clocks() {
        for supported in [intel(), amd()] {
            let cpuid = cpuid(&supported, 1, 0, HostKind::Hardware);
            let name = get(&cpuid, HYPERVISOR, 0);
            assert_eq!(name.eax, HYPERVISOR_TIMING);
            let bytes = [name.ebx, name.ecx, name.edx]
                .map(u32::to_le_bytes)
                .concat();
            assert_eq!(bytes, b"KVMKVMKVM\0\0\0");
            assert_eq!(get(&cpuid, HYPERVISOR_FEATURES, 0).eax, 0x0100_7efb);
            let timing = get(&cpuid, HYPERVISOR_TIMING, 0);
            assert_eq!((timing.eax, timing.ebx), (2_600_000, 1_000_000));
        }
        // Ticks of the TSC for each of a crystal of one gigahertz, on Intel alone.
        let crystal = get(&cpuid(&intel(), 1, 0, HostKind::Hardware), 0x15, 0);
        let hertz = u64::from(crystal.ecx) * u64::from(crystal.ebx) / u64::from(crystal.eax);
        assert_eq!(hertz, 2_600_000_000);
        let amd = cpuid(&amd(), 1, 0, HostKind::Hardware);
        assert!(!amd.as_slice().iter().any(|leaf| leaf.function == 0x15));
    }

    #[test]
    fn a_software_assisted_guest_gets_no_hypercalls_and_no_invariant_tsc() {
        let cpuid = cpuid(&amd(), 1, 0, HostKind::SoftwareAssisted);
        assert_eq!(get(&cpuid, HYPERVISOR_FEATURES, 0).eax, 0x0100_000b);
        assert_eq!(get(&cpuid, 0x8000_0007, 0).edx, 0);
        assert_eq!(get(&cpuid, 1, 0).ecx & ECX_CMPXCHG16B, 0);
        assert_eq!(get(&cpuid, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn an_empty_list_of_leaves_is_survived() {
        let cpuid = cpuid(&[], 32, 31, HostKind::Hardware);
        assert_eq!(get(&cpuid, HYPERVISOR, 0).eax, HYPERVISOR_TIMING);
    }
}
