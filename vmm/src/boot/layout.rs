//! The guest's physical address map.
//!
//! ```text
//! 0x0000_0500  GDT                                   \
//! 0x0000_7000  zero page (boot_params)                |
//! 0x0000_8ff0  boot stack, growing down               | base memory: RAM to the guest, which is
//! 0x0000_9000  identity page tables, up to 0xf000     | free to reuse all this once it has read it
//! 0x0001_0000  setup data: a random seed              |
//! 0x0002_0000  kernel command line                   /
//! 0x0009_fc00  MP table (reserved in the e820 map), then the PC's legacy hole
//! 0x0010_0000  RAM: the kernel, ..., the initrd at the top
//! 0xc000_0000  MMIO hole, up to 4 GiB
//! 0xd000_0000    virtio-mmio windows
//! 0xfec0_0000    I/O APIC
//! 0xfee0_0000    local APICs
//! 0xfffb_c000    pages that KVM needs on Intel hosts
//! 0x1_0000_0000  RAM that did not fit below the hole
//! ```

use vm_memory::GuestAddress;

/// Global descriptor table of the boot vCPU.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The zero page, `struct boot_params`: 4 KiB.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer of the boot vCPU. The page after the zero page is the stack.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Page map level 4, the root of the identity page tables.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// Page directory pointer table.
pub const PDPT: GuestAddress = GuestAddress(0xa000);
/// The first of [`PAGE_DIRECTORIES`] page directories, one after the other.
pub const PAGE_DIRECTORY: GuestAddress = GuestAddress(0xb000);
/// Page directories, each of which maps 1 GiB.
pub const PAGE_DIRECTORIES: u64 = 4;
/// Setup data with a seed for the guest's random numbers: less than a page.
pub const RNG_SEED: GuestAddress = GuestAddress(0x1_0000);
/// The kernel command line, up to [`CMDLINE_MAX_SIZE`] bytes.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Room for the command line with its NUL: what x86 Linux calls `COMMAND_LINE_SIZE`.
pub const CMDLINE_MAX_SIZE: usize = 2048;

/// End of base memory, where a PC has its extended BIOS data area. Here: the MP table.
pub const EBDA_START: GuestAddress = GuestAddress(0x9_fc00);
/// The MP floating pointer and, behind it, the MP configuration table. Linux looks in the last KiB
/// of base memory first.
pub const MP_TABLE: GuestAddress = EBDA_START;
/// Room for the MP table: to the end of the 640 KiB of base memory.
pub const MP_TABLE_MAX_SIZE: usize = 0x400;

/// Start of RAM above the PC's legacy hole. A kernel must not ask to be loaded below it.
pub const HIMEM_START: GuestAddress = GuestAddress(0x10_0000);

/// Start of the MMIO hole. RAM that does not fit below it goes on at [`MMIO_HOLE_END`].
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// First address after the MMIO hole.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio window; the others follow without gaps.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Bytes in one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The I/O APIC, where KVM's in-kernel one is.
pub const IO_APIC: u64 = 0xfec0_0000;
/// The local APIC of each vCPU, where KVM's in-kernel ones are.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// One page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Input pins of the I/O APIC. KVM routes GSI n to pin n, and the first 16 to the PICs as well.
pub const IO_APIC_PINS: u32 = 24;
/// The interval timer's ISA interrupt. KVM's in-kernel timer is always there.
pub const TIMER_IRQ: u32 = 0;
/// The first serial port's ISA interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupts for virtio devices, to be given out in this order, one each: all are edge-triggered,
/// so no two devices may share one.
///
/// Left out are those of the PC's own devices, which a stock kernel claims whether they are there or
/// not: 0 timer, 1 keyboard, 2 cascade, 3 and 4 serial ports, 8 clock, 13 FPU. 14, 15 (IDE) and 12
/// (mouse) come last for the same reason. The ISA ones come first as every kernel has set them up.
pub const VIRTIO_IRQS: [u32; 17] = [
    5, 6, 7, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 14, 15, 12,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_irqs_are_pins_given_out_once() {
        let mut irqs = VIRTIO_IRQS.to_vec();
        irqs.sort_unstable();
        irqs.dedup();
        assert_eq!(irqs.len(), VIRTIO_IRQS.len());
        assert!(
            irqs.iter()
                .all(|&irq| irq < IO_APIC_PINS && irq != SERIAL_IRQ)
        );
    }
}
