//! The end-to-end tests: the real VMM, a real kernel, a real KVM.
//!
//! One program, so that it can be carried into the faithful lane's outer machine. Each test boots
//! what it needs and shares nothing.

mod bad_input;
mod boot;
mod checkpoint;
mod cli;
mod compare;
mod console;
mod containers;
mod control;
mod crashes;
mod disk;
mod examples;
mod exits;
mod host;
mod interop;
mod kill;
mod kvm;
mod limits;
mod machine;
mod memory;
mod network;
mod rootless;
mod run;
mod signals;
mod snapshot;
mod template;
mod terminal;
mod volumes;
mod vsock;
mod warm;
