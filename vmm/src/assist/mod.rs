//! What a software-assisted KVM needs from us to run an ordinary guest kernel.
//!
//! Such a KVM has no VMX or SVM under it. It runs guest programs on the hardware, and the guest's
//! kernel through KVM's instruction emulator. What that emulator does not know ends `KVM_RUN` with
//! `KVM_EXIT_INTERNAL_ERROR`; the [`Assist`] finishes the instruction as the processor would have
//! done and lets the vCPU go on. What it does not know either is [`Unsupported`], and ends the VM.
//!
//! [`probe::probe`] tells such a host from a hardware one. On hardware there is no `Assist`.
//!
//! Everything read here (instruction bytes, registers, page tables, XSAVE areas) is the guest's, and
//! hostile.

pub mod cmdline;
mod counters;
pub mod decode;
mod exception;
mod execute;
pub mod paging;
pub mod probe;
pub mod unsupported;
pub mod xsave;

use std::sync::Arc;

use bulkhead_devices::GuestMemory;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_MAX_CPUID_ENTRIES,
    KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd, VmFd};

pub use counters::Counters;
pub use unsupported::{Reason, Unsupported};

use decode::{DecodeError, Instruction, MAX_LENGTH};
use exception::Exception;
use execute::{Effect, Failure};
use paging::{Access, Paging, Window};
use xsave::{Layout, State};

/// Faults at one place, with nothing else in between, before the guest is called stuck. A page fault
/// is normally resolved by the first.
const MAX_REPEATED_FAULTS: u32 = 1000;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;

/// What kind of KVM this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// VMX or SVM: the guest's kernel runs on the hardware. The norm.
    Hardware,
    /// A KVM without either, that runs the guest's kernel through KVM's instruction emulator.
    SoftwareAssisted,
}

/// What became of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its effect is in the registers and memory, and RIP is past it.
    Finished,
    /// The guest gets an exception with this vector.
    Raised(u8),
}

/// Why there can be no assist for a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum AssistError {
    /// KVM does not say what an XSAVE area looks like.
    #[error("cannot read the supported CPUID from KVM: {0}")]
    Cpuid(kvm_ioctls::Error),
    /// The vCPU's extended state cannot be read.
    #[error("cannot read a vCPU's XSAVE state from KVM: {0}")]
    Xsave(std::io::Error),
}

/// Prepares the VM of a software-assisted host, before its vCPUs run.
///
/// The emulator meets `vmcall` by writing the "right" hypercall instruction over it and trying again,
/// for ever, where it believes the other one to be right. With this quirk off the guest gets `#UD`.
/// A KVM without the switch keeps its loop; the guest's CPUID then keeps the guest from trying.
pub fn prepare_vm(vm: &VmFd) {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_DISABLE_QUIRKS2,
        args: [u64::from(KVM_X86_QUIRK_FIX_HYPERCALL_INSN), 0, 0, 0],
        ..Default::default()
    };
    let known = vm.check_extension_raw(u64::from(KVM_CAP_DISABLE_QUIRKS2));
    if u32::try_from(known).unwrap_or(0) & KVM_X86_QUIRK_FIX_HYPERCALL_INSN != 0
        && let Err(e) = vm.enable_cap(&cap)
    {
        log::warn!("KVM keeps rewriting hypercall instructions ({e})");
    }
}

/// Finishes instructions for one vCPU.
#[derive(Debug)]
pub struct Assist {
    counters: Arc<Counters>,
    layout: Layout,
    state: State,
    has_xsave2: bool,
    has_sync_regs: bool,
    last_fault: Option<(u64, Exception)>,
    repeated: u32,
}

impl Assist {
    /// Makes the assist of `vcpu`, whose registers are from now on shared through its run structure
    /// where KVM can do that.
    ///
    /// With shared registers a change made by [`Assist::finish`] reaches KVM at the next `KVM_RUN`:
    /// whoever wants to read or save a vCPU's state first enters it with `immediate_exit`, as KVM
    /// demands after any exit.
    pub fn new(kvm: &Kvm, vcpu: &mut VcpuFd, counters: Arc<Counters>) -> Result<Self, AssistError> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(AssistError::Cpuid)?;
        let xsave2_size = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let size = xsave2_size.max(execute::XSAVE_SIZE);

        let wanted = kvm_bindings::KVM_SYNC_X86_REGS | kvm_bindings::KVM_SYNC_X86_SREGS;
        let offered = u32::try_from(kvm.check_extension_int(Cap::SyncRegs)).unwrap_or(0);
        let has_sync_regs = offered & wanted == wanted;
        if has_sync_regs {
            vcpu.set_sync_valid_reg(SyncReg::Register);
            vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        }

        let mut assist = Assist {
            counters,
            layout: Layout::new(&cpuid, size),
            state: State::new(size),
            has_xsave2: xsave2_size != 0,
            has_sync_regs,
            last_fault: None,
            repeated: 0,
        };
        assist.get_xsave(vcpu).map_err(AssistError::Xsave)?;
        assist.state.learn_mxcsr_mask();
        Ok(assist)
    }

    /// Finishes the instruction that made the last `KVM_RUN` of `vcpu` end with
    /// `KVM_EXIT_INTERNAL_ERROR`. Then run the vCPU again.
    pub fn finish(
        &mut self,
        vcpu: &mut VcpuFd,
        memory: &GuestMemory,
    ) -> Result<Outcome, Box<Unsupported>> {
        let (mut regs, sregs) = self
            .registers(vcpu)
            .map_err(|e| Unsupported::new(Reason::Host("reading its registers", e.into())))?;
        let mut code = Code::default();
        let result = self.try_finish(vcpu, memory, &mut regs, &sregs, &mut code);
        result.map_err(|reason| {
            let mut unsupported = Unsupported::new(reason);
            unsupported.set_place(code.bytes(), &regs, &sregs);
            unsupported
        })
    }

    fn try_finish(
        &mut self,
        vcpu: &mut VcpuFd,
        memory: &GuestMemory,
        regs: &mut kvm_regs,
        sregs: &kvm_sregs,
        code: &mut Code,
    ) -> Result<Outcome, Reason> {
        *code = exit_code(vcpu)?;
        // The emulator's own exits are all from supervisor mode, but that is KVM's word only.
        if sregs.cs.l == 0 || sregs.cs.selector & 3 != 0 {
            return Err(Reason::Mode);
        }
        let paging = Paging::new(sregs, regs.rflags);
        let instruction = match decode::decode(code.bytes()) {
            // KVM fetches up to the end of a page only.
            Err(DecodeError::Truncated) => {
                code.fetch(memory, &paging, regs.rip);
                decode::decode(code.bytes())
            }
            decoded => decoded,
        }
        .map_err(|_| Reason::Instruction)?;

        self.counters.count(instruction.operation);
        let mut cpu = execute::Cpu {
            vcpu,
            memory,
            paging,
            sregs,
            regs,
        };
        let effect = match self.execute(&instruction, &mut cpu) {
            Ok(effect) => effect,
            Err(Failure::Raise(exception)) => Effect::Raise(exception),
            Err(Failure::Unsupported(reason)) => return Err(reason),
        };
        self.complete(vcpu, &instruction, effect, regs, sregs)
    }

    /// Moves RIP, hands the registers back to KVM and raises what is to be raised.
    fn complete(
        &mut self,
        vcpu: &mut VcpuFd,
        instruction: &Instruction,
        effect: Effect,
        regs: &mut kvm_regs,
        sregs: &kvm_sregs,
    ) -> Result<Outcome, Reason> {
        let single_step = regs.rflags & RFLAGS_TF != 0;
        let exception = match effect {
            Effect::Raise(exception) => {
                self.note_fault(regs.rip, exception)?;
                Some(exception)
            }
            Effect::Finished | Effect::Trap(_) => {
                self.last_fault = None;
                regs.rip = regs.rip.wrapping_add(u64::from(instruction.length));
                regs.rflags &= !RFLAGS_RF;
                match effect {
                    Effect::Trap(exception) => Some(exception),
                    _ if single_step => Some(Exception::SingleStep),
                    _ => None,
                }
            }
        };
        let Some(exception) = exception else {
            self.set_registers(vcpu, regs)
                .map_err(|e| Reason::Host("writing its registers", e.into()))?;
            return Ok(Outcome::Finished);
        };
        // By ioctl and in this order: setting the registers drops what KVM had queued.
        vcpu.set_regs(regs)
            .and_then(|()| exception.inject(vcpu, sregs))
            .map_err(|e| Reason::Host("injecting an exception", e.into()))?;
        Ok(Outcome::Raised(exception.vector()))
    }

    /// A guest that faults at one place for ever would keep us busy for ever.
    fn note_fault(&mut self, rip: u64, exception: Exception) -> Result<(), Reason> {
        if self.last_fault == Some((rip, exception)) {
            self.repeated += 1;
            if self.repeated >= MAX_REPEATED_FAULTS {
                return Err(Reason::NoProgress(exception.vector()));
            }
        } else {
            self.last_fault = Some((rip, exception));
            self.repeated = 0;
        }
        Ok(())
    }

    fn registers(&self, vcpu: &VcpuFd) -> Result<(kvm_regs, kvm_sregs), kvm_ioctls::Error> {
        if self.has_sync_regs {
            let shared = vcpu.sync_regs();
            return Ok((shared.regs, shared.sregs));
        }
        Ok((vcpu.get_regs()?, vcpu.get_sregs()?))
    }

    fn set_registers(&self, vcpu: &mut VcpuFd, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error> {
        if !self.has_sync_regs {
            return vcpu.set_regs(regs);
        }
        vcpu.sync_regs_mut().regs = *regs;
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        Ok(())
    }
}

/// The bytes at RIP.
#[derive(Debug, Default)]
struct Code {
    bytes: [u8; MAX_LENGTH],
    len: usize,
}

impl Code {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    /// Reads as many bytes at `rip` as there are, from guest memory.
    fn fetch(&mut self, memory: &GuestMemory, paging: &Paging, rip: u64) {
        self.len = 0;
        for len in (1..=MAX_LENGTH).rev() {
            let Ok(window) = Window::new(memory, paging, rip, len, Access::Read) else {
                continue;
            };
            if window.read(0, &mut self.bytes[..len]).is_some() {
                self.len = len;
                return;
            }
        }
    }
}

/// What KVM says of the exit: that its emulator failed, and mostly at which bytes.
fn exit_code(vcpu: &mut VcpuFd) -> Result<Code, Reason> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return Err(Reason::Exit(run.exit_reason));
    }
    // SAFETY: the exit reason says that this member of the union is the one in use; all members are
    // plain integers.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Err(Reason::InternalError(failure.suberror));
    }
    let mut code = Code::default();
    let has_bytes = failure.ndata >= 3
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    if has_bytes {
        // SAFETY: the flag says that these bytes are filled in; any bytes are valid ones.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        code.bytes = instruction.insn_bytes;
        code.len = usize::from(instruction.insn_size).min(MAX_LENGTH);
    }
    Ok(code)
}
