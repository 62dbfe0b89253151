//! Files into a container.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
    fchmod, fchown, futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::Failure;
use super::root::Root;
use super::tar::reader::Reader;
use super::tar::{Entry, Kind};

/// How much is written at a time, bytes.
const CHUNK: usize = 64 << 10;
/// Of how many folders the time is set once all that is in them has come.
const MAX_FOLDERS: usize = 16 << 10;

/// Puts the files of an archive into the folder at `path`. Files that are there already make way;
/// folders stay, with what the archive does not name. What has come before a failure stays.
pub fn put(root: &Root, path: &[u8], archive: &mut impl Read) -> Result<(), Failure> {
    let shown = String::from_utf8_lossy(path);
    root.folder(path).map_err(|e| {
        let message = format!("There is no folder {shown} in the container: {e}.");
        Failure::NotFound(message)
    })?;
    let mut target = Target {
        root,
        path,
        parent: None,
        folders: Vec::new(),
    };
    let mut reader = Reader::new(archive);
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(e) => return Err(of_archive(&e, None)),
        };
        target.put(&entry, &mut reader)?;
    }
    target.set_times();
    // What follows the end of the archive is padding.
    let archive = reader.into_source();
    match io::copy(archive, &mut io::sink()) {
        Ok(_) => Ok(()),
        Err(e) => Err(of_archive(&e, None)),
    }
}

fn of_archive(error: &io::Error, entry: Option<&Entry>) -> Failure {
    match (error.kind(), entry) {
        (io::ErrorKind::InvalidData, _) => Failure::Archive(format!("Not a tar archive: {error}.")),
        (_, Some(entry)) => {
            let name = String::from_utf8_lossy(&entry.path);
            Failure::Failed(format!("Cannot put {name} into the container: {error}."))
        }
        (_, None) => Failure::ClientGone,
    }
}

struct Target<'a> {
    root: &'a Root,
    path: &'a [u8],
    /// The folder the last entry was put into: most entries follow their neighbours.
    parent: Option<(Vec<u8>, OwnedFd)>,
    folders: Vec<(Vec<u8>, i64)>,
}

impl Target<'_> {
    fn put<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), Failure> {
        let parts = parts(&entry.path).ok_or_else(|| {
            let name = String::from_utf8_lossy(&entry.path);
            Failure::Archive(format!("{name} in the archive leads out of it."))
        })?;
        let Some((name, parents)) = parts.split_last() else {
            // The folder itself, which is there.
            return Ok(());
        };
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => Failure::ClientGone,
            _ => of_archive(&e, Some(entry)),
        };
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            let name = String::from_utf8_lossy(&entry.path);
            let message = format!("{name} in the archive is a device; those are not put.");
            return Err(Failure::Archive(message));
        }
        self.enter(parents).map_err(failed)?;
        let Some((_, parent)) = &self.parent else {
            return Ok(());
        };
        let name = CString::new(*name).map_err(|e| failed(e.into()))?;
        self.make(parent, &name, entry, reader).map_err(failed)?;
        if entry.kind == Kind::Folder && self.folders.len() < MAX_FOLDERS {
            self.folders.push((parts.join(&b'/'), entry.mtime));
        }
        Ok(())
    }

    /// Makes the folder at `parents` the one that things are put into; makes it first, if need be.
    fn enter(&mut self, parents: &[&[u8]]) -> io::Result<()> {
        let wanted = parents.join(&b'/');
        if self.parent.as_ref().is_some_and(|(at, _)| *at == wanted) {
            return Ok(());
        }
        let mut at = self.path.to_vec();
        let folder = match self.root.folder(&[&at[..], b"/", &wanted].concat()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut folder = self.root.folder(&at)?;
                for part in parents {
                    at.push(b'/');
                    at.extend_from_slice(part);
                    match mkdirat(&folder, *part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                    folder = self.root.folder(&at)?;
                }
                folder
            }
            result => result?,
        };
        self.parent = Some((wanted, folder));
        Ok(())
    }

    fn make<R: Read>(
        &self,
        parent: &OwnedFd,
        name: &CString,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> io::Result<()> {
        let is_folder = entry.kind == Kind::Folder;
        let there = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e.into()),
        };
        match there {
            Some(true) if is_folder => {}
            Some(true) => return Err(Errno::ISDIR.into()),
            Some(false) => unlinkat(parent, name, AtFlags::empty())?,
            None => {}
        }
        match entry.kind {
            Kind::File => return put_file(parent, name, entry, reader),
            Kind::HardLink => {
                let parts = parts(&entry.link).filter(|parts| !parts.is_empty());
                let to = parts.ok_or(Errno::INVAL)?.join(&b'/');
                let to = self.root.place(&[self.path, b"/", &to].concat())?;
                linkat(to, c"", parent, name, AtFlags::EMPTY_PATH)?;
                return Ok(());
            }
            Kind::Symlink => symlinkat(entry.link.as_slice(), parent, name)?,
            Kind::Folder if there.is_none() => mkdirat(parent, name, Mode::RWXU)?,
            Kind::Fifo => mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?,
            _ => {}
        }
        let (uid, gid) = owner(entry);
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if entry.kind == Kind::Symlink {
            let times = times(entry.mtime);
            utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(());
        }
        // Not through the name, which may by now be a link's.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(parent, name, flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
        if kind == FileType::Symlink {
            return Err(Errno::LOOP.into());
        }
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
        let mode = Mode::from_raw_mode(entry.mode);
        Ok(chmodat(rustix::fs::CWD, path, mode, AtFlags::empty())?)
    }

    /// Sets the folders' times, which what was put into them has changed.
    fn set_times(&self) {
        for (path, mtime) in self.folders.iter().rev() {
            // A folder without its time is no reason to fail once all files are there.
            if let Ok(folder) = self.root.folder(&[self.path, b"/", path].concat()) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                if let Ok(folder) = super::reopen(&folder, flags) {
                    let _ = futimens(&folder, &times(*mtime));
                }
            }
        }
    }
}

fn put_file<R: Read>(
    parent: &OwnedFd,
    name: &CString,
    entry: &Entry,
    reader: &mut Reader<R>,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = reader.data().read(&mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
    }
    let (uid, gid) = owner(entry);
    fchown(&file, uid, gid)?;
    // After the owner, since a change of that takes set-user-ID away.
    fchmod(&file, Mode::from_raw_mode(entry.mode))?;
    Ok(futimens(&file, &times(entry.mtime))?)
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    // All ones would mean that it stays as it is.
    let id = |id: u32| (id != u32::MAX).then_some(id);
    (
        id(entry.uid).map(Uid::from_raw),
        id(entry.gid).map(Gid::from_raw),
    )
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime,
            tv_nsec: 0,
        },
    }
}

/// The parts of an archive's path, which is below the folder whatever it begins with; `None` if it
/// leads upwards.
fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts = path
        .split(|&b| b == b'/')
        .filter(|p| !matches!(*p, b"" | b"."));
    let parts: Vec<&[u8]> = parts.collect();
    (!parts.contains(&&b".."[..])).then_some(parts)
}
