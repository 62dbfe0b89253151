//! What each instruction does to registers, memory and extended state (Intel SDM 2).

use std::io;
use std::os::fd::AsRawFd;

use bulkhead_devices::GuestMemory;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::Assist;
use super::decode::{Address, Instruction, Operand, Operation, SaveForm, general, general_mut};
use super::exception::Exception;
use super::paging::{Access, Fault, Paging, Window};
use super::unsupported::Reason;
use super::xsave::{AreaError, FIXED_SIZE, GeneralProtection};

/// Bytes of KVM's XSAVE buffer where it does not say.
pub(super) const XSAVE_SIZE: usize = size_of::<kvm_xsave>();

// <linux/kvm.h>; kvm-ioctls offers the first two only for buffers of its own shape.
const KVM_GET_XSAVE: libc::c_ulong = 0x9000_aea4;
const KVM_GET_XSAVE2: libc::c_ulong = 0x9000_aecf;
const KVM_SET_XSAVE: libc::c_ulong = 0x5000_aea5;

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;

/// CF, PF, AF, ZF, SF and OF.
const STATUS_FLAGS: u64 = 0x8d5;
const RFLAGS_ZF: u64 = 1 << 6;
const RFLAGS_AC: u64 = 1 << 18;

/// FSW.ES: an unmasked x87 exception is pending.
const FSW_ES: u16 = 1 << 7;
const IA32_XSS: u32 = 0xda0;
/// CRC-32C, reflected.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// What an instruction came to.
pub(super) enum Effect {
    /// It is done.
    Finished,
    /// It is done, and raises this.
    Trap(Exception),
    /// It is not done, and raises this.
    Raise(Exception),
}

/// Why an instruction is not done.
pub(super) enum Failure {
    /// The guest's doing.
    Raise(Exception),
    /// Ours.
    Unsupported(Reason),
}

impl From<Exception> for Failure {
    fn from(exception: Exception) -> Self {
        Failure::Raise(exception)
    }
}

impl From<GeneralProtection> for Failure {
    fn from(_: GeneralProtection) -> Self {
        Failure::Raise(Exception::GeneralProtection)
    }
}

impl From<AreaError> for Failure {
    fn from(error: AreaError) -> Self {
        match error {
            AreaError::GeneralProtection => Failure::Raise(Exception::GeneralProtection),
            AreaError::OutOfBounds => Failure::Unsupported(Reason::Instruction),
        }
    }
}

fn host(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Failure {
    move |error| Failure::Unsupported(Reason::Host(what, error.into()))
}

/// The vCPU and memory that an instruction works on.
pub(super) struct Cpu<'a> {
    pub vcpu: &'a VcpuFd,
    pub memory: &'a GuestMemory,
    pub paging: Paging,
    pub sregs: &'a kvm_sregs,
    pub regs: &'a mut kvm_regs,
}

impl<'a> Cpu<'a> {
    fn linear(&self, instruction: &Instruction, address: &Address) -> u64 {
        let (fs, gs) = (self.sregs.fs.base, self.sregs.gs.base);
        address.linear(self.regs, instruction.length, fs, gs)
    }

    /// Opens `len` bytes at the instruction's memory operand, which must start at a multiple of
    /// `align`.
    fn window(
        &self,
        instruction: &Instruction,
        len: usize,
        align: u64,
        access: Access,
    ) -> Result<Window<'a>, Failure> {
        let Operand::Memory(address) = &instruction.operand else {
            return Err(Failure::Unsupported(Reason::Instruction));
        };
        let linear = self.linear(instruction, address);
        if !linear.is_multiple_of(align) {
            return Err(Exception::GeneralProtection.into());
        }
        Window::new(self.memory, &self.paging, linear, len, access).map_err(|fault| match fault {
            Fault::Page { address, error } => Exception::Page { address, error }.into(),
            Fault::NotCanonical if address.is_on_stack() => Exception::Stack.into(),
            Fault::NotCanonical => Exception::GeneralProtection.into(),
            Fault::NotMemory(physical) => Failure::Unsupported(Reason::NotMemory(physical)),
        })
    }

    /// Reads the source operand, `instruction.size` bytes.
    fn source(&self, instruction: &Instruction) -> Result<u64, Failure> {
        let size = usize::from(instruction.size).min(8);
        let value = match instruction.operand {
            Operand::Register(number @ 4..=7) if size == 1 && !instruction.has_rex => {
                general(self.regs, number - 4) >> 8
            }
            Operand::Register(number) => general(self.regs, number),
            _ => {
                let mut bytes = [0; 8];
                self.window(instruction, size, 1, Access::Read)?
                    .read(0, &mut bytes[..size])
                    .ok_or(Failure::Unsupported(Reason::Instruction))?;
                u64::from_le_bytes(bytes)
            }
        };
        Ok(match size {
            8 => value,
            _ => value & ((1 << (size * 8)) - 1),
        })
    }

    /// Extended state may be used, or the processor says why not.
    fn require_xsave(&self) -> Result<(), Failure> {
        if self.sregs.cr4 & CR4_OSXSAVE == 0 {
            return Err(Exception::InvalidOpcode.into());
        }
        if self.sregs.cr0 & CR0_TS != 0 {
            return Err(Exception::DeviceNotAvailable.into());
        }
        Ok(())
    }

    fn require_sse(&self) -> Result<(), Failure> {
        if self.sregs.cr0 & CR0_EM != 0 || self.sregs.cr4 & CR4_OSFXSR == 0 {
            return Err(Exception::InvalidOpcode.into());
        }
        if self.sregs.cr0 & CR0_TS != 0 {
            return Err(Exception::DeviceNotAvailable.into());
        }
        Ok(())
    }

    fn xcr0(&self) -> Result<u64, Failure> {
        let xcrs = self.vcpu.get_xcrs().map_err(host("reading XCR0"))?;
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        let xcr0 = xcrs.xcrs[..count].iter().find(|entry| entry.xcr == 0);
        Ok(xcr0.map_or(1, |entry| entry.value))
    }

    /// KVM hands out no supervisor components, so that a guest must have none.
    fn require_no_supervisor_state(&self) -> Result<(), Failure> {
        let entry = kvm_msr_entry {
            index: IA32_XSS,
            ..Default::default()
        };
        let Ok(mut msrs) = Msrs::from_entries(&[entry]) else {
            return Ok(());
        };
        // A KVM that does not know the MSR does not let the guest set it.
        let read = self.vcpu.get_msrs(&mut msrs).unwrap_or(0);
        if read == 1 && msrs.as_slice().iter().any(|entry| entry.data != 0) {
            return Err(Failure::Unsupported(Reason::SupervisorState));
        }
        Ok(())
    }

    /// The mask in EDX:EAX.
    fn mask(&self) -> u64 {
        self.regs.rdx << 32 | self.regs.rax & 0xffff_ffff
    }

    fn set_edx_eax(&mut self, value: u64) {
        self.regs.rax = value & 0xffff_ffff;
        self.regs.rdx = value >> 32;
    }

    /// Writes a result of 2, 4 or 8 bytes; 4 clear the upper half.
    fn set_register(&mut self, number: u8, size: u8, value: u64) {
        let register = general_mut(self.regs, number);
        *register = match size {
            2 => *register & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    fn set_flag(&mut self, flag: u64, value: bool) {
        if value {
            self.regs.rflags |= flag;
        } else {
            self.regs.rflags &= !flag;
        }
    }
}

impl Assist {
    pub(super) fn execute(
        &mut self,
        instruction: &Instruction,
        cpu: &mut Cpu,
    ) -> Result<Effect, Failure> {
        match instruction.operation {
            Operation::Breakpoint => return Ok(Effect::Trap(Exception::Breakpoint)),
            Operation::Undefined => return Err(Exception::InvalidOpcode.into()),
            Operation::Fwait => fwait(cpu)?,
            Operation::Save(form) => self.save(form, instruction, cpu)?,
            Operation::Restore => self.restore(false, instruction, cpu)?,
            Operation::RestoreSupervisor => self.restore(true, instruction, cpu)?,
            Operation::LoadMxcsr => self.load_mxcsr(instruction, cpu)?,
            Operation::StoreMxcsr => self.store_mxcsr(instruction, cpu)?,
            Operation::CompareExchange16 => compare_exchange(instruction, cpu)?,
            Operation::PopulationCount => {
                let value = cpu.source(instruction)?;
                let count = u64::from(value.count_ones());
                cpu.set_register(instruction.register, instruction.size, count);
                cpu.set_flag(STATUS_FLAGS, false);
                cpu.set_flag(RFLAGS_ZF, value == 0);
            }
            Operation::Crc32 => {
                let value = cpu.source(instruction)?.to_le_bytes();
                let data = &value[..usize::from(instruction.size).min(8)];
                let crc = crc32c(general(cpu.regs, instruction.register) as u32, data);
                cpu.set_register(instruction.register, 8, u64::from(crc));
            }
            Operation::AlignmentCheck(value) => cpu.set_flag(RFLAGS_AC, value),
            Operation::GetXcr => self.get_xcr(cpu)?,
            // The data is as good in the host's cache as anywhere.
            Operation::CacheHint => {
                cpu.window(instruction, 1, 1, Access::Read)?;
            }
        }
        Ok(Effect::Finished)
    }

    fn save(
        &mut self,
        form: SaveForm,
        instruction: &Instruction,
        cpu: &Cpu,
    ) -> Result<(), Failure> {
        cpu.require_xsave()?;
        if form == SaveForm::Supervisor {
            cpu.require_no_supervisor_state()?;
        }
        let requested = cpu.xcr0()? & cpu.mask();
        let compacted = matches!(form, SaveForm::Compacted | SaveForm::Supervisor);
        let len = self.layout.extent(requested, compacted);
        let mut window = cpu.window(instruction, len, 64, Access::Write)?;
        self.get_state(cpu)?;
        let wide = instruction.size == 8;
        self.layout
            .save(form, wide, requested, &self.state, &mut window)?;
        Ok(())
    }

    fn restore(
        &mut self,
        supervisor: bool,
        instruction: &Instruction,
        cpu: &Cpu,
    ) -> Result<(), Failure> {
        cpu.require_xsave()?;
        if supervisor {
            cpu.require_no_supervisor_state()?;
        }
        let xcr0 = cpu.xcr0()?;
        let requested = xcr0 & cpu.mask();
        let mut window = cpu.window(instruction, FIXED_SIZE, 64, Access::Read)?;
        let header = self.layout.check_header(supervisor, xcr0, &window)?;
        let len = if header.compacted {
            self.layout.extent(header.present, true)
        } else {
            self.layout.extent(requested & header.saved, false)
        };
        if len > FIXED_SIZE {
            window = cpu.window(instruction, len, 64, Access::Read)?;
        }
        // Reading the old state is needless where nothing of it stays.
        if requested & self.layout.features() == self.layout.features() {
            self.state.reset();
        } else {
            self.get_state(cpu)?;
        }
        let wide = instruction.size == 8;
        self.layout
            .restore(wide, requested, &header, &window, &mut self.state)?;
        self.set_state(cpu)
    }

    fn load_mxcsr(&mut self, instruction: &Instruction, cpu: &Cpu) -> Result<(), Failure> {
        cpu.require_sse()?;
        let mut bytes = [0; 4];
        cpu.window(instruction, 4, 1, Access::Read)?
            .read(0, &mut bytes)
            .ok_or(AreaError::OutOfBounds)?;
        self.get_state(cpu)?;
        self.state.load_mxcsr(u32::from_le_bytes(bytes))?;
        self.set_state(cpu)
    }

    fn store_mxcsr(&mut self, instruction: &Instruction, cpu: &Cpu) -> Result<(), Failure> {
        cpu.require_sse()?;
        let window = cpu.window(instruction, 4, 1, Access::Write)?;
        self.get_state(cpu)?;
        window
            .write(0, &self.state.mxcsr().to_le_bytes())
            .ok_or(AreaError::OutOfBounds)?;
        Ok(())
    }

    fn get_xcr(&mut self, cpu: &mut Cpu) -> Result<(), Failure> {
        if cpu.sregs.cr4 & CR4_OSXSAVE == 0 {
            return Err(Exception::InvalidOpcode.into());
        }
        let xcr0 = cpu.xcr0()?;
        let value = match cpu.regs.rcx as u32 {
            0 => xcr0,
            1 => {
                self.get_state(cpu)?;
                xcr0 & self.state.in_use()
            }
            _ => return Err(Exception::GeneralProtection.into()),
        };
        cpu.set_edx_eax(value);
        Ok(())
    }

    fn get_state(&mut self, cpu: &Cpu) -> Result<(), Failure> {
        self.get_xsave(cpu.vcpu)
            .map_err(|e| Failure::Unsupported(Reason::Host("reading the XSAVE state", e)))
    }

    fn set_state(&mut self, cpu: &Cpu) -> Result<(), Failure> {
        let bytes = self.state.bytes();
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 said, or a `kvm_xsave`; the buffer was
        // made that long, and it outlives the call.
        let result =
            unsafe { libc::ioctl(cpu.vcpu.as_raw_fd(), KVM_SET_XSAVE as _, bytes.as_ptr()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return Err(Failure::Unsupported(Reason::Host(
                "writing the XSAVE state",
                error,
            )));
        }
        Ok(())
    }

    /// Reads the extended state from KVM.
    pub(super) fn get_xsave(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        let request = if self.has_xsave2 {
            KVM_GET_XSAVE2
        } else {
            KVM_GET_XSAVE
        };
        let bytes = self.state.bytes_mut();
        // SAFETY: KVM_GET_XSAVE2 fills as many bytes as KVM_CAP_XSAVE2 said, KVM_GET_XSAVE a
        // `kvm_xsave`; the buffer was made at least as long as both, and is ours alone.
        let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), request as _, bytes.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn fwait(cpu: &Cpu) -> Result<(), Failure> {
    if cpu.sregs.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        return Err(Exception::DeviceNotAvailable.into());
    }
    let fpu = cpu.vcpu.get_fpu().map_err(host("reading the x87 state"))?;
    if fpu.fsw & FSW_ES != 0 {
        return Err(Exception::FloatingPoint.into());
    }
    Ok(())
}

fn compare_exchange(instruction: &Instruction, cpu: &mut Cpu) -> Result<(), Failure> {
    let window = cpu.window(instruction, 16, 16, Access::Write)?;
    let physical = window.physical();
    let slice = cpu
        .memory
        .get_slice(GuestAddress(physical), 16)
        .map_err(|_| Failure::Unsupported(Reason::NotMemory(physical)))?;
    let guard = slice.ptr_guard_mut();
    let pointer = guard.as_ptr().cast::<u128>();
    if !pointer.is_aligned() || !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return Err(Failure::Unsupported(Reason::Instruction));
    }
    let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let expected = wide(cpu.regs.rdx, cpu.regs.rax);
    let new = wide(cpu.regs.rcx, cpu.regs.rbx);
    // SAFETY: the slice is sixteen mapped bytes of guest memory, aligned, and guarded while we use
    // them; the guest may change them at any time, which an atomic access is for; the processor has
    // the instruction, as just asked.
    let old = unsafe { compare_exchange_16(pointer, expected, new) };
    slice.bitmap().mark_dirty(0, 16);
    cpu.set_flag(RFLAGS_ZF, old == expected);
    if old != expected {
        cpu.regs.rax = old as u64;
        cpu.regs.rdx = (old >> 64) as u64;
    }
    Ok(())
}

/// In assembly, because what the standard library offers becomes, in a build that is not optimised, a
/// call to a library that is not there.
///
/// # Safety
/// `pointer` must be valid for reads and writes and aligned to 16, and the processor must have the
/// instruction.
unsafe fn compare_exchange_16(pointer: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller's promise makes the access good. RBX, which the compiler keeps for itself,
    // is put back; nothing but the named registers and the flags changes.
    unsafe {
        std::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") pointer,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

fn crc32c(crc: u32, data: &[u8]) -> u32 {
    data.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 != 0 { CASTAGNOLI } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnolis() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
