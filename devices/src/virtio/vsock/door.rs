//! A Unix socket that host clients knock at, and where it leads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::listener::Listener;

/// A listening socket with the state of its accepting.
#[derive(Debug)]
pub struct Door {
    listener: Listener,
    /// The guest's port behind it. `None`: the client says which one it wants.
    pub port: Option<u32>,
    /// Clients may be waiting. Cleared only when there are none, because it is watched for edges.
    pub waiting: bool,
    /// The last accept failed for want of something the host has run out of.
    pub failing: bool,
}

impl Door {
    /// A door that leads to `port` of the guest, or to the one that the client names.
    pub fn new(listener: Listener, port: Option<u32>) -> Door {
        Door {
            listener,
            port,
            waiting: false,
            failing: false,
        }
    }

    /// The next client, as a non-blocking socket.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept()
    }
}

impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}
