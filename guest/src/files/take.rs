//! Files out of a container.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    Dir, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, major, minor, openat, openat2,
    readlinkat,
};
use rustix::io::Errno;

use super::root::Root;
use super::tar::{Entry, Kind, padding, writer};
use super::{Failure, reopen};
use crate::http::{self, chunk_size_line};
use crate::server::socket::Socket;

/// How much is sent at a time, bytes.
const CHUNK: usize = 64 << 10;
/// How many files with several names are recognised as such; the names of others become files of their
/// own.
const MAX_LINKED: usize = 64 << 10;

/// Sends what is at `path` as an archive, in chunks. Its entries are named after the last part of the
/// path. A failure that is noticed once the answer has begun ends the connection instead of the
/// archive.
pub fn take(root: &Root, path: &[u8], socket: &mut Socket) -> Result<(), Failure> {
    let shown = String::from_utf8_lossy(path);
    let place = match root.place(path) {
        Ok(place) => place,
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_not_folder(&e) => {
            let message = format!("There is no {shown} in the container.");
            return Err(Failure::NotFound(message));
        }
        Err(e) => return Err(Failure::Failed(format!("Cannot open {shown}: {e}."))),
    };
    let stat =
        fstat(&place).map_err(|e| Failure::Failed(format!("Cannot look at {shown}: {e}.")))?;
    let mut archive = Archive {
        socket,
        buffer: Vec::with_capacity(CHUNK + 1024),
        linked: HashMap::new(),
        base: base_name(path).to_vec(),
        folders: Vec::new(),
        pending: 0,
    };
    let gone = |_| Failure::ClientGone;
    let head = http::start_chunked("application/x-tar");
    archive.socket.write_all(&head).map_err(gone)?;
    archive.add(&place, &stat, Vec::new()).map_err(gone)?;
    archive.add_folders(&place).map_err(gone)?;
    archive.end().map_err(gone)
}

fn is_not_folder(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTDIR)
}

/// The last part of a path that names something; `.` for the root.
fn base_name(path: &[u8]) -> &[u8] {
    let mut parts = path.split(|&b| b == b'/');
    let last = parts.rfind(|part| !matches!(*part, b"" | b"." | b".."));
    last.unwrap_or(b".")
}

/// The folders whose content is still to come may have names of so many bytes.
const MAX_PENDING: usize = 8 << 20;

const READ_FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);
/// A folder that was found by its names is found again by them, or not at all.
const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

struct Archive<'a> {
    socket: &'a mut Socket,
    buffer: Vec<u8>,
    /// Files with several names, and the first of them.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// What all names begin with.
    base: Vec<u8>,
    /// Folders whose content is still to come, by their paths below the first.
    folders: Vec<Vec<u8>>,
    pending: usize,
}

impl Archive<'_> {
    /// Adds what is at `place`; a folder's content later.
    fn add(&mut self, place: &OwnedFd, stat: &Stat, path: Vec<u8>) -> io::Result<()> {
        let name = match path.as_slice() {
            b"" => self.base.clone(),
            path => [&self.base[..], b"/", path].concat(),
        };
        let Some(mut entry) = entry(stat, name) else {
            // A socket: nobody could make it again.
            return Ok(());
        };
        match entry.kind {
            Kind::Symlink => entry.link = readlinkat(place, "", Vec::new())?.into_bytes(),
            Kind::File if stat.st_nlink > 1 => {
                let inode = (stat.st_dev, stat.st_ino);
                if let Some(first) = self.linked.get(&inode) {
                    entry.kind = Kind::HardLink;
                    entry.link.clone_from(first);
                    entry.size = 0;
                } else if self.linked.len() < MAX_LINKED {
                    self.linked.insert(inode, entry.path.clone());
                }
            }
            Kind::Folder => {
                self.pending += path.len();
                if self.pending > MAX_PENDING {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                self.folders.push(path);
                entry.path.push(b'/');
            }
            _ => {}
        }
        writer::header(&mut self.buffer, &entry);
        if entry.kind == Kind::File {
            self.add_data(place.as_fd(), entry.size)?;
        }
        self.flush(CHUNK)
    }

    /// Adds exactly `size` bytes of a file, which may grow or shrink meanwhile.
    fn add_data(&mut self, place: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        let mut left = size;
        if left > 0 {
            let mut file = reopen(place, OFlags::RDONLY | OFlags::NONBLOCK)?;
            while left > 0 {
                self.flush(CHUNK)?;
                let start = self.buffer.len();
                let room = CHUNK - start;
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(room);
                self.buffer.resize(start + now, 0);
                let n = file.read(&mut self.buffer[start..])?;
                if n == 0 {
                    // It has shrunk: the rest is zeros.
                    left -= now as u64;
                    continue;
                }
                self.buffer.truncate(start + n);
                left -= n as u64;
            }
        }
        let length = self.buffer.len() + padding(size);
        self.buffer.resize(length, 0);
        Ok(())
    }

    /// Adds the content of the folders below `top`, the deepest first.
    fn add_folders(&mut self, top: &OwnedFd) -> io::Result<()> {
        while let Some(path) = self.folders.pop() {
            self.pending -= path.len();
            let folder = match path.as_slice() {
                b"" => openat(top, ".", READ_FOLDER, Mode::empty()),
                path => openat2(top, path, READ_FOLDER, Mode::empty(), BELOW),
            };
            match folder {
                Ok(folder) => self.add_folder(&folder, &path)?,
                // It was there a moment ago.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn add_folder(&mut self, folder: &OwnedFd, path: &[u8]) -> io::Result<()> {
        if is_made_up(folder)? {
            return Ok(());
        }
        for child in Dir::read_from(folder)? {
            let child = child?;
            let name = child.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let place = match openat(folder, name, flags, Mode::empty()) {
                Ok(place) => place,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            let stat = fstat(&place)?;
            let path = match path {
                b"" => name.to_bytes().to_vec(),
                path => [path, b"/", name.to_bytes()].concat(),
            };
            self.add(&place, &stat, path)?;
        }
        Ok(())
    }

    /// Sends the buffer as a chunk if so much is in it.
    fn flush(&mut self, at: usize) -> io::Result<()> {
        if self.buffer.len() >= at.max(1) {
            self.socket
                .write_all(chunk_size_line(self.buffer.len()).as_bytes())?;
            self.buffer.extend_from_slice(b"\r\n");
            self.socket.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        writer::end(&mut self.buffer);
        self.flush(0)?;
        self.socket.write_all(http::LAST_CHUNK)
    }
}

/// An entry for what was looked at; `None` for what an archive cannot have.
fn entry(stat: &Stat, path: Vec<u8>) -> Option<Entry> {
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        libc::S_IFDIR => Kind::Folder,
        libc::S_IFIFO => Kind::Fifo,
        _ => return None,
    };
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    Some(Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: match kind {
            Kind::File => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        },
        mtime: stat.st_mtime,
        link: Vec::new(),
        device: if is_device {
            (major(stat.st_rdev), minor(stat.st_rdev))
        } else {
            (0, 0)
        },
    })
}

/// Whether a folder's content is the kernel's talk rather than files.
fn is_made_up(folder: &OwnedFd) -> io::Result<bool> {
    const PROC: i64 = 0x9fa0;
    const SYSFS: i64 = 0x6265_6572;
    const CGROUP2: i64 = 0x6367_7270;
    let kind = fstatfs(folder)?.f_type as i64;
    Ok(matches!(kind, PROC | SYSFS | CGROUP2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_when_an_archive_is_named_after_it_then_by_its_last_part() {
        for (path, name) in [
            (&b"/etc/passwd"[..], &b"passwd"[..]),
            (b"/etc//", b"etc"),
            (b"/etc/.", b"etc"),
            (b"/", b"."),
            (b"/..", b"."),
        ] {
            assert_eq!(base_name(path), name);
        }
    }
}
