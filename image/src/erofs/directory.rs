//! Directories: their entries sorted and packed into blocks.

use super::attributes::Attributes;
use super::format::{BLOCK_LEN, DIRENT_LEN, FileType, encode_dirent};
use super::writer::Inode;

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy)]
pub enum Child {
    /// A directory, by its place in the tree.
    Directory(usize),
    /// Something that has been written.
    Inode(Inode),
}

/// The directories of a disk, numbered from 0, which is the root.
pub trait Directories {
    /// How many there are, at least one.
    fn count(&self) -> usize;
    /// The directory that this one is in; the root is in itself.
    fn parent(&self, directory: usize) -> usize;
    /// What this one has besides its entries.
    fn attributes(&self, directory: usize) -> &Attributes;
    /// How many entries it has.
    fn entries(&self, directory: usize) -> usize;
    /// One of its entries; they are sorted by name, byte for byte.
    fn entry(&self, directory: usize, index: usize) -> (&[u8], Child);
}

/// The entries of a directory in order, with `.` and `..` where they belong.
pub fn listing<D: Directories>(tree: &D, directory: usize) -> impl Iterator<Item = (&[u8], Child)> {
    let count = tree.entries(directory);
    let dot = partition(count, |index| {
        tree.entry(directory, index).0 < b".".as_slice()
    });
    let dots = partition(count, |index| {
        tree.entry(directory, index).0 < b"..".as_slice()
    });
    let own =
        move |range: std::ops::Range<usize>| range.map(move |index| tree.entry(directory, index));
    own(0..dot)
        .chain([(b".".as_slice(), Child::Directory(directory))])
        .chain(own(dot..dots))
        .chain([(b"..".as_slice(), Child::Directory(tree.parent(directory)))])
        .chain(own(dots..count))
}

/// The first index for which this does not hold; for those before it, it does.
fn partition(count: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if holds(middle) {
            low = middle + 1
        } else {
            high = middle
        }
    }
    low
}

/// Bytes of a directory with names of these lengths: blocks are full but for the last.
pub fn packed_len(names: impl Iterator<Item = usize>) -> u64 {
    let mut blocks = 0;
    let mut used = 0;
    for name in names {
        let len = DIRENT_LEN + name;
        if used + len > BLOCK_LEN {
            blocks += 1;
            used = 0;
        }
        used += len;
    }
    blocks * BLOCK_LEN as u64 + used as u64
}

/// A block of a directory that is being filled.
#[derive(Debug, Default)]
pub struct Block {
    entries: Vec<(u64, FileType, u16)>,
    names: Vec<u8>,
}

impl Block {
    /// Adds an entry if there is room.
    pub fn push(&mut self, name: &[u8], nid: u64, file_type: FileType) -> bool {
        let fits = self.len() + DIRENT_LEN + name.len() <= BLOCK_LEN;
        if fits {
            self.entries.push((nid, file_type, self.names.len() as u16));
            self.names.extend_from_slice(name);
        }
        fits
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.entries.len() * DIRENT_LEN + self.names.len()
    }

    /// Empties the block into `bytes`, which has room.
    pub fn drain_into(&mut self, bytes: &mut Vec<u8>) {
        let names = (self.entries.len() * DIRENT_LEN) as u16;
        for (nid, file_type, offset) in self.entries.drain(..) {
            bytes.extend(encode_dirent(nid, names + offset, file_type));
        }
        bytes.append(&mut self.names);
    }
}
