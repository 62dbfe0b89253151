//! The file server: Debian's `virtiofsd`, of which there are two.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::staging::{self, Shared, Staging};
use crate::error::{Error, cannot};
use crate::process::wait_end;
use crate::record::Files;

/// Says which file server to use; with `none`, none is, even if there is one.
const VARIABLE: &str = "BULKHEAD_VIRTIOFSD";
/// Where distributions put it.
const PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];
/// How long a server whose machine has ended gets to end by itself.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A file server on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    dialect: Dialect,
}

/// How a file server wants to be told what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dialect {
    /// QEMU's, in C, up to Debian 12.
    Qemu,
    /// The one in Rust that came after it.
    Rust,
}

impl Dialect {
    /// The arguments for a server of `folder` that gets its socket as standard input.
    ///
    /// Extended attributes are kept. Mounts below the folder are file systems in the guest as well, so
    /// that two files are never taken for one. Devices cannot be made: they would be the host's.
    pub(super) fn arguments(self, folder: &Path, sandbox: &str) -> Vec<String> {
        let folder = folder.display();
        let arguments: &[&str] = match self {
            Dialect::Qemu => &[
                "--fd=0",
                "-f",
                "-o",
                "cache=auto,xattr,announce_submounts,modcaps=-mknod,log_level=warn",
                "-o",
                &format!("sandbox={sandbox}"),
                "-o",
                &format!("source={folder}"),
            ],
            Dialect::Rust => &[
                "--fd=0",
                "--cache=auto",
                "--xattr",
                "--announce-submounts",
                "--modcaps=-mknod",
                "--log-level=warn",
                &format!("--sandbox={sandbox}"),
                &format!("--shared-dir={folder}"),
            ],
        };
        arguments.iter().map(|&text| text.to_owned()).collect()
    }

    /// By what it says of itself.
    fn of_help(help: &str) -> Self {
        match help.contains("--shared-dir") {
            true => Dialect::Rust,
            false => Dialect::Qemu,
        }
    }
}

impl Program {
    /// Finds one that can be used: only root may make the view of the file system that it gets.
    pub fn find() -> Result<Option<Self>, Error> {
        let path = match env::var_os(VARIABLE) {
            Some(value) if value == "none" => return Ok(None),
            // Whoever sets it means it.
            Some(path) => PathBuf::from(path),
            None if !rustix::process::geteuid().is_root() => return Ok(None),
            None => match PLACES.iter().map(Path::new).find(|path| path.exists()) {
                Some(path) => path.to_owned(),
                None => return Ok(None),
            },
        };
        let help = Command::new(&path)
            .arg("--help")
            .stdin(Stdio::null())
            .output()
            .map_err(cannot(format!("run the file server {}", path.display())))?;
        let dialect = Dialect::of_help(&String::from_utf8_lossy(&help.stdout));
        Ok(Some(Program { path, dialect }))
    }
}

/// A file server that runs. Dropped, it ends.
#[derive(Debug)]
pub struct FileServer(Child);

impl FileServer {
    /// Starts one for `sources`. It listens already, whenever it gets to accepting.
    pub fn start(program: Program, sources: Vec<Shared>, files: &Files) -> Result<Self, Error> {
        let start = || format!("start the file server {}", program.path.display());
        let folder = files.shared();
        std::fs::create_dir(&folder).map_err(cannot(start()))?;
        let socket = UnixListener::bind(files.file_server()).map_err(cannot(start()))?;
        let staging = Staging {
            program: program.path.clone(),
            dialect: program.dialect,
            folder,
            sources,
        };
        let staging = serde_json::to_string(&staging).map_err(cannot(start()))?;
        let child = Command::new("/proc/self/exe")
            .args([staging::COMMAND, &staging])
            .stdin(OwnedFd::from(socket))
            // Ours is the container's lock.
            .stdout(Stdio::null())
            .spawn()
            .map_err(cannot(start()))?;
        Ok(FileServer(child))
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // It ends when its machine does, which is before this.
        let ended = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty())
            .is_ok_and(|pidfd| wait_end(pidfd.as_fd(), END_LIMIT));
        if !ended {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialect_is_told_by_the_help() {
        assert_eq!(
            Dialect::of_help("    --shared-dir <SHARED_DIR>"),
            Dialect::Rust
        );
        assert_eq!(
            Dialect::of_help("    -o source=PATH   shared directory tree"),
            Dialect::Qemu
        );
        for dialect in [Dialect::Qemu, Dialect::Rust] {
            let arguments = dialect.arguments(Path::new("/run/x"), "chroot");
            assert!(arguments.iter().any(|a| a.ends_with("=/run/x")));
            assert!(arguments.iter().any(|a| a.contains("modcaps=-mknod")));
        }
    }
}
