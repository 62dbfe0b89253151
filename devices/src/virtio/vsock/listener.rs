//! The Unix socket where clients on the host knock, and the file it is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::VsockError;
use super::socket::{self, MAX_PATH};

/// Bytes of the longest suffix, `_4294967295`.
const MAX_SUFFIX: usize = 11;

/// A listening socket that owns its file: dropping it removes the file, if it is still the same.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode number of the file.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`. A socket file that nobody listens at any more is replaced. If the guest's
    /// connections are to go to `path` with their port behind it, there must be room for that.
    pub fn bind(path: &Path, with_ports: bool) -> Result<Listener, VsockError> {
        let max = MAX_PATH - if with_ports { MAX_SUFFIX } else { 0 };
        if path.as_os_str().len() > max {
            return Err(VsockError::PathTooLong {
                path: path.to_owned(),
                max,
            });
        }
        let failed = |source| VsockError::Bind {
            path: path.to_owned(),
            source,
        };
        let socket = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }
        .map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let file = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Listener {
            socket,
            path: path.to_owned(),
            identity: (file.dev(), file.ino()),
        })
    }

    /// The next client, as a non-blocking socket.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have taken our file away and put another one there: that one is not ours.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(e) = fs::remove_file(&self.path) {
            log::warn!("cannot remove the socket {}: {e}", self.path.display());
        }
    }
}

/// Where the host's programs listen for the guest's connections.
#[derive(Debug)]
pub struct HostPorts {
    path: PathBuf,
}

impl HostPorts {
    /// Port P of the host is the socket `path` with `_P` behind it.
    pub fn new(path: PathBuf) -> HostPorts {
        HostPorts { path }
    }

    /// Connects to who listens for the guest's connections to `port`.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        socket::connect(Path::new(&path))
    }
}

/// Removes the socket file at `path`, unless it is something else or somebody listens there.
fn remove_stale(path: &Path) -> Result<(), VsockError> {
    let failed = |source| VsockError::Bind {
        path: path.to_owned(),
        source,
    };
    let file = fs::symlink_metadata(path).map_err(failed)?;
    if !file.file_type().is_socket() {
        return Err(VsockError::NotASocket(path.to_owned()));
    }
    match socket::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Ok(_) => Err(VsockError::InUse(path.to_owned())),
        // Its queue is full: somebody is there, if busy.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(VsockError::InUse(path.to_owned())),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn file_when_stale_is_replaced_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path, true).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn file_when_somebody_listens_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::bind(&path, true).unwrap();
        let error = Listener::bind(&path, true).unwrap_err();
        assert!(matches!(error, VsockError::InUse(_)));
        assert!(error.to_string().contains("v.sock"), "{error}");
        assert!(path.exists());
        drop(first);
    }

    #[test]
    fn file_when_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path, true),
            Err(VsockError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn file_when_replaced_by_another_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let ours = Listener::bind(&path, true).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }

    #[test]
    fn path_when_too_long_for_a_port_is_refused() {
        let path = PathBuf::from(format!("/{}", "x".repeat(MAX_PATH - MAX_SUFFIX)));
        assert!(matches!(
            Listener::bind(&path, true),
            Err(VsockError::PathTooLong { max: 96, .. })
        ));
        let path = PathBuf::from(format!("/{}", "x".repeat(MAX_PATH)));
        assert!(matches!(
            Listener::bind(&path, false),
            Err(VsockError::PathTooLong { max: 107, .. })
        ));
    }

    #[test]
    fn directory_when_missing_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no/v.sock");
        let error = Listener::bind(&path, true).unwrap_err();
        assert!(error.to_string().contains("no/v.sock"), "{error}");
    }
}
