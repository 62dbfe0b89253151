//! The boot vCPU's state at the kernel's 64-bit entry point, and the tables it points to.
//!
//! By the 64-bit boot protocol: paging is on, kernel, zero page and command line are identity
//! mapped, a flat GDT is loaded with code and data at selectors 0x10 and 0x18, interrupts are off, and
//! RSI holds the address of the zero page. The other vCPUs wait for the kernel to start them and keep
//! the state KVM gives them.

use bulkhead_devices::GuestMemory;
use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use super::layout::{BOOT_STACK, GDT, PAGE_DIRECTORIES, PAGE_DIRECTORY, PDPT, PML4, ZERO_PAGE};

const CR0_PROTECTED_MODE: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

const PAGE_SIZE: u64 = 4096;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = PAGE_SIZE / 8;
/// Present, writable, and already marked accessed, so that no walk has to write to the table.
const TABLE_FLAGS: u64 = 0x23;
/// The same for a 2 MiB page, which is also already dirty.
const LARGE_PAGE_FLAGS: u64 = 0xe3;

/// `__BOOT_CS`, `__BOOT_DS` and, behind them, the task state segment that VMX wants to see.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Two unused descriptors, code, data, and a TSS, which takes the room of two in long mode.
const GDT_ENTRIES: usize = 6;

/// Writes page tables that map the first 4 GiB onto themselves in 2 MiB pages.
///
/// 4 GiB and not just the kernel, because then an initrd and the local APIC are mapped too; 2 MiB
/// pages, because not every CPU has 1 GiB ones.
pub fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_obj(PDPT.raw_value() | TABLE_FLAGS, PML4)?;
    let directory = |index| PAGE_DIRECTORY.raw_value() + index * PAGE_SIZE;
    write_table(memory, PDPT, PAGE_DIRECTORIES, |index| {
        directory(index) | TABLE_FLAGS
    })?;
    for gib in 0..PAGE_DIRECTORIES {
        write_table(memory, GuestAddress(directory(gib)), ENTRIES, |index| {
            ((gib * ENTRIES + index) * LARGE_PAGE_SIZE) | LARGE_PAGE_FLAGS
        })?;
    }
    Ok(())
}

/// Writes the GDT that [`boot_sregs`] loads.
pub fn write_gdt(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let mut gdt = [0u64; GDT_ENTRIES];
    for segment in [code_segment(), data_segment(), task_segment()] {
        gdt[usize::from(segment.selector / 8)] = descriptor(&segment);
    }
    memory.write_slice(&gdt.map(u64::to_le_bytes).concat(), GDT)
}

/// Makes `sregs`, as KVM gave them, those of a CPU in 64-bit mode on our tables.
pub fn boot_sregs(sregs: &mut kvm_sregs) {
    sregs.cs = code_segment();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data_segment();
    }
    sregs.tr = task_segment();
    sregs.gdt = kvm_dtable {
        base: GDT.raw_value(),
        limit: (GDT_ENTRIES * 8 - 1) as u16,
        ..Default::default()
    };
    // No IDT: an exception this early is a triple fault, which ends the VM.
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0_PROTECTED_MODE | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.cr3 = PML4.raw_value();
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

/// The general registers to enter a kernel at `entry`.
pub fn boot_regs(entry: GuestAddress) -> kvm_regs {
    kvm_regs {
        rip: entry.raw_value(),
        rsi: ZERO_PAGE.raw_value(),
        rsp: BOOT_STACK.raw_value(),
        rbp: BOOT_STACK.raw_value(),
        rflags: RFLAGS,
        ..Default::default()
    }
}

/// The x87 and SSE control words as `FNINIT` and a reset leave them.
pub fn boot_fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// 64-bit code, readable.
fn code_segment() -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        limit: u32::MAX,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    }
}

/// Flat data, writable.
fn data_segment() -> kvm_segment {
    kvm_segment {
        selector: DATA_SELECTOR,
        limit: u32::MAX,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

/// A busy 64-bit TSS at address 0: never used, but VM entry on Intel checks that there is one.
fn task_segment() -> kvm_segment {
    kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    }
}

/// A segment as it lies in the GDT (Intel SDM 3A 3.4.5). All of ours are based at 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |value: u8, position: u32| u64::from(value) << position;
    (limit & 0xffff)
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | ((limit >> 16 & 0xf) << 48)
        | bit(segment.avl, 52)
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
}

fn write_table(
    memory: &GuestMemory,
    table: GuestAddress,
    entries: u64,
    entry: impl Fn(u64) -> u64,
) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = (0..entries)
        .flat_map(|index| entry(index).to_le_bytes())
        .collect();
    memory.write_slice(&bytes, table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory")
    }

    /// What a CPU does with the tables: four levels down, stopping at a large page.
    fn translate(memory: &GuestMemory, cr3: u64, virt: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| -> Option<u64> {
            let entry: u64 = memory
                .read_obj(GuestAddress((table & !0xfff) + index * 8))
                .ok()?;
            (entry & 3 == 3).then_some(entry)
        };
        let pml4e = entry(cr3, virt >> 39 & 0x1ff)?;
        let pdpte = entry(pml4e, virt >> 30 & 0x1ff)?;
        let pde = entry(pdpte, virt >> 21 & 0x1ff)?;
        assert_eq!(pde & 0x80, 0x80, "a 2 MiB page");
        Some((pde & !0x1f_ffff) + (virt & 0x1f_ffff))
    }

    #[test]
    fn page_tables_when_walked_map_4_gib_onto_themselves_and_no_more() {
        let memory = memory();
        write_page_tables(&memory).expect("write");
        let mut sregs = kvm_sregs::default();
        boot_sregs(&mut sregs);
        for virt in [0, 0x7123, 0x100_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
            assert_eq!(translate(&memory, sregs.cr3, virt), Some(virt), "{virt:#x}");
        }
        for virt in [1 << 32, 1 << 39, 0xffff_8000_0000_0000] {
            assert_eq!(translate(&memory, sregs.cr3, virt), None, "{virt:#x}");
        }
    }

    #[test]
    fn page_tables_when_written_stay_between_stack_and_command_line() {
        let memory = memory();
        write_page_tables(&memory).expect("write");
        let mut around = vec![0; 0x9000];
        memory
            .read_slice(&mut around, GuestAddress(0))
            .expect("read");
        assert!(around.iter().all(|&byte| byte == 0));
        let mut around = vec![0; 0x1000];
        memory
            .read_slice(&mut around, GuestAddress(0xf000))
            .expect("read");
        assert!(around.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn gdt_when_written_holds_what_the_segment_registers_say() {
        let memory = memory();
        write_gdt(&memory).expect("write");
        let mut sregs = kvm_sregs::default();
        boot_sregs(&mut sregs);
        let at = |selector: u16| -> u64 {
            memory
                .read_obj(GuestAddress(sregs.gdt.base + u64::from(selector)))
                .expect("descriptor")
        };
        assert_eq!(at(0), 0);
        assert_eq!(at(sregs.cs.selector), 0x00af_9b00_0000_ffff);
        assert_eq!(at(sregs.ds.selector), 0x00cf_9300_0000_ffff);
        assert_eq!(at(sregs.tr.selector), 0x0000_8b00_0000_0067);
        assert_eq!(at(sregs.tr.selector + 8), 0);
        assert_eq!(sregs.gdt.limit, sregs.tr.selector + 15);
    }

    #[test]
    fn boot_sregs_when_applied_over_reset_values_are_those_of_64_bit_mode() {
        let mut sregs = kvm_sregs {
            cr0: 0x6000_0010, // what a reset leaves: caches off
            apic_base: 0xfee0_0900,
            ..Default::default()
        };
        boot_sregs(&mut sregs);
        assert_eq!(sregs.cr0, 0x8000_0011);
        assert_eq!(sregs.cr4, 0x20);
        assert_eq!(sregs.efer, 0x500);
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
        assert_eq!(sregs.apic_base, 0xfee0_0900, "not ours to change");
    }

    #[test]
    fn boot_regs_point_at_the_kernel_and_the_zero_page_with_interrupts_off() {
        let regs = boot_regs(GuestAddress(0x100_0000));
        assert_eq!((regs.rip, regs.rsi), (0x100_0000, 0x7000));
        assert_eq!(regs.rflags, 2);
    }
}
