//! Our own program, out of the reach of containers.
//!
//! While a process of ours is in a container, before it becomes the program or as its init, `/proc/PID/exe` there leads to
//! the file that we were executed from. A container that gets hold of it can write to it as soon as nobody executes it any
//! more (CVE-2019-5736). In a guest that file lies on a read-only filesystem. On a host, whoever creates containers is to
//! be executed from [`read_only`]: the same file, through a mount that is attached nowhere and cannot be written through.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    CWD, MemfdFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, fstat,
    memfd_create, sendfile, statvfs,
};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::Error;
use crate::sys::{self, MountAttributes};

const SELF: &str = "/proc/self/exe";

/// Whether our program can be written through `/proc/self/exe`, permission given.
pub fn is_writable() -> Result<bool, Error> {
    let mount = statvfs(SELF).map_err(|e| Error::step("look at", SELF, e))?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(false);
    }
    // Only files in memory have seals.
    let own = File::open(SELF).map_err(|e| Error::step("open", SELF, e))?;
    Ok(!fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)))
}

/// Our program on a read-only mount of its own, to be executed by `/proc/self/fd/N`. Needs `CAP_SYS_ADMIN`.
pub fn read_only() -> Result<OwnedFd, Error> {
    let failed = |e| Error::step("copy the mount of", SELF, e);
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, SELF, clone).map_err(failed)?;
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    sys::mount_setattr(tree.as_fd(), c"", libc::AT_EMPTY_PATH, &attributes).map_err(failed)?;
    Ok(tree)
}

/// A copy of our program in memory that nothing can be written to any more, likewise.
pub fn sealed() -> Result<OwnedFd, Error> {
    let failed = |e| Error::step("copy", SELF, e);
    let own = File::open(SELF).map_err(|e| Error::step("open", SELF, e))?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = memfd_create(c"bulkhead", flags).map_err(failed)?;
    let mut left = usize::try_from(fstat(&own).map_err(failed)?.st_size).unwrap_or(usize::MAX);
    while left > 0 {
        match sendfile(&copy, &own, None, left).map_err(failed)? {
            0 => break,
            sent => left = left.saturating_sub(sent),
        }
    }
    fcntl_add_seals(&copy, SEALS).map_err(failed)?;
    Ok(copy)
}

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn program_when_on_its_own_mount_then_it_runs_and_cannot_be_written() {
        assert!(is_writable().expect("mounted"));
        let program = read_only().expect("root");
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let mount = statvfs(&path).expect("open");
        assert!(mount.f_flag.contains(StatVfsMountFlags::RDONLY));
        let status = std::process::Command::new(&path)
            .arg("--list")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.expect("executable").success());
    }

    #[test]
    fn program_when_copied_then_it_runs_and_cannot_be_written() {
        let program = sealed().expect("memory");
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let status = std::process::Command::new(&path)
            .arg("--list")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.expect("executable").success());
        assert!(rustix::io::pwrite(&program, b"x", 0).is_err());
    }
}
