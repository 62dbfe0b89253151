//! Exceptions the assist raises in the guest.

use kvm_bindings::kvm_sregs;
use kvm_ioctls::{Error, VcpuFd};

/// DR6.BS: the debug exception is a single step's.
const DR6_BS: u64 = 1 << 14;

/// An exception, with what its handler is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exception {
    /// `#DB` after an instruction with RFLAGS.TF set.
    SingleStep,
    /// `#BP`.
    Breakpoint,
    /// `#UD`.
    InvalidOpcode,
    /// `#NM`.
    DeviceNotAvailable,
    /// `#SS(0)`.
    Stack,
    /// `#GP(0)`.
    GeneralProtection,
    /// `#PF` with CR2 and the error code.
    Page { address: u64, error: u32 },
    /// `#MF`.
    FloatingPoint,
}

impl Exception {
    pub fn vector(self) -> u8 {
        match self {
            Exception::SingleStep => 1,
            Exception::Breakpoint => 3,
            Exception::InvalidOpcode => 6,
            Exception::DeviceNotAvailable => 7,
            Exception::Stack => 12,
            Exception::GeneralProtection => 13,
            Exception::Page { .. } => 14,
            Exception::FloatingPoint => 16,
        }
    }

    fn error_code(self) -> Option<u32> {
        match self {
            Exception::Stack | Exception::GeneralProtection => Some(0),
            Exception::Page { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Delivers it at the next entry, in place of whatever KVM had queued for the instruction.
    pub fn inject(self, vcpu: &VcpuFd, sregs: &kvm_sregs) -> Result<(), Error> {
        match self {
            Exception::Page { address, .. } => {
                let mut sregs = *sregs;
                sregs.cr2 = address;
                vcpu.set_sregs(&sregs)?;
            }
            Exception::SingleStep => {
                let mut debug = vcpu.get_debug_regs()?;
                debug.dr6 |= DR6_BS;
                vcpu.set_debug_regs(&debug)?;
            }
            _ => {}
        }
        let mut events = vcpu.get_vcpu_events()?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = self.vector();
        events.exception.has_error_code = u8::from(self.error_code().is_some());
        events.exception.error_code = self.error_code().unwrap_or(0);
        vcpu.set_vcpu_events(&events)
    }
}
