//! Tells a hardware KVM from a software-assisted one.

use super::HostKind;
use std::io;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// Why the host's kind is not known.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The throw-away VM could not be made.
    #[error("cannot probe what kind of KVM this host has: {0} failed: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// There was no page of memory for it.
    #[error("cannot probe what kind of KVM this host has: no memory: {0}")]
    Memory(io::Error),
    /// It ran, and did something no KVM should do.
    #[error("cannot probe what kind of KVM this host has: the probe ended with {0}")]
    Exit(String),
}

const PAGE_SIZE: usize = 4096;
/// Where in the page the code is.
const CODE: usize = 0x800;
/// Three instructions that every 64-bit processor executes in supervisor mode and that KVM's
/// emulator has never known: `fwait`, `fnclex`, `emms`; and a `hlt`.
const PROBE: [u8; 6] = [0x9b, 0xdb, 0xe2, 0x0f, 0x77, 0xf4];

/// One page, mapped until dropped.
struct Page(*mut u8);

impl Page {
    fn new() -> Result<Self, ProbeError> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing
        // that exists.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(ProbeError::Memory(io::Error::last_os_error()));
        }
        Ok(Page(page.cast()))
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= PAGE_SIZE);
        // SAFETY: in bounds, as just checked; the page is mapped, ours, and no vCPU runs yet.
        unsafe {
            self.0
                .add(at)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this.
        unsafe { libc::munmap(self.0.cast(), PAGE_SIZE) };
    }
}

/// Runs a few supervisor instructions in a throw-away VM of one page, and sees who executes them.
pub fn probe(kvm: &Kvm) -> Result<HostKind, ProbeError> {
    let mut page = Page::new()?;
    page.write(CODE, &PROBE);
    // The page is its own page table, of every level: entry 0 of each leads to the page itself.
    page.write(0, &3u64.to_le_bytes());

    let vm = kvm
        .create_vm()
        .map_err(|e| ProbeError::Kvm("KVM_CREATE_VM", e))?;
    let result = run(&vm, &page);
    // The VM's memory slot goes with the VM, before the page does.
    drop(vm);
    result
}

fn run(vm: &VmFd, page: &Page) -> Result<HostKind, ProbeError> {
    let region = kvm_userspace_memory_region {
        memory_size: PAGE_SIZE as u64,
        userspace_addr: page.0 as u64,
        ..Default::default()
    };
    // SAFETY: the page is mapped, and the caller drops the VM before it.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|e| ProbeError::Kvm("KVM_SET_USER_MEMORY_REGION", e))?;
    let mut vcpu = vm
        .create_vcpu(0)
        .map_err(|e| ProbeError::Kvm("KVM_CREATE_VCPU", e))?;
    set_registers(&vcpu)?;

    let stop = match vcpu.run() {
        Ok(VcpuExit::Hlt) => return Ok(HostKind::Hardware),
        Ok(VcpuExit::InternalError) => None,
        Ok(other) => Some(format!("{other:?}")),
        Err(e) => return Err(ProbeError::Kvm("KVM_RUN", e)),
    };
    if let Some(stop) = stop {
        return Err(ProbeError::Exit(stop));
    }
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason says that this member of the union is in use; it is integers only.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    if run.exit_reason == KVM_EXIT_INTERNAL_ERROR && suberror == KVM_INTERNAL_ERROR_EMULATION {
        return Ok(HostKind::SoftwareAssisted);
    }
    Err(ProbeError::Exit(format!("internal error {suberror}")))
}

/// 64-bit supervisor mode, at the code.
fn set_registers(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| ProbeError::Kvm("KVM_GET_SREGS", e))?;
    sregs.cs = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        l: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.ss = kvm_segment {
        selector: 16,
        type_: 3,
        db: 1,
        l: 0,
        ..sregs.cs
    };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
        *segment = sregs.ss;
    }
    sregs.cr0 = 0x8000_0031; // PG, NE, ET, PE
    sregs.cr3 = 0;
    sregs.cr4 = 0x20; // PAE
    sregs.efer = 0x500; // LMA, LME
    vcpu.set_sregs(&sregs)
        .map_err(|e| ProbeError::Kvm("KVM_SET_SREGS", e))?;
    let regs = kvm_regs {
        rip: CODE as u64,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(|e| ProbeError::Kvm("KVM_SET_REGS", e))
}
