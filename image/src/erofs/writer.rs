//! The writer: files as they come, then all directories, then the superblock.

use std::fs::File;
use std::io::Read;

use super::attributes::{Attributes, Time};
use super::directory::{Block, Child, Directories, listing, packed_len};
use super::format::{
    BLOCK, BLOCK_LEN, COMPACT_LEN, EXTENDED_LEN, FileType, INODE_SLOT, InodeRecord, Layout,
    ROOT_OFFSET, Superblock, encode_device, encode_links,
};
use super::output::Output;
use super::space::{MAX_INODE, Space};
use super::sparse::{Chunking, Piece, chunk_end};
use super::{MAX_SYMLINK, WriteError};

/// An inode that has been written, to be named in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    nid: u64,
    file_type: FileType,
    extended: bool,
}

impl Inode {
    /// What it is.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }
}

/// A file without contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the disk, whole blocks.
    pub bytes: u64,
    /// Inodes that have a name.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
}

/// Writes one disk.
#[derive(Debug)]
pub struct Writer<'f> {
    space: Space,
    output: Output<'f>,
    uuid: [u8; 16],
    /// The time of compact inodes: that of the first inode. In images that are built reproducibly
    /// all have the same.
    build_time: Option<Time>,
    serial: u32,
    chunks: bool,
}

impl<'f> Writer<'f> {
    /// A disk of at most `limit` bytes, written from the start of this file, which is emptied. It
    /// must be open for reading as well.
    pub fn new(file: &'f File, uuid: [u8; 16], limit: u64) -> Result<Self, WriteError> {
        Ok(Self {
            space: Space::new(limit),
            output: Output::new(file)?,
            uuid,
            build_time: None,
            serial: 0,
            chunks: false,
        })
    }

    /// Writes a regular file of `size` bytes.
    pub fn file(
        &mut self,
        attributes: &Attributes,
        size: u64,
        contents: &mut impl Read,
    ) -> Result<Inode, WriteError> {
        self.whole(attributes, FileType::Regular, size, contents)
    }

    /// Writes a regular file with holes. `pieces` are in order, apart, not empty and end within
    /// `size`; `contents` has nothing but them.
    pub fn sparse_file(
        &mut self,
        attributes: &Attributes,
        size: u64,
        pieces: &[Piece],
        contents: &mut impl Read,
    ) -> Result<Inode, WriteError> {
        let Some(chunking) = Chunking::choose(size, pieces) else {
            let mut filled = Filled {
                pieces: pieces.iter(),
                contents,
                gap: 0,
                rest: 0,
                at: 0,
            };
            return self.whole(attributes, FileType::Regular, size, &mut filled);
        };
        self.chunks = true;
        let extended = self.is_extended(attributes, size);
        let header = header_len(attributes, extended);
        let list_len = chunking.chunks as usize * 4;
        let record = InodeRecord {
            attributes,
            file_type: FileType::Regular,
            layout: Layout::Chunks {
                bits: chunking.bits,
            },
            size,
            links: 1,
            serial: self.next_serial(),
            extended,
        };
        let len = header + list_len;
        let offset = if len <= MAX_INODE {
            let offset = self.space.inode(len)?;
            let first = self.space.data(chunking.blocks)?;
            let at = self.output.inode(self.space.extent(), offset, len)?;
            record.encode(at);
            for (entry, block) in at[header..]
                .chunks_exact_mut(4)
                .zip(chunking.list(size, pieces, first))
            {
                entry.copy_from_slice(&block.to_le_bytes());
            }
            self.output.seek(u64::from(first) * BLOCK)?;
            offset
        } else {
            let inode_blocks = len.div_ceil(BLOCK_LEN);
            let first = self.space.data(inode_blocks as u64 + chunking.blocks)?;
            let data = first + inode_blocks as u32;
            let mut bytes = vec![0; header];
            record.encode(&mut bytes);
            bytes.extend(chunking.list(size, pieces, data).flat_map(u32::to_le_bytes));
            bytes.resize(inode_blocks * BLOCK_LEN, 0);
            self.output.seek(u64::from(first) * BLOCK)?;
            self.output.append(&bytes)?;
            u64::from(first) * BLOCK
        };
        let mut written = 0;
        let mut end = 0;
        for piece in pieces {
            if piece.offset >= end {
                self.output.append_zeros(end - written)?;
                written = piece.offset >> chunking.bits << chunking.bits;
            }
            self.output.append_zeros(piece.offset - written)?;
            self.output.append_from(contents, piece.len)?;
            written = piece.end();
            end = chunk_end(written, chunking.bits, size);
        }
        self.output.append_zeros(end - written)?;
        Ok(Inode {
            nid: offset / INODE_SLOT,
            file_type: FileType::Regular,
            extended,
        })
    }

    /// Writes a symbolic link.
    pub fn symlink(&mut self, attributes: &Attributes, target: &[u8]) -> Result<Inode, WriteError> {
        if target.is_empty() || target.len() > MAX_SYMLINK {
            return Err(WriteError::Symlink(target.len()));
        }
        self.whole(
            attributes,
            FileType::Symlink,
            target.len() as u64,
            &mut &*target,
        )
    }

    /// Writes a device or a pipe.
    pub fn special(
        &mut self,
        attributes: &Attributes,
        special: Special,
    ) -> Result<Inode, WriteError> {
        let device =
            |major, minor| encode_device(major, minor).ok_or(WriteError::Device { major, minor });
        let (file_type, number) = match special {
            Special::Character(major, minor) => (FileType::Character, device(major, minor)?),
            Special::Block(major, minor) => (FileType::Block, device(major, minor)?),
            Special::Fifo => (FileType::Fifo, 0),
        };
        let extended = self.is_extended(attributes, 0);
        let len = header_len(attributes, extended);
        let offset = self.space.inode(len)?;
        let record = InodeRecord {
            attributes,
            file_type,
            layout: Layout::Device(number),
            size: 0,
            links: 1,
            serial: self.next_serial(),
            extended,
        };
        record.encode(self.output.inode(self.space.extent(), offset, len)?);
        Ok(Inode {
            nid: offset / INODE_SLOT,
            file_type,
            extended,
        })
    }

    /// Writes all directories, the link counts of inodes that have not just one name, and the
    /// superblock.
    pub fn finish<D: Directories>(
        mut self,
        tree: &D,
        links: &[(Inode, u32)],
    ) -> Result<Written, WriteError> {
        let (nids, inlined) = self.place_directories(tree)?;
        let mut first = [0; BLOCK_LEN];
        for directory in 0..tree.count() {
            self.directory(tree, directory, &nids, inlined, &mut first)?;
        }
        self.output.flush()?;

        let mut changes: Vec<_> = links
            .iter()
            .filter(|(_, count)| *count > 1)
            .map(|(inode, count)| {
                let (offset, bytes) = encode_links(*count, inode.extended);
                (inode.nid * INODE_SLOT + offset as u64, bytes)
            })
            .collect();
        changes.sort_unstable_by_key(|(offset, _)| *offset);
        self.output.patch(
            changes
                .iter()
                .map(|(offset, bytes)| (*offset, bytes.as_slice())),
        )?;

        let directories = tree.count() as u64;
        let inodes = directories + links.len() as u64;
        Superblock {
            inodes,
            blocks: self.space.blocks(),
            build_time: self.build_time.unwrap_or_default(),
            uuid: self.uuid,
            chunks: self.chunks,
        }
        .encode(&mut first);
        let bytes = u64::from(self.space.blocks()) * BLOCK;
        self.output.finish(&first, bytes)?;
        Ok(Written {
            bytes,
            inodes,
            directories,
        })
    }

    /// Every directory's inode number, by doing on a copy of the space what `directory` will do, and
    /// whether the root's last block fits behind its inode.
    fn place_directories<D: Directories>(
        &mut self,
        tree: &D,
    ) -> Result<(Vec<u64>, bool), WriteError> {
        let root_len = ROOT_OFFSET + header_len(tree.attributes(0), true) as u64;
        if root_len > BLOCK {
            return Err(WriteError::Root);
        }
        let size = directory_len(tree, 0);
        let inlined = root_len + size % BLOCK <= BLOCK;
        let mut space = self.space.clone();
        let mut nids = vec![ROOT_OFFSET / INODE_SLOT];
        space.data(if inlined {
            size / BLOCK
        } else {
            size.div_ceil(BLOCK)
        })?;
        for directory in 1..tree.count() {
            let shape = self.shape(tree.attributes(directory), directory_len(tree, directory));
            nids.push(space.inode(shape.inode_len())? / INODE_SLOT);
            space.data(shape.blocks)?;
        }
        Ok((nids, inlined))
    }

    fn directory<D: Directories>(
        &mut self,
        tree: &D,
        directory: usize,
        nids: &[u64],
        root_inlined: bool,
        first: &mut [u8; BLOCK_LEN],
    ) -> Result<(), WriteError> {
        let attributes = tree.attributes(directory);
        let size = directory_len(tree, directory);
        let mut shape = self.shape(attributes, size);
        let links = 2
            + (0..tree.entries(directory))
                .filter(|index| matches!(tree.entry(directory, *index).1, Child::Directory(_)))
                .count() as u32;
        let root = directory == 0;
        let mut offset = ROOT_OFFSET;
        if root {
            // There is but one place for the root, and it may have any form there.
            shape = Shape::new(header_len(attributes, true), size, true, root_inlined);
        } else {
            offset = self.space.inode(shape.inode_len())?;
        }
        let block = self.space.data(shape.blocks)?;
        let record = InodeRecord {
            attributes,
            file_type: FileType::Directory,
            layout: shape.layout(block),
            size,
            links,
            serial: self.next_serial(),
            extended: shape.extended,
        };

        self.output.seek(u64::from(block) * BLOCK)?;
        let mut packed = Block::default();
        let mut bytes = Vec::with_capacity(BLOCK_LEN);
        for (name, child) in listing(tree, directory) {
            let (nid, file_type) = match child {
                Child::Directory(directory) => (nids[directory], FileType::Directory),
                Child::Inode(inode) => (inode.nid, inode.file_type),
            };
            if !packed.push(name, nid, file_type) {
                packed.drain_into(&mut bytes);
                bytes.resize(BLOCK_LEN, 0);
                self.output.append(&bytes)?;
                bytes.clear();
                packed.push(name, nid, file_type);
            }
        }
        packed.drain_into(&mut bytes);
        if shape.tail == 0 {
            bytes.resize(BLOCK_LEN, 0);
            self.output.append(&bytes)?;
            bytes.clear();
        }
        let at = if root {
            &mut first[ROOT_OFFSET as usize..]
        } else {
            self.output
                .inode(self.space.extent(), offset, shape.inode_len())?
        };
        record.encode(at);
        at[shape.header..shape.header + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    /// Writes an inode with its contents in one piece.
    fn whole(
        &mut self,
        attributes: &Attributes,
        file_type: FileType,
        size: u64,
        contents: &mut impl Read,
    ) -> Result<Inode, WriteError> {
        self.build_time.get_or_insert(attributes.mtime);
        let shape = self.shape(attributes, size);
        let offset = self.space.inode(shape.inode_len())?;
        let block = self.space.data(shape.blocks)?;
        let record = InodeRecord {
            attributes,
            file_type,
            layout: shape.layout(block),
            size,
            links: 1,
            serial: self.next_serial(),
            extended: shape.extended,
        };
        let extent = self.space.extent();
        record.encode(self.output.inode(extent, offset, shape.header)?);
        if shape.blocks > 0 {
            let streamed = size - shape.tail as u64;
            self.output.seek(u64::from(block) * BLOCK)?;
            self.output.append_from(contents, streamed)?;
            self.output.append_zeros(shape.blocks * BLOCK - streamed)?;
        }
        if shape.tail > 0 {
            let at = self.output.inode(extent, offset, shape.inode_len())?;
            contents
                .read_exact(&mut at[shape.header..])
                .map_err(WriteError::Read)?;
        }
        Ok(Inode {
            nid: offset / INODE_SLOT,
            file_type,
            extended: shape.extended,
        })
    }

    fn shape(&self, attributes: &Attributes, size: u64) -> Shape {
        let extended = self.is_extended(attributes, size);
        let header = header_len(attributes, extended);
        let inline = header as u64 + size % BLOCK <= BLOCK;
        Shape::new(header, size, extended, inline)
    }

    /// Whether an inode needs the long form. The time of the short form is not known before the
    /// first inode, which therefore has the long form unless it sets the time itself.
    fn is_extended(&self, attributes: &Attributes, size: u64) -> bool {
        self.build_time != Some(attributes.mtime)
            || attributes.uid > u32::from(u16::MAX)
            || attributes.gid > u32::from(u16::MAX)
            || size > u64::from(u32::MAX)
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }
}

/// How an inode and its contents lie on the disk.
#[derive(Debug, Clone, Copy)]
struct Shape {
    extended: bool,
    /// Bytes of the inode and its extended attributes.
    header: usize,
    /// Bytes of contents that follow it.
    tail: usize,
    /// Blocks with the other contents.
    blocks: u64,
}

impl Shape {
    fn new(header: usize, size: u64, extended: bool, inline: bool) -> Self {
        let tail = if inline { (size % BLOCK) as usize } else { 0 };
        Self {
            extended,
            header,
            tail,
            blocks: (size - tail as u64).div_ceil(BLOCK),
        }
    }

    fn inode_len(&self) -> usize {
        self.header + self.tail
    }

    fn layout(&self, block: u32) -> Layout {
        let block = if self.blocks == 0 { 0 } else { block };
        if self.tail > 0 {
            Layout::Inline(block)
        } else {
            Layout::Plain(block)
        }
    }
}

fn header_len(attributes: &Attributes, extended: bool) -> usize {
    (if extended { EXTENDED_LEN } else { COMPACT_LEN }) + attributes.xattrs.len()
}

fn directory_len<D: Directories>(tree: &D, directory: usize) -> u64 {
    packed_len(listing(tree, directory).map(|(name, _)| name.len()))
}

/// The pieces of a file with its holes as zeros between and behind them.
struct Filled<'a, R> {
    pieces: std::slice::Iter<'a, Piece>,
    contents: &'a mut R,
    /// Zeros before the piece that is next, and its bytes.
    gap: u64,
    rest: u64,
    at: u64,
}

impl<R: Read> Read for Filled<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.gap == 0 && self.rest == 0 {
            match self.pieces.next() {
                Some(piece) => {
                    self.gap = piece.offset - self.at;
                    self.rest = piece.len;
                    self.at = piece.end();
                }
                None => self.gap = u64::MAX,
            }
        }
        let most = |len: u64| usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
        if self.gap > 0 {
            let len = most(self.gap);
            buf[..len].fill(0);
            self.gap -= len as u64;
            return Ok(len);
        }
        let len = most(self.rest);
        let len = self.contents.read(&mut buf[..len])?;
        self.rest -= len as u64;
        Ok(len)
    }
}
