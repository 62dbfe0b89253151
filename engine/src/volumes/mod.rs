//! Folders and files of the host in containers, and volumes.
//!
//! [`request`] is what a user may ask for, [`named`] keeps volumes. When a sandbox starts, [`attach`]
//! decides how its guest gets them: through a file server of the host ([`server`], whose own view of
//! the host [`staging`] makes), or, where there is none, as disks: copies of what is only read ([`copy`]),
//! and volumes that are disks of their own. [`host`] is how a container on the host gets them.

mod attach;
mod copy;
mod host;
mod named;
mod request;
mod server;
pub mod staging;

pub use attach::Attached;
pub use named::Named;
pub(crate) use request::prepare;
pub use request::{Source, VolumeMount};
