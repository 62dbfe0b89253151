//! An image's files in a folder: for hosts whose kernel can mount no disk, and for users who may not.
//!
//! They are taken from the disk. So what layers hide, replace and link is decided once, and what comes here is a tree:
//! each name is made once, in a directory that was made before it, by that directory's descriptor, and nothing that is
//! there is ever opened, followed or replaced. A hostile image has no path to say anything with.
//!
//! Owners are the image's where they can be. What belongs to nobody that there is here (the users of a user namespace are
//! few) is its maker's, and then without set-user-ID bits and capabilities, which would be the maker's too. Devices are
//! left out where they may not be made, and attributes where they may not be set.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, ftruncate, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat,
    openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::erofs::{FileType, Node, ReadError, Reader, Time};
use crate::layers::Shown;

/// The most directories in one another: whoever makes or removes them has each open.
const MAX_DEPTH: usize = 400;
/// The image's root, in the folder that it is extracted to.
pub const ROOT: &str = "root";
/// Where files with several names are while names are given to them.
const LINKED: &str = "links";
/// Bits of a mode by which a program gets its file's owner.
const SET_ID: u16 = 0o6000;
/// The attribute by which it gets capabilities.
const CAPABILITIES: &[u8] = b"security.capability";

/// Why there is no such folder.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The disk cannot be read.
    #[error("its disk is of no use, and may be removed: {0}")]
    Disk(#[from] ReadError),
    /// A file could not be made.
    #[error("cannot {doing} {name}: {source}")]
    Make {
        /// What was done.
        doing: &'static str,
        /// To which name.
        name: Shown,
        /// What the kernel said.
        source: io::Error,
    },
    /// There are directories too deep.
    #[error(
        "it has more than {MAX_DEPTH} directories in one another, which is too deep for a folder"
    )]
    Depth,
}

/// Extracts the disk to an empty folder of ours, in which the root is then [`ROOT`]. What is there when this fails is of no
/// use.
pub fn extract(disk: &File, folder: &Path) -> Result<(), ExtractError> {
    let reader = Reader::open(disk)?;
    let base =
        openat(CWD, folder, DIRECTORY, Mode::empty()).map_err(failed("open", b"the folder"))?;
    let make = |name: &str| {
        mkdirat(&base, name, Mode::RWXU)
            .and_then(|()| openat(&base, name, DIRECTORY, Mode::empty()))
            .map_err(failed("make", name.as_bytes()))
    };
    let mut extraction = Extraction {
        disk,
        reader,
        linked: HashSet::new(),
        directories: HashSet::new(),
        links: make(LINKED)?,
    };
    extraction.walk(make(ROOT)?)?;
    let Extraction { linked, links, .. } = extraction;
    for number in linked {
        // One that was left out is not there.
        match unlinkat(&links, number.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("remove", LINKED.as_bytes())(e)),
        }
    }
    unlinkat(&base, LINKED, AtFlags::REMOVEDIR).map_err(failed("remove", LINKED.as_bytes()))
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

struct Extraction<'f> {
    disk: &'f File,
    reader: Reader<'f>,
    /// Numbers of files with several names that have been made.
    linked: HashSet<u64>,
    /// Numbers of directories: each is in one place.
    directories: HashSet<u64>,
    links: OwnedFd,
}

/// A directory that is being filled.
struct Open {
    fd: OwnedFd,
    node: Node,
    name: Vec<u8>,
    entries: std::vec::IntoIter<(Vec<u8>, u64)>,
}

impl Extraction<'_> {
    /// Makes all that is below the root, which is there.
    fn walk(&mut self, root: OwnedFd) -> Result<(), ExtractError> {
        let node = self.reader.root()?;
        let mut open = vec![self.enter(root, node, Vec::new())?];
        while let Some(directory) = open.last_mut() {
            let Some((name, number)) = directory.entries.next() else {
                if let Some(done) = open.pop() {
                    // Nothing is made in it any more.
                    self.give_open(done.fd.as_fd(), &done.node, &done.name)?;
                }
                continue;
            };
            let parent = directory.fd.as_fd();
            let node = self.reader.node(number)?;
            if node.file_type != FileType::Directory {
                self.name_file(parent, &name, &node)?;
                continue;
            }
            let made = mkdirat(parent, &name, Mode::RWXU)
                .and_then(|()| openat(parent, &name, DIRECTORY, Mode::empty()));
            let fd = made.map_err(failed("make", &name))?;
            if open.len() >= MAX_DEPTH {
                return Err(ExtractError::Depth);
            }
            open.push(self.enter(fd, node, name)?);
        }
        Ok(())
    }

    fn enter(&mut self, fd: OwnedFd, node: Node, name: Vec<u8>) -> Result<Open, ExtractError> {
        if !self.directories.insert(node.number) {
            return Err(ReadError::Damaged("a directory is in two places").into());
        }
        Ok(Open {
            fd,
            entries: self.reader.entries(&node)?.into_iter(),
            node,
            name,
        })
    }

    /// Puts a file in its place, which it may have to share with others of its names.
    fn name_file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        node: &Node,
    ) -> Result<(), ExtractError> {
        if node.links <= 1 {
            return self.make(parent, name, node);
        }
        let once = node.number.to_string();
        if self.linked.insert(node.number) {
            self.make(self.links.as_fd(), once.as_bytes(), node)?;
        }
        let link = || linkat(&self.links, &once, parent, name, AtFlags::empty());
        match link() {
            // It was left out.
            Err(Errno::NOENT) => return Ok(()),
            // It has as many names as it can have, and they are two files from here on.
            Err(Errno::MLINK) => {}
            linked => return linked.map_err(failed("link", name)),
        }
        unlinkat(&self.links, &once, AtFlags::empty()).map_err(failed("link", name))?;
        self.make(self.links.as_fd(), once.as_bytes(), node)?;
        link().map_err(failed("link", name))
    }

    /// Makes a file that is no directory. A device that may not be made is left out.
    fn make(&self, parent: BorrowedFd<'_>, name: &[u8], node: &Node) -> Result<(), ExtractError> {
        let special = match node.file_type {
            FileType::Regular | FileType::Directory => {
                let file = openat(parent, name, NEW_FILE, Mode::RUSR | Mode::WUSR);
                let file = File::from(file.map_err(failed("make", name))?);
                self.fill(&file, name, node)?;
                return self.give_open(file.as_fd(), node, name);
            }
            FileType::Symlink => {
                let target = self.reader.target(node)?;
                symlinkat(target, parent, name).map_err(failed("make", name))?;
                return self.give_named(parent, name, node);
            }
            FileType::Character => rustix::fs::FileType::CharacterDevice,
            FileType::Block => rustix::fs::FileType::BlockDevice,
            FileType::Fifo => rustix::fs::FileType::Fifo,
        };
        let device = match node.file_type {
            FileType::Fifo => 0,
            _ => {
                let (major, minor) = node.device();
                makedev(major, minor)
            }
        };
        match mknodat(parent, name, special, Mode::RUSR | Mode::WUSR, device) {
            Err(Errno::PERM) if node.file_type != FileType::Fifo => return Ok(()),
            made => made.map_err(failed("make", name))?,
        }
        self.give_named(parent, name, node)
    }

    /// Copies a file's contents.
    fn fill(&self, mut file: &File, name: &[u8], node: &Node) -> Result<(), ExtractError> {
        let mut end = 0;
        for extent in self.reader.contents(node)? {
            let mut disk = self.disk;
            let copied = disk
                .seek(SeekFrom::Start(extent.at))
                .and_then(|_| match extent.offset == end {
                    true => Ok(end),
                    false => file.seek(SeekFrom::Start(extent.offset)),
                })
                .and_then(|_| io::copy(&mut Read::take(disk, extent.len), &mut file));
            let copied = copied.map_err(|source| ExtractError::Make {
                doing: "write",
                name: Shown::new(name),
                source,
            })?;
            if copied != extent.len {
                return Err(ReadError::Damaged("it was cut").into());
            }
            end = extent.offset + extent.len;
        }
        match end == node.size {
            true => Ok(()),
            // It ends with a hole.
            false => ftruncate(file, node.size).map_err(failed("write", name)),
        }
    }

    /// Gives what is open its owner, permissions, attributes and time, in the one order in which none undoes another.
    fn give_open(&self, fd: BorrowedFd<'_>, node: &Node, name: &[u8]) -> Result<(), ExtractError> {
        let is_owned = is_given(fchown(fd, uid(node), gid(node))).map_err(failed("own", name))?;
        fchmod(fd, mode(node, is_owned)).map_err(failed("set the mode of", name))?;
        for (attribute, value) in self.reader.xattrs(node)? {
            if is_owned || attribute != CAPABILITIES {
                let set = fsetxattr(fd, &attribute[..], &value, XattrFlags::empty());
                is_set(set).map_err(failed("set an attribute of", name))?;
            }
        }
        futimens(fd, &times(node.mtime)).map_err(failed("set the time of", name))
    }

    /// The same for what cannot be opened, or had better not be.
    fn give_named(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        node: &Node,
    ) -> Result<(), ExtractError> {
        let own = chownat(
            parent,
            name,
            uid(node),
            gid(node),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        let is_owned = is_given(own).map_err(failed("own", name))?;
        if node.file_type != FileType::Symlink {
            // It was made just now, where nobody else makes anything.
            chmodat(parent, name, mode(node, is_owned), AtFlags::empty())
                .map_err(failed("set the mode of", name))?;
        }
        for (attribute, value) in self.reader.xattrs(node)? {
            // There is no call with a directory's descriptor for this on most kernels.
            let path = [
                format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(),
                name,
            ]
            .concat();
            let set = lsetxattr(path, &attribute[..], &value, XattrFlags::empty());
            is_set(set).map_err(failed("set an attribute of", name))?;
        }
        utimensat(parent, name, &times(node.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the time of", name))
    }
}

fn failed(doing: &'static str, name: &[u8]) -> impl FnOnce(Errno) -> ExtractError {
    let name = Shown::new(name);
    move |e| ExtractError::Make {
        doing,
        name,
        source: e.into(),
    }
}

/// Whether something could be given. That it is not permitted, or that there is no such thing here, is no error.
fn is_given(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The same of an extended attribute, for which file systems have little room.
fn is_set(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => Ok(false),
        result => is_given(result),
    }
}

fn uid(node: &Node) -> Option<Uid> {
    // The last number means none.
    (node.uid != u32::MAX).then(|| Uid::from_raw(node.uid))
}

fn gid(node: &Node) -> Option<Gid> {
    (node.gid != u32::MAX).then(|| Gid::from_raw(node.gid))
}

fn mode(node: &Node, is_owned: bool) -> Mode {
    let kept = match is_owned && node.uid != u32::MAX && node.gid != u32::MAX {
        true => node.mode,
        false => node.mode & !SET_ID,
    };
    Mode::from_raw_mode(u32::from(kept))
}

fn times(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds.min(999_999_999)),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
