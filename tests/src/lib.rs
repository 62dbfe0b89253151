//! What the end-to-end tests share: a VM to talk to, a network of its own, and the outer machine of
//! the faithful lane.

pub mod faithful;
pub mod net;
