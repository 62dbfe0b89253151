//! Where a first process waits to be started by who did not make it: a socket in a directory of the caller's, to which only who
//! may enter that directory gets.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen as listen_on,
    socket_with,
};

use crate::error::Error;

/// Makes the socket.
pub fn listen(path: &Path) -> Result<OwnedFd, Error> {
    let made = || {
        let (socket, _directory, address) = prepare(path)?;
        bind(&socket, &address)?;
        // One starts it; others who want to as well are told that somebody was faster.
        listen_on(&socket, 8)?;
        Ok(socket)
    };
    made().map_err(|e: Errno| Error::step("make the socket", path.display().to_string(), e))
}

/// Calls who waits there.
pub fn call(path: &Path) -> Result<OwnedFd, Errno> {
    let (socket, _directory, address) = prepare(path)?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// A socket, and the address of a path, which may be longer than an address: valid while its directory is held open.
fn prepare(path: &Path) -> Result<(OwnedFd, OwnedFd, SocketAddrUnix), Errno> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = directory.unwrap_or(Path::new("."));
    let directory = openat(CWD, directory, flags, Mode::empty())?;
    let place = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    let address = SocketAddrUnix::new(place.join(name))?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    Ok((socket, directory, address))
}
