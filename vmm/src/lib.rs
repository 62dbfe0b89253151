//! The virtual machine monitor: one process, one microVM on KVM.

pub mod assist;
pub mod boot;
pub mod cpu;
