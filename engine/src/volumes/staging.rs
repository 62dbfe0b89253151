//! What a file server sees of the host: a folder with an entry for each source, and nothing else.
//!
//! The server is started by way of this program again, with a hidden command, which makes itself a view
//! of the file system of its own (a mount namespace): in a folder that nobody else sees anything in, it
//! mounts each source under a number, read-only if its container may only read, and then becomes the
//! server. A single file is mounted alone, so that what lies beside it is not there to be asked for, and
//! what is read-only is so for the server as well, whatever its guest makes of it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_container::clone_tree;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, mount, mount_change, mount_remount,
    move_mount,
};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::request::Kind;
use super::server::Dialect;
use crate::error::{Error, cannot};

/// The name of the hidden command.
pub const COMMAND: &str = "serve-files";
/// What the command's complaints begin with.
pub const COMPLAINT: &str = "bulkhead-files: ";

/// What the hidden command is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    /// The file server.
    pub(super) program: PathBuf,
    /// How it wants to be told.
    pub(super) dialect: Dialect,
    /// An empty folder.
    pub(super) folder: PathBuf,
    /// What to mount there, under numbers from 0.
    pub(super) sources: Vec<Shared>,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Where it is, without links.
    pub(super) path: PathBuf,
    /// What is there.
    pub(super) kind: Kind,
    /// Whether it may only be read.
    pub(super) read_only: bool,
}

/// Becomes the file server, whose socket is standard input. Returns only if it cannot.
pub fn run(text: &str) -> Result<(), Error> {
    let staging: Staging = serde_json::from_str(text)
        .map_err(|e| Error::Invalid(format!("this is no description of shares: {e}")))?;
    end_with_parent()?;
    staging.make()?;
    let sandbox = match is_initramfs() {
        true => "chroot",
        false => "namespace",
    };
    let mut command = Command::new(&staging.program);
    let arguments = staging.dialect.arguments(&staging.folder, sandbox);
    let e = command.args(arguments).exec();
    Err(cannot(format!("start {}", staging.program.display()))(e))
}

impl Staging {
    fn make(&self) -> Result<(), Error> {
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(cannot("get a view of the file system of its own"))?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .map_err(cannot("keep the view of the file system to itself"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let folder = &self.folder;
        let failed = || format!("mount {}", folder.display());
        mount("tmpfs", folder, "tmpfs", flags, Some(c"mode=0755,size=1m"))
            .map_err(cannot(failed()))?;
        for (number, source) in self.sources.iter().enumerate() {
            source.mount(&folder.join(number.to_string()))?;
        }
        // Beside the sources there is nothing to write to.
        mount_remount(folder, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
            .map_err(cannot(failed()))
    }
}

impl Shared {
    fn mount(&self, target: &Path) -> Result<(), Error> {
        let failed = || format!("share {}", self.path.display());
        match self.kind {
            Kind::Folder => fs::create_dir(target),
            Kind::File => File::create(target).map(drop),
        }
        .map_err(cannot(failed()))?;
        let tree = clone_tree(&self.path, self.read_only).map_err(cannot(failed()))?;
        let this = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, c"", CWD, target, this).map_err(cannot(failed()))
    }
}

/// A server must not outlive its sandbox's monitor, however that ends.
fn end_with_parent() -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(cannot("tie the file server to the monitor"))?;
    // It may have ended before that. Init is then the parent.
    if getppid().is_none_or(|parent| parent.is_init()) {
        return Err(Error::Invalid("the monitor has ended".to_owned()));
    }
    Ok(())
}

/// Whether the root is the kernel's first one, from which pivot_root(2) does not lead away.
fn is_initramfs() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    root_type(&mounts) == Some("rootfs")
}

/// The type of what is mounted at the root, in a `/proc/PID/mountinfo` (proc(5)).
fn root_type(mounts: &str) -> Option<&str> {
    let on_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let line = mounts.lines().rfind(on_root)?;
    line.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_told_by_the_last_mount_on_it() {
        let rootfs = "1 1 0:2 / / rw - rootfs rootfs rw\n20 1 0:5 / /proc rw - proc proc rw\n";
        assert_eq!(root_type(rootfs), Some("rootfs"));
        let disk = format!("{rootfs}21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n");
        assert_eq!(root_type(&disk), Some("ext4"));
        assert_eq!(root_type(""), None);
    }
}
