//! What has to be in guest memory and in the boot vCPU's registers before a Linux kernel can start.
//!
//! The kernel is entered by the 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`):
//! no firmware, no real mode and no decompressor runs in the guest. Nothing here knows of KVM
//! beyond its plain register structs.
//!
//! In order: [`kernel::load`], [`initrd::load`], [`params::write`] with a [`cmdline::Cmdline`],
//! [`mptable::write`], [`registers::write_page_tables`] and [`registers::write_gdt`]; then the boot
//! vCPU gets [`registers::boot_sregs`], [`registers::boot_regs`] and [`registers::boot_fpu`].

pub mod cmdline;
pub mod initrd;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod params;
mod place;
pub mod registers;
