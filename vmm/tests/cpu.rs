//! That this machine's KVM takes the vCPU state made for it.

use bulkhead_vmm::assist::probe::probe;
use bulkhead_vmm::cpu::cpuid::{CpuTopology, GuestCpuid, MAX_CPUS};
use bulkhead_vmm::cpu::lapic::set_pins;
use bulkhead_vmm::cpu::msrs::{boot_msrs, set_msrs};
use kvm_ioctls::Kvm;

#[test]
fn kvm_accepts_cpuid_msrs_and_lapic_of_every_vcpu() {
    let kvm = Kvm::new().expect("these tests need /dev/kvm");
    let kind = probe(&kvm).expect("probe");
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    vm.set_tss_address(0xfffb_d000).expect("KVM_SET_TSS_ADDR");
    vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
    let cpus = MAX_CPUS.min(kvm.get_max_vcpus().try_into().unwrap_or(MAX_CPUS));
    for index in 0..cpus {
        let vcpu = vm.create_vcpu(index.into()).expect("KVM_CREATE_VCPU");
        let tsc_khz = vcpu.get_tsc_khz().ok();
        let cpuid = GuestCpuid::new(&kvm, CpuTopology { cpus }, tsc_khz, kind)
            .and_then(|common| common.for_vcpu(index))
            .expect("cpuid");
        vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
        let msrs = boot_msrs(&kvm, kind).expect("KVM_GET_MSR_INDEX_LIST");
        let refused = set_msrs(&vcpu, &msrs).expect("KVM_SET_MSRS");
        assert_eq!(refused, [0u32; 0], "refused MSRs");
        set_pins(&vcpu).expect("KVM_SET_LAPIC");
    }
}
