//! Trees as they are seen: every name with all that `lstat` and its friends tell.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Everything about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number.
    pub rdev: u64,
    /// Contents, or a link's target.
    pub contents: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names of the same inode, for what is no directory; else the link count.
    pub links: Links,
}

/// What is linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Links {
    /// Names of the same inode, sorted.
    Names(Vec<Vec<u8>>),
    /// How many: two and the directories in this one.
    Count(u64),
}

/// What file systems that can be written keep of this: symbolic links have no permissions, only files and directories
/// have attributes that anybody may set, and what a directory's link count means differs.
pub fn in_a_folder(mut tree: BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    for seen in tree.values_mut() {
        let kind = seen.mode & 0o170_000;
        if kind == 0o120_000 {
            seen.mode |= 0o777;
            seen.mode &= !0o7000;
        }
        if !matches!(kind, 0o100_000 | 0o40_000) {
            seen.xattrs.retain(|name, _| !name.starts_with(b"user."));
        }
        if let Links::Count(count) = &mut seen.links {
            *count = 0;
        }
    }
    tree
}

/// Everything below a directory, and itself as the empty name.
pub fn see(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut tree = BTreeMap::new();
    let mut names: BTreeMap<u64, (u64, Vec<Vec<u8>>)> = BTreeMap::new();
    let mut inodes = Vec::new();
    look(root, root, &mut |name, inode, nlink, seen| {
        if let Links::Names(_) = seen.links {
            let (count, names) = names.entry(inode).or_default();
            *count = nlink;
            names.push(name.clone());
            inodes.push((name.clone(), inode));
        }
        tree.insert(name, seen);
    });
    for (count, names) in names.values_mut() {
        assert_eq!(*count, names.len() as u64, "link count of {names:?}");
        names.sort();
    }
    for (name, inode) in inodes {
        if let Some(seen) = tree.get_mut(&name) {
            seen.links = Links::Names(names[&inode].1.clone());
        }
    }
    tree
}

fn look(root: &Path, path: &Path, found: &mut impl FnMut(Vec<u8>, u64, u64, Seen)) {
    let stat = path.symlink_metadata().expect("lstat");
    let kind = stat.file_type();
    let contents = if kind.is_file() {
        fs::read(path).expect("a readable file")
    } else if kind.is_symlink() {
        let target = fs::read_link(path).expect("a link");
        assert_eq!(target.as_os_str().len() as u64, stat.len());
        target.into_os_string().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    let name = path
        .strip_prefix(root)
        .expect("below the root")
        .as_os_str()
        .as_bytes()
        .to_vec();
    let seen = Seen {
        mode: stat.mode(),
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: (stat.mtime(), stat.mtime_nsec() as u32),
        rdev: stat.rdev(),
        contents,
        xattrs: xattrs(path),
        links: if kind.is_dir() {
            Links::Count(stat.nlink())
        } else {
            Links::Names(Vec::new())
        },
    };
    found(name, stat.ino(), stat.nlink(), seen);
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("its type");
            let stat = entry
                .path()
                .symlink_metadata()
                .expect("what is listed can be looked up");
            assert_eq!(kind, stat.file_type());
            look(root, &entry.path(), found);
        }
    }
}

/// Extended attributes, those of symbolic links too.
pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 128 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("llistxattr");
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("lgetxattr");
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}
