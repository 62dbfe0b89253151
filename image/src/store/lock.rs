//! Who may do what at the same time.
//!
//! Three kinds of locks, all `flock`, so that the kernel lets go of them when their holder is killed:
//! - `lock`, for moments: exclusively by whoever changes `index.json` or collects garbage, shared by
//!   whoever announces what it is about to use;
//! - a lease, a file in `leases/` locked as long as its owner works, which lists what the collector
//!   has to spare. Because leases are written under the shared lock and read under the exclusive one,
//!   what was announced before the collector began is spared, and what is looked for after that is
//!   seen to be missing;
//! - the file that something is being written to, by its writer: others who want the same wait for it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use super::Store;
use crate::digest::Digest;
use crate::error::{Result, io_error};

/// The store's lock, held until this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    _file: File,
}

impl Store {
    pub(super) fn lock_shared(&self) -> Result<Guard> {
        let (file, path) = self.open_lock()?;
        file.lock_shared().map_err(io_error("lock", &path))?;
        Ok(Guard { _file: file })
    }

    pub(super) fn lock_exclusive(&self) -> Result<Guard> {
        let (file, path) = self.open_lock()?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(Guard { _file: file })
    }

    /// Opened anew each time: the locks of one open file do not keep each other out.
    fn open_lock(&self) -> Result<(File, PathBuf)> {
        let path = self.path("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        Ok((file, path))
    }

    /// Begins to use the store: what the lease is told to hold stays until it is dropped.
    pub fn lease(&self) -> Result<Lease<'_>> {
        let _guard = self.lock_shared()?;
        let folder = self.path("leases");
        let file = NamedTempFile::new_in(&folder).map_err(io_error("make a file in", &folder))?;
        file.as_file()
            .lock()
            .map_err(io_error("lock", file.path()))?;
        Ok(Lease {
            store: self,
            file: Mutex::new(file),
        })
    }
}

/// Something that the collector spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// One blob.
    Blob(Digest),
    /// A manifest, all that it names, and the disk of its layers.
    Image(Digest),
    /// The disk of the layer chain with this ID.
    Disk(Digest),
}

impl Held {
    fn to_line(self) -> String {
        match self {
            Held::Blob(digest) => format!("blob {}\n", digest.hex()),
            Held::Image(digest) => format!("image {}\n", digest.hex()),
            Held::Disk(digest) => format!("disk {}\n", digest.hex()),
        }
    }

    fn from_line(line: &str) -> Option<Self> {
        let (kind, hex) = line.split_once(' ')?;
        let digest = Digest::from_hex(hex).ok()?;
        match kind {
            "blob" => Some(Held::Blob(digest)),
            "image" => Some(Held::Image(digest)),
            "disk" => Some(Held::Disk(digest)),
            _ => None,
        }
    }
}

/// Keeps things of the store from being collected. When it is dropped, or its process ends however it
/// ends, it holds nothing any more.
#[derive(Debug)]
pub struct Lease<'a> {
    store: &'a Store,
    file: Mutex<NamedTempFile>,
}

impl Lease<'_> {
    /// From now on this is spared, if it is still there: look for it after this.
    pub fn hold(&self, held: Held) -> Result<()> {
        let _guard = self.store.lock_shared()?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = file.path().to_owned();
        file.write_all(held.to_line().as_bytes())
            .map_err(io_error("write", &path))
    }
}

/// What all living leases hold. The files of dead ones are removed. Needs the exclusive lock.
pub(super) fn read_leases(store: &Store, _guard: &Guard) -> Result<Vec<Held>> {
    let folder = store.path("leases");
    let mut all = Vec::new();
    for path in files(&folder)? {
        if let Some(_dead) = lock_abandoned(&path) {
            // Somebody without the right to write here collects what he can.
            let _ = fs::remove_file(&path);
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(text) => all.extend(text.lines().filter_map(Held::from_line)),
            // It ended between the two.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (),
            Err(e) => return Err(io_error("read", &path)(e)),
        }
    }
    Ok(all)
}

/// The files in a folder.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .map_err(io_error("read", folder))?
        .map(|entry| {
            entry
                .map(|entry| entry.path())
                .map_err(io_error("read", folder))
        })
        .collect()
}

/// Opens a file that somebody wrote and nobody writes any more; it stays locked while it is open.
pub(super) fn lock_abandoned(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Opens the file at `path`, makes it if need be, and waits until it is ours alone.
pub(super) fn open_locked(path: &Path) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error("open", path))?;
        file.lock().map_err(io_error("lock", path))?;
        // Who had it before may have moved it to its place, or the collector may have removed it.
        let ours = file.metadata().map_err(io_error("read", path))?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            _ => continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_when_written_reads_as_the_same() {
        let digest = Digest::of(b"x");
        for held in [Held::Blob(digest), Held::Image(digest), Held::Disk(digest)] {
            assert_eq!(Held::from_line(held.to_line().trim_end()), Some(held));
        }
        assert_eq!(Held::from_line("blob ../../etc/passwd"), None);
    }

    #[test]
    fn leases_when_their_owner_is_gone_hold_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        let lease = store.lease().expect("lease");
        lease.hold(Held::Blob(Digest::of(b"x"))).expect("held");
        // As after a kill: the file is there, and nobody has it locked.
        let dead = store.path("leases").join("dead");
        fs::write(&dead, Held::Blob(Digest::of(b"y")).to_line()).expect("written");

        let guard = store.lock_exclusive().expect("lock");
        let held = read_leases(&store, &guard).expect("leases");
        assert_eq!(held, [Held::Blob(Digest::of(b"x"))]);
        assert!(!dead.exists());
        drop(guard);
        drop(lease);
        assert_eq!(files(&store.path("leases")).expect("files").len(), 0);
    }
}
