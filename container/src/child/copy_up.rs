//! Copying what a directory of the image holds into what is mounted over it (`tmpcopyup`): an empty tmpfs or volume.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, chmodat, chownat, fchmod, fchown, fstat,
    mkdirat, mknodat, openat, readlinkat_raw, sendfile, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// Each level needs two descriptors and a buffer on the stack.
const MAX_DEPTH: usize = 64;

/// A directory, before something is mounted over it. None if there is none yet.
pub fn open(path: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match openat(CWD, path, DIRECTORY & !OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// Copies all that is in a directory to what is mounted over it now, with owners and modes.
pub fn copy(from: &OwnedFd, path: &CStr) -> Result<(), Errno> {
    let Some(to) = open(path)? else {
        return Err(Errno::NOENT);
    };
    like(&to, &fstat(from)?)?;
    copy_directory(from.as_fd(), to.as_fd(), 0)
}

fn like(to: &OwnedFd, original: &Stat) -> Result<(), Errno> {
    // The owner first: changing it takes set-user-ID away.
    fchown(
        to,
        Some(Uid::from_raw(original.st_uid)),
        Some(Gid::from_raw(original.st_gid)),
    )?;
    fchmod(to, mode(original))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn copy_directory(from: BorrowedFd, to: BorrowedFd, depth: usize) -> Result<(), Errno> {
    if depth == MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd, to: BorrowedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
    let original = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(original.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let (from, to) = (
                openat(from, name, DIRECTORY, Mode::empty())?,
                openat(to, name, DIRECTORY, Mode::empty())?,
            );
            copy_directory(from.as_fd(), to.as_fd(), depth + 1)?;
            like(&to, &original)
        }
        FileType::RegularFile => copy_file(from, to, name),
        FileType::Symlink => {
            let mut target = [MaybeUninit::uninit(); libc::PATH_MAX as usize];
            let (target, rest) = readlinkat_raw(from, name, &mut target)?;
            // The end of the string: there is room for it unless the target fills all.
            let end = rest.first_mut().ok_or(Errno::NAMETOOLONG)?;
            end.write(0);
            let length = target.len();
            let mut text = [0; libc::PATH_MAX as usize];
            text.get_mut(..length)
                .ok_or(Errno::NAMETOOLONG)?
                .copy_from_slice(target);
            let target = CStr::from_bytes_until_nul(&text).map_err(|_| Errno::INVAL)?;
            symlinkat(target, to, name)?;
            own(to, name, &original)
        }
        kind => {
            mknodat(to, name, kind, Mode::RWXU, original.st_rdev)?;
            own(to, name, &original)?;
            chmodat(to, name, mode(&original), AtFlags::empty())
        }
    }
}

fn own(directory: BorrowedFd, name: &CStr, original: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (
        Uid::from_raw(original.st_uid),
        Gid::from_raw(original.st_gid),
    );
    chownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn copy_file(from: BorrowedFd, to: BorrowedFd, name: &CStr) -> Result<(), Errno> {
    let from = openat(
        from,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = openat(to, name, create, Mode::RUSR | Mode::WUSR)?;
    while sendfile(&to, &from, None, 1 << 20)? > 0 {}
    like(&to, &fstat(&from)?)
}
