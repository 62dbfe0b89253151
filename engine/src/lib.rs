//! Sandboxes and their lifecycle: what a container is on disk, the monitor that stays with it, its
//! virtual machine, the way to the agent in it, and its log.
//!
//! [`Engine`] is what front ends call. Nothing runs between commands but the monitors, one for each
//! sandbox that is up: all else is in files, whose form [`record`] has, and a command that finds the
//! remains of something that was killed puts them in order first.
#![forbid(unsafe_code)]

pub mod agent;
pub mod artifacts;
mod cgroup;
mod engine;
mod error;
mod ext4;
mod folder;
pub mod http;
mod images;
mod layout;
mod lock;
pub mod log;
pub mod monitor;
mod names;
mod poll;
mod process;
pub mod record;
pub mod rootless;
pub mod snapshots;
pub mod spec;
pub mod templates;
mod vm;
pub mod volumes;
mod wake;

pub use engine::{Engine, Entry, New, Start, Started};
pub use error::{Error, Failure};
pub use layout::{Layout, short as short_id};
