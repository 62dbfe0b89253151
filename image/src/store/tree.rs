//! The trees of images: the files of a disk in a folder, for whoever cannot mount the disk.
//!
//! `trees/CHAIN.OWNERS` is complete, as all that has its final name. OWNERS stands for the users and groups that its maker
//! had: the files of another user namespace are other people's. While one is made it is `.partial`, and `.lock` is its
//! maker's; what is to be removed is `.dead`, as long as that takes, which may be until somebody comes who is permitted to:
//! the files of a user namespace can be removed in there alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::lock::{files, open_locked};
use super::{Held, Image, Store};
use crate::digest::Digest;
use crate::error::{Error, Result, io_error};
use crate::extract::{ROOT, extract};
use crate::progress::Progress;

/// Digits of a name that stand for the owners.
const TAG_LEN: usize = 16;

/// The users and groups that files can belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners(String);

impl Owners {
    /// Those of this process, which are those of its user namespace.
    pub fn of_this_process() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::mapped(&read("/proc/self/uid_map"), &read("/proc/self/gid_map"))
    }

    /// Those of a user namespace with these maps, as `/proc/PID/uid_map` and `gid_map` show them.
    pub fn mapped(users: &str, groups: &str) -> Self {
        let numbers = |map: &str| {
            let words: Vec<&str> = map.split_ascii_whitespace().collect();
            words.join(" ")
        };
        let all = format!("{};{}", numbers(users), numbers(groups));
        let mut tag = Digest::of(all.as_bytes()).hex();
        tag.truncate(TAG_LEN);
        Owners(tag)
    }
}

impl Store {
    /// The image's files in a folder, for users and groups like this process's, if they have been extracted.
    pub fn find_tree(&self, image: &Image, owners: &Owners) -> Option<PathBuf> {
        let folder = self.tree_path(image, owners);
        folder.is_dir().then(|| folder.join(ROOT))
    }

    /// The image's files in a folder, which is its root. If they are not there yet, they are extracted by whoever comes
    /// first, while others who want them wait. The folder stays as long as the image's disk would.
    pub fn tree(&self, image: &Image, progress: &dyn Progress) -> Result<PathBuf> {
        let owners = Owners::of_this_process();
        let folder = self.tree_path(image, &owners);
        let root = folder.join(ROOT);
        if folder.is_dir() {
            return Ok(root);
        }
        let lease = self.lease()?;
        lease.hold(Held::Disk(image.chain_id()))?;
        lease.hold(Held::Image(image.manifest.digest))?;
        let disk = self.disk(image, progress)?;
        let trees = self.path("trees");
        make_folder(&trees)?;
        let lock = folder.with_added_extension("lock");
        let _locked = open_locked(&lock)?;
        if !folder.is_dir() {
            let partial = folder.with_added_extension("partial");
            if let Err(e) = make_tree(image, &disk, &partial, &folder) {
                // It is of no use to anybody, and may be large.
                let _ = remove_tree(&partial);
                let _ = fs::remove_file(&lock);
                return Err(e);
            }
        }
        fs::remove_file(&lock).map_err(io_error("remove", &lock))?;
        Ok(root)
    }

    /// Removes what is left of trees that nothing needs any more, as far as that is permitted. How many bytes that were.
    pub fn remove_dead_trees(&self) -> Result<u64> {
        let mut bytes = 0;
        for path in self.trees()? {
            if has_extension(&path, "dead") {
                let size = bytes_in(&path);
                if remove_tree(&path).is_ok() {
                    bytes += size;
                }
            }
        }
        Ok(bytes)
    }

    /// Whether there are such, which whoever is permitted to has to remove.
    pub fn has_dead_trees(&self) -> Result<bool> {
        let trees = self.trees()?;
        Ok(trees.iter().any(|path| has_extension(path, "dead")))
    }

    /// Gives up trees of chains that are not kept, and those whose makers were killed.
    pub(super) fn give_up_trees(&self, is_kept: &dyn Fn(&Digest) -> bool) -> Result<()> {
        for path in self.trees()? {
            let Some(chain) = chain_of(&path) else {
                continue;
            };
            if has_extension(&path, "dead") {
                continue;
            }
            let half = ["lock", "partial"]
                .into_iter()
                .find(|e| has_extension(&path, e));
            if half.is_none() && is_kept(&chain) {
                continue;
            }
            let tree = match half {
                Some(_) => path.with_extension(""),
                None => path.clone(),
            };
            let lock = tree.with_added_extension("lock");
            // Whoever is making it has it.
            let Some(_locked) = try_lock(&lock)? else {
                continue;
            };
            if half != Some("lock") {
                bury(&path)?;
            }
            fs::remove_file(&lock).map_err(io_error("remove", &lock))?;
        }
        Ok(())
    }

    fn tree_path(&self, image: &Image, owners: &Owners) -> PathBuf {
        let name = format!("{}.{}", image.chain_id().hex(), owners.0);
        self.path("trees").join(name)
    }

    /// All that is where trees are; nothing if none has ever been.
    fn trees(&self) -> Result<Vec<PathBuf>> {
        let folder = self.path("trees");
        match folder.is_dir() {
            true => files(&folder),
            false => Ok(Vec::new()),
        }
    }
}

/// Extracts a disk to `partial`, and gives that its name.
fn make_tree(image: &Image, disk: &Path, partial: &Path, folder: &Path) -> Result<()> {
    // What a killed process has left.
    remove_tree(partial).map_err(io_error("remove", partial))?;
    make_folder(partial)?;
    let file = File::open(disk).map_err(io_error("open", disk))?;
    extract(&file, partial).map_err(|source| Error::Tree {
        image: image.title(),
        source,
    })?;
    // What has its name is complete, and is to be so after a power failure.
    let made = File::open(partial).map_err(io_error("open", partial))?;
    rustix::fs::syncfs(&made).map_err(|e| io_error("write", partial)(e.into()))?;
    fs::rename(partial, folder).map_err(io_error("make", folder))
}

/// Takes a tree's name away, so that nobody uses it any more. Where it cannot be removed now it is later.
fn bury(tree: &Path) -> Result<()> {
    for number in 0_u32.. {
        match fs::rename(tree, tree.with_added_extension(format!("{number}.dead"))) {
            Ok(()) => break,
            Err(e) => match e.kind() {
                io::ErrorKind::NotFound => break,
                // An earlier one has not been removed yet.
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {}
                _ => return Err(io_error("remove", tree)(e)),
            },
        }
    }
    Ok(())
}

/// Removes a folder. One that is not there is no error.
fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn make_folder(path: &Path) -> Result<()> {
    // What is in images is nobody else's business.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(io_error("make", path))
}

/// Takes a lock, whose file is made if need be, unless somebody has it.
fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(io_error("open", path))?;
    if file.try_lock().is_err() {
        return Ok(None);
    }
    let ours = file.metadata().map_err(io_error("read", path))?;
    let there = fs::metadata(path);
    let is_there = there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
    Ok(is_there.then_some(file))
}

/// The layer chain that a tree, or what becomes or was one, is of.
fn chain_of(path: &Path) -> Option<Digest> {
    let (chain, _) = path.file_name()?.to_str()?.split_once('.')?;
    Digest::from_hex(chain).ok()
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension()
        .is_some_and(|extension| extension == wanted)
}

/// What a folder takes on the disk, as far as it can be looked into.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        // Of a file with several names each has its share.
        Ok(metadata) => metadata.blocks() * 512 / metadata.nlink().max(1),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_when_maps_are_written_in_two_ways_then_the_same_and_else_others() {
        let shown = "         0       1000          1\n         1     100000      65536\n";
        let ours = Owners::mapped("0 1000 1\n1 100000 65536\n", "0 1000 1\n");
        assert_eq!(Owners::mapped(shown, "0 1000 1"), ours);
        assert_ne!(Owners::mapped("0 1000 1", "0 1000 1"), ours);
        assert_eq!(ours.0.len(), TAG_LEN);
    }

    #[test]
    fn trees_when_not_kept_or_half_made_then_given_up_and_those_being_made_are_not() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let [kept, other, making] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let path = |chain: &Digest, rest: &str| {
            store.path("trees").join(format!("{}.{rest}", chain.hex()))
        };
        for path in [
            path(&kept, "1"),
            path(&other, "1"),
            path(&kept, "2.partial"),
            path(&making, "1.partial"),
        ] {
            fs::create_dir_all(path.join(ROOT).join("etc")).expect("folder");
        }
        fs::write(path(&kept, "2.lock"), "").expect("lock");
        let _maker = open_locked(&path(&making, "1.lock")).expect("lock");
        store
            .give_up_trees(&|chain| *chain == kept)
            .expect("given up");
        assert!(store.has_dead_trees().expect("listed"));
        store.remove_dead_trees().expect("removed");
        let mut left = store.trees().expect("listed");
        left.sort();
        let mut expected = [
            path(&kept, "1"),
            path(&making, "1.partial"),
            path(&making, "1.lock"),
        ];
        expected.sort();
        assert_eq!(left, expected);
    }
}
