//! What the end-to-end tests share: a VM to talk to, a network of its own, and the outer machine of
//! the faithful lane.
//!
//! The tests see Bulkhead from outside: its binaries, its documents, its sockets. Nothing here knows
//! its types, so that a change which breaks whoever uses them shows.

pub mod artifacts;
pub mod browser;
pub mod container;
pub mod cpio;
pub mod crash;
pub mod faithful;
pub mod firecracker;
pub mod guest;
pub mod home;
pub mod http;
pub mod lane;
pub mod lines;
pub mod net;
pub mod process;
pub mod socket;
pub mod terminal;
pub mod traces;
pub mod vm;
pub mod vsock;
