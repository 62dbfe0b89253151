//! The end of a VM whose guest needs what neither KVM nor the assist can do.

use std::fmt;
use std::io;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// What could not be done.
#[derive(Debug)]
pub enum Reason {
    /// The instruction is not known.
    Instruction,
    /// The vCPU is not in 64-bit supervisor mode.
    Mode,
    /// The operand is at this guest-physical address, which is no RAM.
    NotMemory(u64),
    /// Supervisor components of extended state are on, and KVM does not hand them out.
    SupervisorState,
    /// The same fault at the same place again and again.
    NoProgress(u8),
    /// KVM's internal error is another one than a failed emulation.
    InternalError(u32),
    /// The vCPU stopped for another reason than an internal error.
    Exit(u32),
    /// The host refused something the assist needs for it.
    Host(&'static str, io::Error),
    /// What the vCPU's loop says it is.
    Other(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Reason::Instruction => f.write_str(
                "the guest's kernel executed an instruction that this host's software-assisted KVM \
                 does not emulate and Bulkhead does not know",
            ),
            Reason::Mode => f.write_str(
                "KVM failed to emulate an instruction outside 64-bit supervisor mode, which Bulkhead \
                 does not help with",
            ),
            Reason::NotMemory(address) => write!(
                f,
                "an instruction that KVM does not emulate has its operand at guest-physical \
                 {address:#x}, where there is no memory"
            ),
            Reason::SupervisorState => f.write_str(
                "the guest's kernel saves supervisor state (IA32_XSS), which KVM does not hand out",
            ),
            Reason::NoProgress(vector) => write!(
                f,
                "the guest's kernel is stuck: the same instruction raised exception {vector} again \
                 and again"
            ),
            Reason::InternalError(suberror) => {
                write!(f, "KVM failed with internal error {suberror}")
            }
            Reason::Exit(reason) => write!(f, "the vCPU stopped with KVM exit reason {reason}"),
            Reason::Host(what, error) => {
                write!(f, "KVM failed {what} of a vCPU: {error}")
            }
            Reason::Other(what) => f.write_str(what),
        }
    }
}

/// An instruction nobody could finish, with all there is to find out why.
#[derive(Debug)]
pub struct Unsupported {
    /// What the trouble is.
    pub reason: Reason,
    /// The bytes at RIP, as many as could be had.
    pub code: Vec<u8>,
    /// The general registers, unchanged by the instruction.
    pub regs: kvm_regs,
    /// CR0, CR2, CR3 and CR4.
    pub control: [u64; 4],
    /// CS, whose low two bits are the privilege level.
    pub cs: u16,
}

impl Unsupported {
    /// Takes down where a vCPU stands that cannot go on because of `what`: for ends that the assist
    /// has no part in.
    pub fn capture(vcpu: &mut VcpuFd, what: impl Into<String>) -> Box<Self> {
        let mut unsupported = Self::new(Reason::Other(what.into()));
        let code = super::exit_code(vcpu).unwrap_or_default();
        // If even the registers cannot be had, `what` still says most of it.
        if let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) {
            unsupported.set_place(code.bytes(), &regs, &sregs);
        }
        unsupported
    }

    pub(super) fn new(reason: Reason) -> Box<Self> {
        Box::new(Unsupported {
            reason,
            code: Vec::new(),
            regs: kvm_regs::default(),
            control: [0; 4],
            cs: 0,
        })
    }

    pub(super) fn set_place(&mut self, code: &[u8], regs: &kvm_regs, sregs: &kvm_sregs) {
        self.code = code.to_vec();
        self.regs = *regs;
        self.control = [sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4];
        self.cs = sregs.cs.selector;
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}", self.reason)?;
        write!(f, "  at rip {:#018x}:", self.regs.rip)?;
        for byte in &self.code {
            write!(f, " {byte:02x}")?;
        }
        let r = &self.regs;
        let rows = [
            [
                ("rax", r.rax),
                ("rbx", r.rbx),
                ("rcx", r.rcx),
                ("rdx", r.rdx),
            ],
            [
                ("rsi", r.rsi),
                ("rdi", r.rdi),
                ("rbp", r.rbp),
                ("rsp", r.rsp),
            ],
            [("r8 ", r.r8), ("r9 ", r.r9), ("r10", r.r10), ("r11", r.r11)],
            [
                ("r12", r.r12),
                ("r13", r.r13),
                ("r14", r.r14),
                ("r15", r.r15),
            ],
            [
                ("cr0", self.control[0]),
                ("cr2", self.control[1]),
                ("cr3", self.control[2]),
                ("cr4", self.control[3]),
            ],
        ];
        for row in rows {
            write!(f, "\n ")?;
            for (name, value) in row {
                write!(f, " {name} {value:016x}")?;
            }
        }
        write!(f, "\n  rflags {:#x} cs {:#x}", r.rflags, self.cs)
    }
}

impl std::error::Error for Unsupported {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_bytes_rip_and_registers() {
        let mut unsupported = Unsupported::new(Reason::Instruction);
        let regs = kvm_regs {
            rip: 0xffff_ffff_8100_0000,
            r15: 0xfeed,
            ..Default::default()
        };
        unsupported.set_place(&[0x0f, 0x01, 0xfe], &regs, &kvm_sregs::default());
        let text = unsupported.to_string();
        assert!(
            text.contains("rip 0xffffffff81000000: 0f 01 fe\n"),
            "{text}"
        );
        assert!(text.contains("r15 000000000000feed"), "{text}");
        assert_eq!(text.lines().count(), 8, "{text}");
    }
}
