//! What carries a network card's packets on the host.

use std::io;
use std::os::fd::RawFd;

use libc::iovec;

/// What the guest can take in packets it receives, besides plain ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets whose checksum is still to be computed.
    pub checksum: bool,
    /// TCP over IPv4 in segments up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 in segments up to 64 KiB.
    pub tso6: bool,
    /// Such segments with explicit congestion notification.
    pub ecn: bool,
}

/// A packet descriptor: each call moves one packet, with a virtio header of 12 bytes (virtio 1.2
/// §5.1.6) in front.
pub trait Backend: Send {
    /// The descriptor, non-blocking, to watch for edges both ways.
    fn fd(&self) -> RawFd;

    /// What received packets may look like from now on.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Receives one packet into `iovecs`.
    ///
    /// # Safety
    /// Each of `iovecs`, at most `IOV_MAX`, is memory that may be written until this returns.
    unsafe fn receive(&self, iovecs: &[iovec]) -> io::Result<usize> {
        // SAFETY: good by this function's contract; there are at most IOV_MAX, which fits.
        let n = unsafe { libc::readv(self.fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Sends the packet that lies in `iovecs`.
    ///
    /// # Safety
    /// Each of `iovecs`, at most `IOV_MAX`, is memory that may be read until this returns.
    unsafe fn send(&self, iovecs: &[iovec]) -> io::Result<usize> {
        // SAFETY: good by this function's contract; there are at most IOV_MAX, which fits.
        let n = unsafe { libc::writev(self.fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

/// A datagram socket in place of a tap, for tests, benchmarks and fuzzers.
#[cfg(any(test, feature = "test-driver"))]
impl Backend for std::os::unix::net::UnixDatagram {
    fn fd(&self) -> RawFd {
        std::os::fd::AsRawFd::as_raw_fd(self)
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        self.set_nonblocking(true)
    }
}
