//! How much of the host one device may take.

use std::time::Duration;

/// The bounds of a [`super::Vsock`]. What goes beyond them is refused, never queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. Each takes a file descriptor, so the process needs an `RLIMIT_NOFILE`
    /// to match.
    pub max_connections: usize,
    /// Connections at a time that are not open yet, of those.
    pub max_half_open: usize,
    /// Bytes the guest may send on a connection before the host has read them: the most that is
    /// held for one connection, while its Unix socket is full.
    pub buffer_size: u32,
    /// Bytes held for all connections together. A connection that would go beyond is reset.
    pub max_backlog: usize,
    /// RST packets that may wait for receive buffers before the guest's packets are left waiting.
    pub max_pending_resets: usize,
    /// How long a host client may take to say which port it wants.
    pub handshake_timeout: Duration,
    /// How long the guest may take to answer a request, and a busy host listener to take one.
    pub request_timeout: Duration,
    /// How long the guest may take to confirm the end of a connection.
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 8192,
            max_half_open: 4096,
            // Four packets of the largest size Linux makes, so that it can go on sending while the
            // news of what was read is under way; and what Linux itself promises.
            buffer_size: 256 << 10,
            max_backlog: 64 << 20,
            max_pending_resets: 1024,
            // Guests can be slow: see a guest kernel whose every instruction is emulated.
            handshake_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
        }
    }
}
