//! Snapshots that the user has taken of virtual machines of `bulkhead boot`, and what it takes to go on from one.
//! Checkpoints of containers and templates of the user's own are kept in the same way.
//!
//! - [`record`] is `snapshot.json`: what we know of one beside what the VMM has written;
//! - [`store`] is where they are kept, by their names;
//! - [`take`] makes one of a machine that runs;
//! - [`copy`] copies disks without filling their holes;
//! - [`wake`] tells a restored guest's agent that it is another one now.

mod copy;
mod record;
mod store;
mod take;
mod wake;

pub use record::{Disk, FORMAT, Record, Stamp};
pub(crate) use store::Reserved;
pub use store::{Listed, Snapshot, Snapshots};
pub use take::Request;
pub use wake::wake;
