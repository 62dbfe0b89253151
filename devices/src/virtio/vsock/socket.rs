//! The few calls on a non-blocking Unix stream socket that the standard library does not have.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use libc::{c_int, iovec};

/// Bytes a path may have in a `sockaddr_un`, without the zero at its end.
pub const MAX_PATH: usize = 107;

/// Reads into the iovecs what is there.
///
/// # Safety
/// Every iovec must point to memory that stays mapped during the call and that nothing in this
/// process holds a reference to: guest memory is such.
pub unsafe fn readv(stream: &UnixStream, iovecs: &[iovec]) -> io::Result<usize> {
    retry(|| {
        // SAFETY: the count is that of the slice, and the caller vouches for what its items point to.
        unsafe { libc::readv(stream.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as c_int) }
    })
}

/// Writes what the iovecs hold, as much of it as there is room for.
///
/// # Safety
/// Every iovec must point to memory that stays mapped during the call.
pub unsafe fn writev(stream: &UnixStream, iovecs: &[iovec]) -> io::Result<usize> {
    // SAFETY: `msghdr` is integers and pointers, for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len() as _;
    retry(|| {
        // A closed socket must be an error and not a SIGPIPE, whatever the process does with that.
        // SAFETY: the count is that of the slice, and the caller vouches for what its items point
        // to; `sendmsg` writes to none of it.
        unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
    })
}

/// Writes the host's own bytes, as many of them as there is room for.
pub fn write(stream: &UnixStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: an `IoSlice` is an `iovec` (std promises this layout) of memory borrowed for the call.
    unsafe {
        writev(
            stream,
            std::slice::from_raw_parts(parts.as_ptr().cast(), parts.len()),
        )
    }
}

/// Reads into `buffer` without taking what is read off the socket.
pub fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| {
        // SAFETY: the pointer and length are those of a slice borrowed mutably for the call.
        unsafe {
            libc::recv(
                stream.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_PEEK,
            )
        }
    })
}

/// Connects to the socket at `path` without waiting: [`io::ErrorKind::WouldBlock`] means that the
/// listener's queue is full for now.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (address, len) = address(path)?;
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes integers only.
    let fd = retry(|| unsafe { libc::socket(libc::AF_UNIX, kind, 0) as isize })?;
    // SAFETY: `socket` has just returned this descriptor, and nobody else knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as c_int) };
    retry(|| {
        // SAFETY: `address` is valid for reads of `len` bytes, which is at most its size.
        unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) as isize }
    })?;
    Ok(UnixStream::from(fd))
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `sockaddr_un` is integers, for which zero is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, size_of_val(&address) as libc::socklen_t))
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(result as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
