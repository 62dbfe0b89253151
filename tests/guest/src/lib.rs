//! The test guest: what the end-to-end tests boot, and how they talk to it.
//!
//! It listens on vsock port [`PORT`]. A connection carries one [`Request`], a line of JSON, and ends
//! with one [`Reply`], a line of JSON; between them go the bytes that some requests move. The data
//! is a [`Stream`], which both sides can make from its seed, and both sides reduce it to a
//! [`Checksum`], so that gigabytes are compared as two numbers.

pub mod data;
pub mod message;

#[doc(hidden)]
pub mod ops;

pub use data::{Checksum, Stream};
pub use message::{Reply, Request};

/// The vsock port that takes requests.
pub const PORT: u32 = 7000;
/// What the guest writes to its console when it is up as the only program of an initramfs.
pub const UP: &str = "BULKHEAD TEST GUEST UP";
/// The kernel parameter that makes the guest write [`UP`] and reset the VM at once.
pub const REBOOT_PARAMETER: &str = "testguest.reboot";
/// The same, but it powers off, as the agent does.
pub const POWEROFF_PARAMETER: &str = "testguest.poweroff";
/// The same, but it ends, which panics the kernel.
pub const PANIC_PARAMETER: &str = "testguest.panic";
