//! The device as a guest and host clients see it.

#![allow(clippy::unwrap_used)]

mod guest;
mod hostile;
mod limits;
mod snapshot;
mod streams;
