//! Which system calls a program may make: filters of the runtime specification, and profiles in Docker's form, compiled to
//! the small programs that the kernel runs at each call.

mod compile;
mod listener;
mod profile;
mod syscalls;

pub use profile::{Profile, docker_default};

pub(crate) use compile::{ARCHITECTURES, FLAGS, Filter, compile};
pub(crate) use listener::Listener;
