//! A virtual machine of one megabyte that runs a few bytes of 64-bit supervisor code, and says how
//! they ended.

use std::sync::Arc;

use bulkhead_devices::GuestMemory;
use bulkhead_vmm::assist::{Assist, Counters, Unsupported};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const GDT: u64 = 0x500;
const PAGE_TABLES: u64 = 0x1000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x7000;
/// Where the code under test starts.
pub const CODE: u64 = 0x1_0000;
/// The stack's top.
pub const STACK: u64 = 0x2_0000;
/// Sixteen pages to read and write.
pub const DATA: u64 = 0x3_0000;
/// A page that may only be read.
pub const READ_ONLY: u64 = 0x4_0000;
/// A page that is not there. The one after it is.
pub const UNMAPPED: u64 = 0x4_1000;
/// A page that belongs to user mode.
pub const USER: u64 = 0x4_3000;
/// A page whose physical address is not memory.
pub const NOT_MEMORY: u64 = 0x10_0000;
const MEMORY_SIZE: usize = 0x10_0000;

/// How a run ended.
#[derive(Debug)]
pub enum Stop {
    /// At a `hlt` of the code's own.
    Halted,
    /// An exception reached its handler.
    Exception(Exception),
    /// KVM's emulator gave up, and there was no assist.
    EmulationFailure,
    /// The assist gave up.
    Unsupported(Box<Unsupported>),
    /// Anything else.
    #[allow(dead_code)] // for `{:?}`
    Other(String),
}

/// What an exception handler found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// The return address pushed.
    pub rip: u64,
    pub cr2: u64,
}

pub struct TinyVm {
    pub kvm: Kvm,
    pub vm: VmFd,
    pub vcpu: VcpuFd,
    pub memory: Arc<GuestMemory>,
    pub regs: kvm_regs,
    pub assist: Option<Assist>,
    pub counters: Arc<Counters>,
}

impl TinyVm {
    /// Fails loudly where there is no KVM: these tests mean nothing without one.
    pub fn new() -> Self {
        let kvm = Kvm::new().expect("these tests need /dev/kvm");
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        let memory =
            GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).expect("guest memory");
        let host = memory.get_host_address(GuestAddress(0)).expect("mapped");
        // SAFETY: the memory is mapped and outlives the VM, which this struct drops first.
        unsafe {
            vm.set_user_memory_region(kvm_userspace_memory_region {
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size: MEMORY_SIZE as u64,
                userspace_addr: host as u64,
            })
        }
        .expect("KVM_SET_USER_MEMORY_REGION");
        let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        let cpuid: CpuId = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("KVM_GET_SUPPORTED_CPUID");
        vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");

        let mut this = TinyVm {
            kvm,
            vm,
            vcpu,
            memory: Arc::new(memory),
            regs: kvm_regs {
                rip: CODE,
                rsp: STACK,
                rflags: 2,
                ..Default::default()
            },
            assist: None,
            counters: Arc::default(),
        };
        this.write_tables();
        this.set_system_registers();
        this
    }

    /// The same with the assist on.
    pub fn assisted() -> Self {
        let mut this = Self::new();
        bulkhead_vmm::assist::prepare_vm(&this.vm);
        this.assist =
            Some(Assist::new(&this.kvm, &mut this.vcpu, this.counters.clone()).expect("assist"));
        this
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("inside the tiny VM");
    }

    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("inside the tiny VM");
        bytes
    }

    pub fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address))
    }

    /// Runs `code`, and a `hlt` after it, with the registers set so far; leaves the registers of
    /// the end in `regs`.
    pub fn run(&mut self, code: &[u8]) -> Stop {
        self.write(CODE, code);
        self.write(CODE + code.len() as u64, &[0xf4]);
        self.regs.rip = CODE;
        self.vcpu.set_regs(&self.regs).expect("KVM_SET_REGS");
        let stop = self.run_to_stop();
        self.regs = self.vcpu.get_regs().expect("KVM_GET_REGS");
        match stop {
            Stop::Exception(_) => Stop::Exception(self.exception()),
            other => other,
        }
    }

    fn run_to_stop(&mut self) -> Stop {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => return Stop::Halted,
                Ok(VcpuExit::IoOut(0x10, _)) => {
                    return Stop::Exception(Exception {
                        vector: 0,
                        error: None,
                        rip: 0,
                        cr2: 0,
                    });
                }
                Ok(VcpuExit::InternalError) => match self.assist.as_mut() {
                    None => return Stop::EmulationFailure,
                    Some(assist) => match assist.finish(&mut self.vcpu, &self.memory) {
                        Ok(_) => {}
                        Err(unsupported) => return Stop::Unsupported(unsupported),
                    },
                },
                Ok(other) => return Stop::Other(format!("{other:?}")),
                Err(e) => return Stop::Other(format!("KVM_RUN: {e}")),
            }
        }
    }

    /// Reads what the processor pushed for the handler that is running.
    fn exception(&self) -> Exception {
        let vector = ((self.regs.rip - HANDLERS) / 16) as u8;
        let mut frame = self.regs.rsp;
        let error = matches!(vector, 8 | 10..=14 | 17 | 21).then(|| {
            frame += 8;
            self.read_u64(frame - 8) as u32
        });
        Exception {
            vector,
            error,
            rip: self.read_u64(frame),
            cr2: self.vcpu.get_sregs().expect("KVM_GET_SREGS").cr2,
        }
    }

    /// Replaces the handler of an exception, at most 16 bytes.
    pub fn set_handler(&self, vector: u8, code: &[u8]) {
        self.write(HANDLERS + u64::from(vector) * 16, code);
    }

    fn write_tables(&mut self) {
        let (pml4, pdpt, pd, pt) = (
            PAGE_TABLES,
            PAGE_TABLES + 0x1000,
            PAGE_TABLES + 0x2000,
            PAGE_TABLES + 0x3000,
        );
        // Every level lets user mode in, so that the last one decides.
        self.write(pml4, &(pdpt | 7).to_le_bytes());
        self.write(pdpt, &(pd | 7).to_le_bytes());
        self.write(pd, &(pt | 7).to_le_bytes());
        for page in 0..512u64 {
            let flags = match page << 12 {
                READ_ONLY => 1,
                UNMAPPED => 0,
                USER => 7,
                _ => 3,
            };
            self.write(pt + page * 8, &(page << 12 | flags).to_le_bytes());
        }
        for (i, descriptor) in [0, 0x00af_9b00_0000_ffffu64, 0x00cf_9300_0000_ffff]
            .iter()
            .enumerate()
        {
            self.write(GDT + i as u64 * 8, &descriptor.to_le_bytes());
        }
        for vector in 0..32u64 {
            let handler = HANDLERS + vector * 16;
            self.write(handler, &[0xe6, 0x10, 0xf4]); // out 0x10, al; hlt
            let gate = (handler & 0xffff) | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
            self.write(IDT + vector * 16, &gate.to_le_bytes());
        }
    }

    fn set_system_registers(&mut self) {
        let mut sregs = self.vcpu.get_sregs().expect("KVM_GET_SREGS");
        let data = kvm_segment {
            limit: 0xffff_ffff,
            selector: 16,
            type_: 3,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            selector: 8,
            type_: 11,
            db: 0,
            l: 1,
            ..data
        };
        for segment in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *segment = data;
        }
        sregs.tr = kvm_segment {
            limit: 0xffff,
            selector: 0,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 23;
        sregs.idt.base = IDT;
        sregs.idt.limit = 32 * 16 - 1;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr0 = 0x8001_0033; // PG, WP, NE, ET, MP, PE
        sregs.cr4 = 0x0004_0620; // OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
        sregs.efer = 0x500; // LMA, LME
        self.vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
        let mut xcrs = self.vcpu.get_xcrs().expect("KVM_GET_XCRS");
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].xcr = 0;
        xcrs.xcrs[0].value = 7;
        self.vcpu.set_xcrs(&xcrs).expect("KVM_SET_XCRS");
    }
}
