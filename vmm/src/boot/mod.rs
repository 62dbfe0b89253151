//! What has to be in guest memory and in the boot vCPU's registers before a Linux kernel can start.
//!
//! The kernel is entered by the 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`):
//! no firmware, no real mode and no decompressor runs in the guest. Nothing here knows of KVM
//! beyond its plain register structs.

pub mod layout;
