//! Copies of what containers may only read, for guests that no file server serves: all of them on one
//! EROFS, under numbers from 0. Made when a container starts, so that it shows how things were then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_image::erofs::{
    Attributes, Child, Directories, Inode, NAME_LEN, Special, Time, WriteError, Writer, Xattrs,
};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, major, minor, openat,
    readlinkat, statat,
};

/// The most bytes of a disk: what an EROFS of 4 KiB blocks can address.
const LIMIT: u64 = 1 << 44;
/// The deepest folder that is copied: each takes a descriptor while it is.
const MAX_DEPTH: usize = 256;

/// Why a copy could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file.
    #[error("cannot copy `{name}`: {source}")]
    File {
        /// Its name.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// The disk.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes copies of `sources` to `disk`, which is open for reading, too.
pub fn write<'a>(sources: impl Iterator<Item = &'a Path>, disk: &File) -> Result<(), CopyError> {
    let mut tree = Tree::default();
    tree.folders.push(Folder::default());
    tree.folders[0].attributes.mode = 0o755;
    let mut writer = Writer::new(disk, [0; 16], LIMIT)?;
    for (number, source) in sources.enumerate() {
        let name = source.as_os_str().as_encoded_bytes();
        let child = tree.add(&mut writer, CWD, name, 0, 0)?;
        if let Some(child) = child {
            tree.folders[0]
                .entries
                .push((number.to_string().into_bytes().into(), child));
        }
    }
    for folder in &mut tree.folders {
        folder.entries.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let links: Vec<_> = tree.linked.values().copied().collect();
    writer.finish(&tree, &links)?;
    Ok(())
}

#[derive(Default)]
struct Folder {
    parent: usize,
    attributes: Attributes,
    entries: Vec<(Box<[u8]>, Child)>,
}

#[derive(Default)]
struct Tree {
    folders: Vec<Folder>,
    /// Files with more than one name, by device and number, and how many of the names were met.
    linked: HashMap<(u64, u64), (Inode, u32)>,
}

impl Tree {
    /// Copies what has this name in a folder of the host. `None`: there is nothing to be copied.
    fn add(
        &mut self,
        writer: &mut Writer<'_>,
        at: BorrowedFd<'_>,
        name: &[u8],
        parent: usize,
        depth: usize,
    ) -> Result<Option<Child>, CopyError> {
        let failed = |source: io::Error| CopyError::File {
            name: String::from_utf8_lossy(name).into_owned(),
            source,
        };
        let found = match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since it was listed.
            Err(rustix::io::Errno::NOENT) if depth > 0 => return Ok(None),
            found => found.map_err(|e| failed(e.into()))?,
        };
        let key = (found.st_dev, found.st_ino);
        if let Some((inode, names)) = self.linked.get_mut(&key) {
            *names += 1;
            return Ok(Some(Child::Inode(*inode)));
        }
        let open = |flags| {
            let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(at, name, flags, Mode::empty()).map_err(|e| failed(e.into()))
        };
        let mut attributes = attributes(&found);
        let inode = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                if depth == MAX_DEPTH {
                    return Err(failed(io::Error::other("it lies too deep")));
                }
                let folder = open(OFlags::DIRECTORY)?;
                attributes.xattrs = xattrs(&folder).map_err(failed)?;
                return self
                    .folder(writer, folder, attributes, parent, depth)
                    .map(Some);
            }
            FileType::RegularFile => {
                // A pipe that has taken its place since must not be waited for.
                let file = File::from(open(OFlags::NONBLOCK)?);
                attributes.xattrs = xattrs(&file).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                // One that gets shorter meanwhile ends with zeros.
                let mut contents = file.chain(io::repeat(0)).take(size);
                writer.file(&attributes, size, &mut contents)?
            }
            FileType::Symlink => {
                let target = readlinkat(at, name, Vec::new()).map_err(|e| failed(e.into()))?;
                writer.symlink(&attributes, target.as_bytes())?
            }
            FileType::Fifo => writer.special(&attributes, Special::Fifo)?,
            FileType::CharacterDevice => {
                let device = Special::Character(major(found.st_rdev), minor(found.st_rdev));
                writer.special(&attributes, device)?
            }
            FileType::BlockDevice => {
                let device = Special::Block(major(found.st_rdev), minor(found.st_rdev));
                writer.special(&attributes, device)?
            }
            // Nobody would answer at the other end of a socket.
            _ => return Ok(None),
        };
        if found.st_nlink > 1 {
            self.linked.insert(key, (inode, 1));
        }
        Ok(Some(Child::Inode(inode)))
    }

    fn folder(
        &mut self,
        writer: &mut Writer<'_>,
        folder: OwnedFd,
        attributes: Attributes,
        parent: usize,
        depth: usize,
    ) -> Result<Child, CopyError> {
        let number = self.folders.len();
        self.folders.push(Folder {
            parent,
            attributes,
            entries: Vec::new(),
        });
        let failed = |e: rustix::io::Errno| CopyError::File {
            name: "a folder".to_owned(),
            source: e.into(),
        };
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || name.len() > NAME_LEN {
                continue;
            }
            if let Some(child) = self.add(writer, folder.as_fd(), name, number, depth + 1)? {
                self.folders[number].entries.push((name.into(), child));
            }
        }
        Ok(Child::Directory(number))
    }
}

impl Directories for Tree {
    fn count(&self) -> usize {
        self.folders.len()
    }
    fn parent(&self, directory: usize) -> usize {
        self.folders[directory].parent
    }
    fn attributes(&self, directory: usize) -> &Attributes {
        &self.folders[directory].attributes
    }
    fn entries(&self, directory: usize) -> usize {
        self.folders[directory].entries.len()
    }
    fn entry(&self, directory: usize, index: usize) -> (&[u8], Child) {
        let (name, child) = &self.folders[directory].entries[index];
        (name, *child)
    }
}

fn attributes(found: &Stat) -> Attributes {
    Attributes {
        mode: (found.st_mode & 0o7777) as u16,
        uid: found.st_uid,
        gid: found.st_gid,
        mtime: Time {
            seconds: found.st_mtime,
            nanoseconds: found.st_mtime_nsec as u32,
        },
        xattrs: Xattrs::default(),
    }
}

/// The extended attributes of a file; none on file systems that have none.
fn xattrs(file: impl AsFd) -> io::Result<Xattrs> {
    let mut names = vec![0; Xattrs::MAX_LEN];
    let n = match flistxattr(&file, &mut names) {
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) | Ok(0) => {
            return Ok(Xattrs::default());
        }
        n => n?,
    };
    let mut pairs = Vec::new();
    let mut value = vec![0; Xattrs::MAX_LEN];
    for name in names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
    {
        // One that went or is not for us is left out.
        if let Ok(n) = fgetxattr(&file, name, &mut value) {
            pairs.push((name.to_vec(), value[..n].to_vec()));
        }
    }
    Xattrs::encode(&pairs).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn copies_have_what_the_sources_have_by_the_word_of_fsck() {
        let dir = tempfile::tempdir().expect("folder");
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("sub/deep")).expect("mkdir");
        fs::write(source.join("sub/deep/file"), vec![7; 100_000]).expect("write");
        fs::hard_link(source.join("sub/deep/file"), source.join("again")).expect("link");
        symlink("sub/deep/file", source.join("link")).expect("symlink");
        fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o1751)).expect("mode");
        let _socket = UnixListener::bind(source.join("socket")).expect("socket");
        let alone = dir.path().join("alone");
        fs::write(&alone, "alone").expect("write");
        let path = dir.path().join("disk");
        let disk = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("disk");
        write([&*source, &*alone].into_iter(), &disk).expect("copies");

        let out = dir.path().join("out");
        let fsck = Command::new("fsck.erofs")
            .arg(format!("--extract={}", out.display()))
            .arg(&path)
            .output()
            .expect("fsck.erofs, of the package erofs-utils");
        assert!(fsck.status.success(), "{fsck:?}");
        let diff = Command::new("diff")
            .args(["-r", "--no-dereference", "--exclude=socket"])
            .args([&source, &out.join("0")])
            .output()
            .expect("diff");
        assert!(diff.status.success(), "{diff:?}");
        assert_eq!(fs::read(out.join("1")).expect("alone"), b"alone");
        assert!(!out.join("0/socket").exists());
        let mode = |path: &Path| fs::metadata(path).expect("sub").permissions().mode();
        assert_eq!(mode(&source.join("sub")), mode(&out.join("0/sub")));
    }
}
