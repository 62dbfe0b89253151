//! The virtual machine monitor: one process, one microVM on KVM.
//!
//! A VM is described by one JSON document, [`config::VmConfig`]. [`machine::Machine`] builds it:
//! guest memory, vCPUs and boot tables, the devices of `bulkhead-devices` on two buses. Then one
//! thread per vCPU runs the guest, and the main thread runs the event loop that serves the devices,
//! the control socket and signals, until something ends the VM; [`exit::VmExit`] says what.

pub mod assist;
pub mod attach;
pub mod boot;
pub mod bus;
pub mod config;
pub mod control;
pub mod cpu;
pub mod event_loop;
pub mod exit;
pub mod host;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod snapshot;
pub mod timing;
pub mod vcpu;
