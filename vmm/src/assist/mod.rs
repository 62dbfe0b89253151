//! What a software-assisted KVM needs from us to run an ordinary guest kernel.

/// What kind of KVM this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// VMX or SVM: the guest's kernel runs on the hardware. The norm.
    Hardware,
    /// A KVM without either, that runs the guest's kernel through KVM's instruction emulator.
    SoftwareAssisted,
}
