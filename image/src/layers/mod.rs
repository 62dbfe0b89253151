//! The layers of an image: tar archives, merged into one disk in one pass.
//!
//! Layers come **uppermost first**. So what an upper layer hides or replaces is known before it comes,
//! and is never written; each layer is read once, from front to back, and nothing but names, directories
//! and the inodes' places stays in memory.
//!
//! What layers mean is the OCI image-spec's (`layer.md`), and where that is silent, what engines do:
//!
//! - A whiteout hides what lower layers have, wherever in its own layer it stands, and never anything of
//!   its own layer. Where an entry's directories have no entries, they are made (root's, 0755), and a lower
//!   layer's entry says how they are.
//! - Within a layer the last entry of a name counts; a directory replaces a file and a file a directory
//!   with all that was in it. Across layers a directory over a directory merges, all else replaces.
//! - A hard link names an inode of its own layer or, if that has none, of a lower one. A file that is
//!   hidden while a link to it is not keeps living under the link's name.
//! - Names are relative to the image, even absolute ones. `..` is refused. A symbolic link in an entry's
//!   path is followed if it is of the same layer, and never leaves the image; across layers a directory
//!   replaces a symbolic link.
//! - Overlayfs's and aufs's own files and attributes are left out.
//!
//! A layer is hostile: everything it can ask for has a limit ([`Limits`]).

mod error;
mod finish;
mod kept;
mod limits;
mod links;
mod merge;
mod path;
mod scratch;
pub(crate) mod tar;
mod tree;
mod walk;

use std::fs::File;
use std::io::Read;

pub use error::{DiskError, Problem, Shown};
pub use limits::Limits;
pub use tar::TarError;

use crate::erofs::WriteError;
use finish::Merged;
use merge::{Failure, Merge, countable};
use tar::{Archive, Entry};

/// One layer.
pub struct Layer<'a> {
    /// What errors call it: its digest.
    pub name: String,
    /// Its archive, uncompressed. It is read to its end.
    pub tar: Box<dyn Read + Send + 'a>,
}

/// What a disk is made by.
#[derive(Debug, Clone, Default)]
pub struct DiskOptions {
    /// The file system's UUID; part of the disk, so make it from the layers' digests.
    pub uuid: [u8; 16],
    /// What the image may ask for.
    pub limits: Limits,
}

/// A disk that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSummary {
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes of the layers, uncompressed.
    pub layer_bytes: u64,
    /// Entries of the layers.
    pub entries: u64,
    /// Files and directories in the image, hard links counted once.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
}

/// Makes the disk of an image.
///
/// Layers come uppermost first; each is opened when the one before has been read. The disk is written
/// from the start of `out`, which must be open for reading and writing and is emptied first. The same
/// layers and options make the same bytes. Nothing is synced: whoever renames the file to its place does.
///
/// # Errors
/// One sentence about what is wrong with which layer. What is in `out` then is no disk.
pub fn build_disk<'a, E>(
    layers: impl IntoIterator<Item = Result<Layer<'a>, E>>,
    out: &File,
    options: &DiskOptions,
) -> Result<DiskSummary, DiskError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limits = &options.limits;
    let mut merge = Merge::new(out, options.uuid, limits).map_err(disk_error)?;
    let mut layer_bytes = 0;
    let mut entry = Entry::default();
    for (count, layer) in layers.into_iter().enumerate() {
        if !u16::try_from(count).is_ok_and(countable) {
            return Err(DiskError::Layers(count));
        }
        let Layer { name, tar } = layer.map_err(|error| DiskError::Open(error.into()))?;
        let mut archive = Archive::new(tar, limits.layer_bytes).after(layer_bytes);
        loop {
            match archive.next_entry(&mut entry) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(DiskError::Archive { layer: name, error }),
            }
            if let Err(failure) = merge.entry(&entry, &mut archive) {
                return Err(match failure {
                    Failure::Archive(error) => DiskError::Archive { layer: name, error },
                    Failure::Disk(error) => DiskError::Write(error),
                    Failure::Entry(problem) => {
                        let path = Shown::new(&entry.path);
                        DiskError::Entry {
                            layer: name,
                            path,
                            problem,
                        }
                    }
                });
            }
        }
        layer_bytes = archive.consumed();
        merge.end_layer().map_err(disk_error)?;
    }

    let entries = merge.entries();
    let Merge {
        tree,
        writer,
        slots,
        ..
    } = merge;
    let merged = Merged::new(&tree, &slots);
    let links = merged.links().map_err(DiskError::Dangling)?;
    let written = writer.finish(&merged, &links).map_err(disk_error)?;
    Ok(DiskSummary {
        disk_bytes: written.bytes,
        layer_bytes,
        entries,
        inodes: written.inodes,
        directories: written.directories,
    })
}

fn disk_error(error: WriteError) -> DiskError {
    match error {
        WriteError::Read(error) | WriteError::Write(error) => DiskError::Write(error),
        other => DiskError::Finish(other),
    }
}
