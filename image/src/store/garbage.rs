//! Collecting what nothing needs any more.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::lock::{files, lock_abandoned, read_leases};
use super::{Held, Image, Store};
use crate::digest::Digest;
use crate::error::{Result, io_error};
use crate::manifest::{Descriptor, MAX_MANIFEST, Manifest};

/// How long half a blob waits for somebody to go on with it.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// What was collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Garbage {
    /// How many files.
    pub files: u64,
    /// How many bytes they took on the disk.
    pub bytes: u64,
}

impl Garbage {
    fn remove(&mut self, path: &Path) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let bytes = fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
        match fs::remove_file(path) {
            Ok(()) => {
                self.files += 1;
                self.bytes += bytes;
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("remove", path)(e)),
        }
    }
}

/// What stays.
#[derive(Default)]
struct Kept {
    blobs: HashSet<Digest>,
    disks: HashSet<Digest>,
}

impl Store {
    /// Removes blobs and disks that belong to no image, to no container and to no lease, and what
    /// killed processes left. `in_use` tells the manifests that containers are made of; it is asked
    /// while nothing can become garbage or cease to be. Trees of a user namespace can be removed in there alone: see
    /// [`Store::has_dead_trees`].
    pub fn collect_garbage(&self, in_use: &dyn Fn() -> Result<Vec<Digest>>) -> Result<Garbage> {
        let guard = self.lock_exclusive()?;
        let mut kept = Kept::default();
        for entry in self.read_index()? {
            self.keep_image(&mut kept, &entry.digest);
        }
        for digest in in_use()? {
            self.keep_image(&mut kept, &digest);
        }
        for held in read_leases(self, &guard)? {
            match held {
                Held::Blob(digest) => drop(kept.blobs.insert(digest)),
                Held::Disk(chain) => drop(kept.disks.insert(chain)),
                Held::Image(digest) => self.keep_image(&mut kept, &digest),
            }
        }

        let mut garbage = Garbage::default();
        for path in files(&self.path("blobs/sha256"))? {
            if digest_of_name(&path).is_some_and(|digest| !kept.blobs.contains(&digest)) {
                garbage.remove(&path)?;
            }
        }
        for path in files(&self.path("disks"))? {
            let Some(chain) = digest_of_name(&path) else {
                continue;
            };
            let finished = path
                .extension()
                .is_some_and(|extension| extension == "erofs");
            if finished && !kept.disks.contains(&chain) {
                garbage.remove(&path)?;
            } else if !finished && let Some(_locked) = lock_abandoned(&path) {
                garbage.remove(&path)?;
            }
        }
        self.give_up_trees(&|chain| kept.disks.contains(chain))?;
        garbage.bytes += self.remove_dead_trees()?;
        for path in files(&self.path("ingest"))? {
            let Some(file) = lock_abandoned(&path) else {
                continue;
            };
            let resumable = digest_of_name(&path).is_some();
            let age = file
                .metadata()
                .and_then(|metadata| metadata.modified())
                .ok();
            let old = age.is_none_or(|time| time.elapsed().is_ok_and(|age| age > PATIENCE));
            if !resumable || old {
                garbage.remove(&path)?;
            }
        }
        Ok(garbage)
    }

    /// Keeps a manifest and all it names. One that cannot be read names nothing that could be used.
    fn keep_image(&self, kept: &mut Kept, digest: &Digest) {
        if !kept.blobs.insert(*digest) {
            return;
        }
        let Ok(metadata) = fs::metadata(self.blob_path(digest)) else {
            return;
        };
        let descriptor = Descriptor::new("", *digest, metadata.len());
        let Some(manifest) = self
            .read_document(&descriptor, MAX_MANIFEST)
            .ok()
            .and_then(|bytes| Manifest::parse(&bytes).ok())
        else {
            return;
        };
        kept.blobs.insert(manifest.config.digest);
        kept.blobs
            .extend(manifest.layers.iter().map(|layer| layer.digest));
        if let Ok(image) = self.read_image(&descriptor) {
            kept.disks.insert(Image::chain_id(&image));
        }
    }
}

/// The digest that a file is named after, with or without an extension.
fn digest_of_name(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_stem()?.to_str()?).ok()
}
