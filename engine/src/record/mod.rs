//! What is kept of a container: what it is (`config.json`), how it is (`state.json`) and, while its
//! sandbox is up, which processes are (`processes.json`).
//!
//! Each is one JSON document, replaced whole by a rename. `state.json` has one writer at a time:
//! whoever holds the container's lock, which is its monitor while there is one.

mod config;
mod files;
mod state;

pub use config::{Config, Image, Isolation, Machine, Upper};
pub use files::{Files, read_of_format, write};
pub use state::{Processes, State, Status};
