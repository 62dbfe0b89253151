//! OCI containers from Linux namespaces and control groups: one implementation, for the host's kernel and for the guest's.
//!
//! A container is created in three steps. All of its configuration is checked and made into a list of operations
//! (`plan`), before anything is started. One clone3(2) makes its first process, in its namespaces and in its control group,
//! and that carries the list out (`child`). Then it waits for [`Container::start`], and becomes the program.
//!
//! Nothing here waits for processes to end: whoever creates containers is their parent, and may have other children. See
//! [`Exit`] for what wait(2) tells.

#![deny(unsafe_code)]

mod apart;
pub mod capabilities;
pub mod cgroup;
mod child;
mod container;
mod create;
pub mod defaults;
mod error;
mod exec;
mod fork;
mod gate;
mod hooks;
pub mod known;
mod loop_device;
mod namespaces;
mod open;
mod plan;
mod prepare;
pub mod rootless;
pub mod seccomp;
pub mod self_exe;
mod spare;
pub mod spec;
mod state;
mod status;
#[allow(unsafe_code)]
mod sys;
mod tree;
mod users;

pub use apart::fork_apart;
pub use cgroup::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};
pub use container::Container;
pub use create::{Bundle, Create, Lower, NewFile, Pipes, Rootfs, Stdio, TerminalSize, Upper};
pub use error::Error;
pub use exec::{Exec, ExecOptions};
pub use loop_device::LoopDevice;
pub use open::{Known, Opened, Record, Remains};
pub use spare::Spare;
pub use state::{State, Status};
pub use status::Exit;
pub use tree::clone_tree;
