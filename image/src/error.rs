//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::extract::ExtractError;
use crate::layers::DiskError;
use crate::manifest::ManifestError;
use crate::reference::ReferenceError;

/// An operation on images that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was given is no name of an image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A name or ID that nothing here has.
    #[error("there is no image {0} here; `bulkhead images` lists what there is")]
    NoSuchImage(String),
    /// The beginning of several IDs.
    #[error("several images have an ID that begins with {0}; give more of it")]
    Ambiguous(String),
    /// An image with several names was to be deleted by its ID.
    #[error("image {id} has several names ({names}); remove them one by one, or all with force")]
    ManyNames {
        /// The ID.
        id: String,
        /// The names.
        names: String,
    },
    /// Containers use it.
    #[error("image {0} is used by a container; remove that first")]
    InUse(String),
    /// A file of the store, or one the user named.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it could not.
        source: io::Error,
    },
    /// Bytes that are not what their digest says.
    #[error("{what} is damaged: it should have the digest {expected} and has {found}")]
    Damaged {
        /// What it is.
        what: String,
        /// As it was announced.
        expected: Digest,
        /// As it came.
        found: Digest,
    },
    /// More or fewer bytes than announced.
    #[error("{what} should have {expected} bytes and has {found}")]
    Size {
        /// What it is.
        what: String,
        /// As it was announced.
        expected: u64,
        /// As it came.
        found: u64,
    },
    /// A blob that ought to be in the store.
    #[error("the store has lost blob {0}; pull or load the image again")]
    Lost(Digest),
    /// An image's disk cannot become a folder.
    #[error("cannot extract the files of image {image}: {source}")]
    Tree {
        /// Which image.
        image: String,
        /// Why.
        source: ExtractError,
    },
    /// A manifest, index or configuration that is not sound.
    #[error("cannot use {what}: {problem}")]
    Manifest {
        /// Which.
        what: String,
        /// What is wrong with it.
        problem: ManifestError,
    },
    /// A registry said no, or nothing that makes sense.
    #[error("cannot {doing} {host}: {why}")]
    Registry {
        /// What was wanted, with its preposition: `pull busybox:latest from`.
        doing: String,
        /// The registry.
        host: String,
        /// Its reason.
        why: String,
    },
    /// Names and passwords could not be had.
    #[error("cannot get credentials for {host}: {why}")]
    Credentials {
        /// For which registry.
        host: String,
        /// Why not.
        why: String,
    },
    /// Something that should be an archive.
    #[error("cannot load {path}: {why}", path = path.display())]
    Archive {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// `--change` with something that is no instruction.
    #[error("cannot apply {0:?}: {1}")]
    Change(String, String),
    /// A layer that does not unpack to what the configuration says.
    #[error("cannot unpack layer {layer}: {why}")]
    Layer {
        /// Which.
        layer: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// The layers do not make a disk.
    #[error("cannot make the disk of image {image}: {source}")]
    Disk {
        /// Which image.
        image: String,
        /// Why not.
        source: DiskError,
    },
}

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// `map_err` for files: `file.sync_all().map_err(io_error("write", path))`.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

/// `map_err` for what is read out of manifests.
pub(crate) fn in_manifest(what: impl ToString) -> impl FnOnce(ManifestError) -> Error {
    let what = what.to_string();
    move |problem| Error::Manifest { what, problem }
}
