//! Making the container's root filesystem the root.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, chmodat, chownat, llistxattr, lstat, mkdir, openat,
    rmdir, stat, unlink,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount as mount2, mount_change,
    move_mount, unmount,
};
use rustix::process::{Gid, Uid, chdir, chroot, fchdir, pivot_root};

use super::State;
use super::mounts::{MODE, THIS, write_all};
use crate::sys;

pub fn make_private() -> Result<(), Errno> {
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
}

pub fn enter_tree(tree: &OwnedFd, target: &CStr) -> Result<(), Errno> {
    let to = THIS | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(tree, c"", CWD, target, to)?;
    fchdir(tree)
}

const ROOT: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub fn change_root(state: &mut State) -> Result<(), Errno> {
    state.old_root = Some(sys::leak(openat(CWD, c"/", ROOT, Mode::empty())?));
    chroot(c".")
}

pub fn change_root_back(state: &mut State) -> Result<(), Errno> {
    let root = openat(CWD, c"/", ROOT, Mode::empty())?;
    fchdir(state.old_root.take().ok_or(Errno::BADF)?)?;
    chroot(c".")?;
    fchdir(&root)
}

/// Mounts over /proc, which every kernel's root has and nothing needs any more here. Not over `/`: there it would stay on
/// top of the old root, and [`pivot`] would take it away in place of that.
pub fn enter_mount(
    source: &CStr,
    kind: &CStr,
    flags: MountFlags,
    data: &CStr,
) -> Result<(), Errno> {
    mount2(source, c"/proc", kind, flags, Some(data))?;
    chdir(c"/proc")
}

/// Makes what an overlay is mounted of, and returns whether there was nothing yet: a disk may have been used before.
pub fn make_layers() -> Result<bool, Errno> {
    let is_new = make_here(c"upper")?;
    make_here(c"work")?;
    make_here(c"lower")?;
    Ok(is_new)
}

/// Mounts what the overlay lies over.
pub fn lower(source: &CStr, kind: &CStr, flags: MountFlags, is_new: bool) -> Result<(), Errno> {
    mount2(source, c"lower", kind, flags, Some(c""))?;
    if is_new {
        // The root directory itself is shown as it is in the writable layer.
        give_likeness(c"upper", &stat(c"lower")?)?;
    }
    Ok(())
}

/// Makes a directory that [`make_here`] has made like another one.
fn give_likeness(name: &CStr, like: &Stat) -> Result<(), Errno> {
    if like.st_mode & 0o7777 != MODE.as_raw_mode() {
        let mode = Mode::from_raw_mode(like.st_mode & 0o7777);
        chmodat(CWD, name, mode, AtFlags::empty())?;
    }
    if (like.st_uid, like.st_gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        chownat(CWD, name, Some(uid), Some(gid), AtFlags::empty())?;
    }
    Ok(())
}

/// Writes a file in a new writable layer, in a directory that is like the one `lower` below the overlay. `false` if it takes
/// more than that: a link to follow, or attributes to copy.
pub fn place_file((lower, upper): (&CStr, &CStr), path: &CStr, data: &[u8]) -> Result<bool, Errno> {
    let like = match lstat(lower) {
        Ok(like) if FileType::from_raw_mode(like.st_mode) != FileType::Directory => {
            return Ok(false);
        }
        Ok(like) => Some(like),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(error),
    };
    if make_here(upper)?
        && let Some(like) = like
    {
        match llistxattr(lower, &mut [0; 0]) {
            Ok(0) | Err(Errno::NOTSUP) => {}
            _ => {
                rmdir(upper)?;
                return Ok(false);
            }
        }
        give_likeness(upper, &like)?;
    }
    // Nobody but us has written anything there.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::from_raw_mode(0o644))?;
    write_all(file, data)?;
    Ok(true)
}

/// Makes the overlay and goes there.
pub fn overlay(layers: &CStr, devices: bool) -> Result<(), Errno> {
    let flags = match devices {
        true => MountFlags::empty(),
        false => MountFlags::NODEV,
    };
    mount2(c"overlay", c"lower", c"overlay", flags, Some(layers))?;
    chdir(c"lower")
}

/// Whether it was not there.
pub fn make_here(name: &CStr) -> Result<bool, Errno> {
    match mkdir(name, MODE) {
        Err(Errno::EXIST) => Ok(false),
        made => made.map(|()| true),
    }
}

pub fn pivot() -> Result<(), Errno> {
    // With no place for the old root, it comes to lie over the new one, and is taken from there at once, with all that is
    // mounted below it.
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)
}

/// Writes a file that was not there. Nothing of the image is opened: it may be a device, or a FIFO.
pub fn new_file(path: &CStr, data: &[u8]) -> Result<(), Errno> {
    match unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let create = || openat(CWD, path, flags, Mode::from_raw_mode(0o644));
    let file = match create() {
        Err(Errno::NOENT) => {
            let name = path.to_bytes();
            let end = name.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
            mkdir(name.get(..end).ok_or(Errno::NOENT)?, MODE)?;
            create()?
        }
        file => file?,
    };
    write_all(file, data)
}
