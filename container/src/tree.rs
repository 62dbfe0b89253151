//! Trees of mounts, for those who give parts of the host's file system to others.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::{self, MountAttributes};

/// A copy of what is at `source`, with all that is mounted below it, attached nowhere. What is mounted
/// on either side later on is not seen on the other. Read-only, nothing in it can be changed through it.
pub fn clone_tree(source: &Path, read_only: bool) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)?;
    let attributes = MountAttributes {
        set: if read_only {
            libc::MOUNT_ATTR_RDONLY
        } else {
            0
        },
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    let whole = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    sys::mount_setattr(tree.as_fd(), c"", whole, &attributes)?;
    Ok(tree)
}
