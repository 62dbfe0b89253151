//! KVM: there, allowed, of which kind, with what.

use bulkhead_vmm::assist::{HostKind, probe};
use bulkhead_vmm::host::{self, HostError, KVM_PATH, REQUIRED};
use kvm_ioctls::{Cap, Kvm};

use super::Finding;

/// What a VM runs without, and what it then lacks.
const WELCOME: [(Cap, &str, &str); 4] = [
    (
        Cap::TscDeadlineTimer,
        "TSC deadline timer",
        "the guest's timers cost an exit more each",
    ),
    (
        Cap::SyncRegs,
        "registers in shared memory",
        "the assist asks for them by system call",
    ),
    (
        Cap::Xsave2,
        "extended state of any size",
        "programs in the guest cannot use AMX",
    ),
    (
        Cap::GetTscKhz,
        "TSC frequency",
        "the guest measures its clock at boot",
    ),
];

/// Looks at KVM.
pub fn look() -> Vec<Finding> {
    let kvm = match host::open_kvm() {
        Ok(kvm) => kvm,
        Err(e) => {
            let advice = match e {
                HostError::Missing => {
                    "switch on virtualization in the firmware and load kvm_intel or kvm_amd; in a VM, ask for nested virtualization"
                }
                HostError::Permission => "add yourself to the group `kvm`, or run as root",
                HostError::Capability(..) => "use a newer kernel on this host",
                HostError::Open(_) | HostError::NotKvm => {
                    "make it the character device 10:232, as `mknod /dev/kvm c 10 232` does"
                }
            };
            return vec![Finding::missing(KVM_PATH, e.to_string(), advice)];
        }
    };
    let mut findings = vec![
        Finding::good(KVM_PATH, "there, and you may use it"),
        Finding::good("KVM API", format!("version {}", kvm.get_api_version())),
        kind(&kvm),
        Finding::good(
            "vCPUs",
            format!(
                "{} recommended, {} at most",
                kvm.get_nr_vcpus(),
                kvm.get_max_vcpus()
            ),
        ),
    ];
    findings.push(Finding::good(
        "KVM capabilities",
        format!("all {} that are needed", REQUIRED.len()),
    ));
    for (cap, what, without) in WELCOME {
        findings.push(if kvm.check_extension(cap) {
            Finding::good(what, "yes")
        } else {
            Finding::warning(what, "no", format!("{without}; a newer kernel may have it"))
        });
    }
    findings
}

fn kind(kvm: &Kvm) -> Finding {
    let what = "kind of KVM";
    match probe::probe(kvm) {
        Ok(HostKind::Hardware) => Finding::good(what, "hardware (VMX or SVM)"),
        Ok(HostKind::SoftwareAssisted) => Finding::warning(
            what,
            "software-assisted: guest kernels are emulated instruction by instruction",
            "VMs run, with Bulkhead's assist, but boot in seconds; for speed use a host with VMX or SVM",
        ),
        Err(e) => Finding::missing(
            what,
            format!("a test VM does not run: {e}"),
            "look for KVM's messages in the host's kernel log",
        ),
    }
}
