//! Container images: what comes from a registry or an archive, and the disk that sandboxes mount.
//!
//! Everything in here is hostile until proven otherwise: registries, archives and layers are other
//! people's. Whatever breaks the rules is refused in one sentence, within bounds on memory and space.

#![forbid(unsafe_code)]

pub mod archive;
pub mod digest;
pub mod erofs;
mod error;
pub mod extract;
pub mod inspect;
pub mod layers;
pub mod manifest;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod store;

pub use digest::Digest;
pub use error::{Error, Result};
pub use progress::Progress;
pub use reference::Reference;
pub use store::{Image, Store};
