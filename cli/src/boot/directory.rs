//! The directory a VM's sockets are in.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use bulkhead_protocol::READY_PORT;

use super::error::{SessionError, cannot};

/// Where the sockets are. What was made there is removed at the end.
pub struct Directory {
    path: PathBuf,
    ours: bool,
    /// What we have made there beside the usual.
    more: Vec<PathBuf>,
}

impl Directory {
    /// The directory the user named, or a new one.
    pub fn open(named: Option<&Path>) -> Result<Self, SessionError> {
        if let Some(path) = named {
            let made = DirBuilder::new().mode(0o700).create(path);
            let ours = match made {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                Err(e) => return Err(cannot(format!("make the directory {}", path.display()))(e)),
            };
            return Ok(Directory {
                path: path.to_owned(),
                ours,
                more: Vec::new(),
            });
        }
        let base = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let path = tempfile::Builder::new()
            .prefix("bulkhead-boot-")
            .tempdir_in(&base)
            .map_err(cannot(format!("make a directory in {}", base.display())))?
            .keep();
        Ok(Directory {
            path,
            ours: true,
            more: Vec::new(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has another file go at the end, which we have made there.
    pub fn owns(&mut self, file: PathBuf) {
        self.more.push(file);
    }

    /// What may be left here, in the order to remove it.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let ready = ready_socket();
        let files = [
            "config.json",
            "control.sock",
            "vsock.sock",
            "api.sock",
            &ready,
        ];
        let mut paths: Vec<PathBuf> = files.iter().map(|file| self.path.join(file)).collect();
        paths.extend(self.more.iter().cloned());
        if self.ours {
            paths.push(self.path.clone());
        }
        paths
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for path in self.leftovers() {
            // Most are not there, and a directory in which others put files stays.
            let _ = if path == self.path {
                fs::remove_dir(&path)
            } else {
                fs::remove_file(&path)
            };
        }
    }
}

/// Name of the socket at which the agent's report arrives.
pub fn ready_socket() -> String {
    format!("vsock.sock_{READY_PORT}")
}

/// Listens at `path`, in the place of a socket that nobody listens on any more.
pub fn listen(path: &Path) -> Result<UnixListener, SessionError> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        fs::remove_file(path).map_err(cannot(format!("remove {}", path.display())))?;
    }
    UnixListener::bind(path).map_err(cannot(format!("listen on {}", path.display())))
}
