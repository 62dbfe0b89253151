//! What an entry is besides its names, now or, for a hidden one, later.

use std::io::Read;

use super::scratch::Scratch;
use super::tar::{Entry, Kind};
use crate::erofs::{Attributes, Inode, Piece, Special, WriteError, Writer};

/// What an entry holds.
#[derive(Debug)]
pub enum Content<'e> {
    /// A regular file of so many bytes, and its pieces if it has holes.
    File(u64, Option<&'e [Piece]>),
    /// A symbolic link.
    Symlink(&'e [u8]),
    /// A device or pipe.
    Special(Special),
}

impl<'e> Content<'e> {
    /// What an entry that is neither a directory nor a hard link holds.
    pub fn of(entry: &'e Entry) -> Self {
        let (major, minor) = entry.device;
        match entry.kind {
            Kind::Symlink => Self::Symlink(&entry.link),
            Kind::Character => Self::Special(Special::Character(major, minor)),
            Kind::Block => Self::Special(Special::Block(major, minor)),
            Kind::Fifo => Self::Special(Special::Fifo),
            Kind::Regular | Kind::HardLink | Kind::Directory => {
                Self::File(entry.size, entry.pieces.as_deref())
            }
        }
    }

    /// Writes it.
    pub fn write(
        &self,
        writer: &mut Writer<'_>,
        attributes: &Attributes,
        data: &mut impl Read,
    ) -> Result<Inode, WriteError> {
        match *self {
            Self::File(size, None) => writer.file(attributes, size, data),
            Self::File(size, Some(pieces)) => writer.sparse_file(attributes, size, pieces, data),
            Self::Symlink(target) => writer.symlink(attributes, target),
            Self::Special(special) => writer.special(attributes, special),
        }
    }
}

/// An entry that is hidden, but may be needed.
#[derive(Debug)]
pub struct Kept {
    attributes: Attributes,
    content: Owned,
}

#[derive(Debug)]
enum Owned {
    File {
        size: u64,
        pieces: Option<Box<[Piece]>>,
        at: u64,
    },
    Symlink(Box<[u8]>),
    Special(Special),
}

impl Kept {
    /// Keeps an entry.
    pub fn new(
        attributes: Attributes,
        content: Content<'_>,
        scratch: &mut Scratch<'_>,
        data: &mut impl Read,
    ) -> Result<Self, WriteError> {
        let content = match content {
            Content::File(size, pieces) => {
                let stored = pieces.map_or(size, |pieces| pieces.iter().map(|p| p.len).sum());
                let at = scratch.keep(data, stored)?;
                Owned::File {
                    size,
                    pieces: pieces.map(Into::into),
                    at,
                }
            }
            Content::Symlink(target) => Owned::Symlink(target.into()),
            Content::Special(special) => Owned::Special(special),
        };
        Ok(Self {
            attributes,
            content,
        })
    }

    /// Bytes of memory it has besides itself.
    pub fn memory(&self) -> usize {
        self.attributes.xattrs.len()
            + match &self.content {
                Owned::File { pieces, .. } => pieces
                    .as_ref()
                    .map_or(0, |pieces| size_of_val::<[Piece]>(pieces)),
                Owned::Symlink(target) => target.len(),
                Owned::Special(_) => 0,
            }
    }

    /// Writes it after all.
    pub fn write(
        &self,
        writer: &mut Writer<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<Inode, WriteError> {
        let (content, at) = match &self.content {
            Owned::File { size, pieces, at } => (Content::File(*size, pieces.as_deref()), *at),
            Owned::Symlink(target) => (Content::Symlink(target), 0),
            Owned::Special(special) => (Content::Special(*special), 0),
        };
        content.write(writer, &self.attributes, &mut scratch.read(at)?)
    }
}
