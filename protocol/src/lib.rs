//! The types of the vsock API, version 1: what the guest's agent and the host say to each other.
//!
//! The agent serves HTTP/1.1 with JSON bodies on vsock port [`API_PORT`]; `docs/api.md` is its
//! manual and `docs/api.schema.json` its schema. When the agent starts it also dials the host on
//! [`READY_PORT`] and writes one line, a [`Ready`].
//!
//! - [`boot`], [`machine`] and [`network`]: the guest as a machine;
//! - [`containers`], [`stats`] and [`events`]: what runs in it;
//! - [`frame`]: the programs' input and output, on a connection that was upgraded to
//!   [`frame::UPGRADE`];
//! - [`path`] and [`error`]: where requests go, and how they fail.
//!
//! Within a version fields are only ever added: a reader ignores what it does not know, and a field
//! that came later is optional to it. Texts of the boot are [`Cow`](std::borrow::Cow)s, so that the
//! agent can say "ready" without an allocation and the host can keep what it read as
//! `Ready<'static>`.
#![forbid(unsafe_code)]

pub mod boot;
pub mod containers;
pub mod error;
pub mod events;
pub mod frame;
pub mod machine;
pub mod network;
pub mod path;
pub mod stats;

pub use boot::*;
pub use containers::*;
pub use error::*;
pub use events::*;
pub use machine::*;
pub use network::*;
pub use stats::*;

/// The version of the API, the `1` of its `/v1` paths.
pub const API_VERSION: u32 = 1;
/// The vsock port the agent serves the API on, in the guest.
pub const API_PORT: u32 = 1024;
/// The vsock port of the host (CID 2) that the agent writes [`Ready`] to.
pub const READY_PORT: u32 = 1025;
