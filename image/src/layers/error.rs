//! Why layers cannot become a disk.

use std::fmt;

use super::tar::TarError;
use crate::erofs::{WriteError, XattrError};

/// Why layers cannot become a disk. Whatever is in the file then is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The caller could not open a layer.
    #[error("cannot open a layer: {0}")]
    Open(Box<dyn std::error::Error + Send + Sync>),
    /// A layer is no archive, or broke off.
    #[error("cannot read layer {layer}: {error}")]
    Archive {
        /// The layer's name.
        layer: String,
        /// What is wrong.
        error: TarError,
    },
    /// An entry of a layer cannot be part of an image.
    #[error("layer {layer} is refused because of its entry {path}: {problem}")]
    Entry {
        /// The layer's name.
        layer: String,
        /// The entry's name.
        path: Shown,
        /// What is wrong.
        problem: Problem,
    },
    /// A hard link's target is in no layer.
    #[error("the image is refused because none of its layers has {0}, to which it has a hard link")]
    Dangling(Shown),
    /// There are more layers than allowed.
    #[error("the image is refused because it has more than {0} layers")]
    Layers(usize),
    /// The disk could not be written.
    #[error("cannot write the image's disk: {0}; is its file system full?")]
    Write(std::io::Error),
    /// The disk could not be completed.
    #[error("the image cannot become a disk: {0}")]
    Finish(WriteError),
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It has no name, or one that leads out of the image.
    #[error("its name has a \"..\" or a NUL, or is empty")]
    Name,
    /// A name is longer than file systems allow.
    #[error("a part of its name is longer than 255 bytes")]
    NameLength,
    /// Its path is too long.
    #[error("its path is longer than {0} bytes")]
    PathLength(usize),
    /// It is in too many directories.
    #[error("it is more than {0} directories deep")]
    Depth(usize),
    /// A whiteout that hides nothing, or something inside of a whiteout.
    #[error("the name is reserved for whiteouts")]
    Whiteout,
    /// Something in its path is no directory.
    #[error("its path leads through something that is no directory")]
    NotDirectory,
    /// Its path goes round in circles.
    #[error("its path has too many symbolic links")]
    Loop,
    /// The root must be a directory.
    #[error("the root of an image must be a directory")]
    Root,
    /// A hard link to a directory.
    #[error("it is a hard link to a directory")]
    DirectoryLink,
    /// The file is larger than allowed.
    #[error("it has more than {0} bytes")]
    Size(u64),
    /// There are more entries than allowed.
    #[error("the image has more than {0} entries")]
    Entries(u64),
    /// The tree needs more memory than allowed.
    #[error("the image's names and attributes need more than {0} bytes")]
    Memory(usize),
    /// Its extended attributes cannot be kept.
    #[error(transparent)]
    Xattr(#[from] XattrError),
    /// It cannot be written.
    #[error(transparent)]
    Write(WriteError),
}

/// A name out of an archive, fit to be shown: escaped, and cut if it is long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(Vec<u8>);

impl Shown {
    const MAX_LEN: usize = 200;

    pub(crate) fn new(name: &[u8]) -> Self {
        Self(name[..name.len().min(Self::MAX_LEN + 1)].to_vec())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.0.len().min(Self::MAX_LEN);
        let more = if len < self.0.len() { "..." } else { "" };
        write!(f, "\"{}{more}\"", self.0[..len].escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_when_hostile_then_is_short_and_plain() {
        assert_eq!(Shown::new(b"a\x1b[2J\n").to_string(), "\"a\\x1b[2J\\n\"");
        assert_eq!(Shown::new(&[b'x'; 999]).to_string().len(), 205);
    }
}
