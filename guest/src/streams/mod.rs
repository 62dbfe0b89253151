//! The programs' input and output, between their pipes or terminals and the clients' connections.
//!
//! Everything here happens in the loop's one thread and nothing of it waits: what cannot go on is
//! left, and taken up when the kernel says that it can. Nothing is collected on the way either. A
//! program's output is read only while every client that is to have it has taken what came before,
//! and a client is read only while the program has taken what it sent before, so that the memory of a
//! stream is bounded by one read ([`CHUNK`]) in each direction, and whoever is slow slows down only
//! the other end.
//!
//! - [`program`]: a program's ends of its streams, and from them to clients;
//! - [`client`]: a client's connection, and from it to a program;
//! - [`subscriber`]: a client that is told what happens.

pub mod client;
pub mod program;
pub mod subscriber;

/// How much is read at a time: what a pipe holds.
pub const CHUNK: usize = 64 << 10;
/// How often one descriptor is read before others get their turn.
const TURNS: usize = 4;
/// The most connections that carry frames or events at a time.
pub const MAX_STREAMS: usize = 256;
