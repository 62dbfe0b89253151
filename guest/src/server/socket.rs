//! A client's socket, and what waits to be sent on it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::connection::Stream;

/// A client's socket; non-blocking.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes an accepted connection.
    pub fn new(fd: OwnedFd) -> Self {
        Socket(fd)
    }

    /// The connection.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Whether the client has closed the connection, rather than only ended its side. A vsock says
    /// so to whoever writes, if it is nothing, and not by EPOLLHUP.
    pub fn is_gone(&self) -> bool {
        matches!(send(&self.0, &[], SendFlags::NOSIGNAL), Err(e) if e != Errno::AGAIN)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, buf, RecvFlags::empty()).map(|(n, _)| n)?)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // A client that left is an error of this call, not a SIGPIPE.
        Ok(send(&self.0, buf, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(shutdown(&self.0, Shutdown::Write)?)
    }
}

/// Bytes that a socket has not taken yet.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How much waits, bytes.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends what waits and then `bytes`; what the socket does not take waits. An error means that
    /// the client is gone.
    pub fn send(&mut self, socket: &mut Socket, bytes: &[u8]) -> io::Result<()> {
        self.flush(socket)?;
        let mut rest = bytes;
        while self.is_empty() && !rest.is_empty() {
            match write_some(socket, rest)? {
                Some(n) => rest = &rest[n..],
                None => break,
            }
        }
        self.bytes.extend_from_slice(rest);
        Ok(())
    }

    /// Sends what waits. An error means that the client is gone.
    pub fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match write_some(socket, &self.bytes[self.sent..])? {
                Some(n) => self.sent += n,
                None => return Ok(()),
            }
        }
        // Most streams never have to wait; those that did give their memory back.
        *self = Outbox::default();
        Ok(())
    }
}

/// Writes; `None` if the socket takes nothing now.
fn write_some(socket: &mut Socket, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => return Ok(Some(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
