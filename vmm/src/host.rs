//! The host's KVM: opened, checked, and told apart.

use std::path::Path;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};

/// Where KVM is.
pub const KVM_PATH: &str = "/dev/kvm";

/// What this VMM cannot do without, and what each is for.
pub const REQUIRED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::UserMemory, "guest memory from user space"),
    (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_SET_IDENTITY_MAP_ADDR"),
    (Cap::Pit2, "a timer in the kernel"),
    (Cap::ExtCpuid, "CPUID of our choosing"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::Ioeventfd, "notifications by eventfd"),
    (Cap::ImmediateExit, "KVM_RUN that returns at once"),
];

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    #[error(
        "{KVM_PATH} is not there: switch on virtualization in the firmware and load the kvm_intel or kvm_amd module"
    )]
    Missing,
    /// It may not be opened.
    #[error("no permission to open {KVM_PATH}: join the group `kvm` or run as root")]
    Permission,
    /// It could not be opened for another reason.
    #[error("cannot open {KVM_PATH}: {0}")]
    Open(kvm_ioctls::Error),
    /// It is not KVM, or not one of this age.
    #[error("{KVM_PATH} does not speak KVM API version 12: is it the real device?")]
    NotKvm,
    /// It lacks something.
    #[error("the host's KVM lacks {0} ({1:?}): a newer kernel is needed")]
    Capability(&'static str, Cap),
}

/// Opens KVM and checks that it has what is needed.
pub fn open_kvm() -> Result<Kvm, HostError> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::Missing,
        libc::EACCES | libc::EPERM if Path::new(KVM_PATH).exists() => HostError::Permission,
        _ => HostError::Open(e),
    })?;
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(HostError::NotKvm);
    }
    for (cap, what) in REQUIRED {
        if !kvm.check_extension(cap) {
            return Err(HostError::Capability(what, cap));
        }
    }
    Ok(kvm)
}
