//! Sockets to the host.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};

/// How many connections wait to be accepted. The server accepts at once; this is for bursts.
const BACKLOG: i32 = 128;

struct Address {
    cid: u32,
    port: u32,
}

// SAFETY: `with_sockaddr` passes a pointer to a whole `sockaddr_vm` with its family set, and its
// size; it lives until the closure returns.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        // SAFETY: a `sockaddr_vm` is integers all through, and zeros are a value of it.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        f(
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as SocketAddrLen,
        )
    }
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Listens on `port` for connections from any context; non-blocking.
pub fn listener(port: u32) -> io::Result<OwnedFd> {
    let listener = socket(SocketFlags::NONBLOCK)?;
    let cid = libc::VMADDR_CID_ANY;
    bind(&listener, &Address { cid, port })?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Connects to `port` of the host. Waits for its answer, which takes a host microseconds; one that
/// says nothing at all is given up after the kernel's two seconds.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let stream = socket(SocketFlags::empty())?;
    let cid = libc::VMADDR_CID_HOST;
    connect(&stream, &Address { cid, port })?;
    Ok(stream)
}
