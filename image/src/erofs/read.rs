//! Reading a disk of ours again, for a kernel that cannot, or must not.
//!
//! The writer's forms are read, and no others. A disk that was damaged meanwhile is an error and nothing worse: every offset
//! is looked at before it is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::MAX_SYMLINK;
use super::attributes::{Time, prefix};
use super::format::{
    BLOCK, BLOCK_LEN, CHUNK_BITS, COMPACT_LEN, DIRENT_LEN, EXTENDED_LEN, FileType, HOLE,
    INODE_SLOT, NAME_LEN, ROOT_OFFSET, Superblock, XATTR_HEADER_LEN, decode_device, u16_at, u32_at,
    u64_at,
};

/// A name and a value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Most chunks of one file: the writer makes no more.
const MAX_CHUNKS: u64 = 1 << 18;

/// Why a disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read, or ends too early.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// It is no disk of ours, or not any more.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// A disk that is read.
#[derive(Debug)]
pub struct Reader<'f> {
    file: &'f File,
    bytes: u64,
    build_time: Time,
}

/// A file of the disk, of whatever type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u64,
    /// What it is.
    pub file_type: FileType,
    /// Permissions: the lower twelve bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Time,
    /// Bytes of the contents, holes included.
    pub size: u64,
    /// Names it has, as far as they are counted.
    pub links: u32,
    layout: u16,
    location: u32,
    /// Where its extended attributes begin, and how many bytes they have.
    xattrs: (u64, usize),
    /// What follows the inode and these.
    behind: u64,
}

/// Contents that lie together on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where on the disk.
    pub at: u64,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// Where a file's contents are; what is in none of them is a hole.
pub type Contents = Vec<Extent>;

impl Node {
    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        decode_device(self.location)
    }
}

impl<'f> Reader<'f> {
    /// Reads the disk in this file.
    pub fn open(file: &'f File) -> Result<Self, ReadError> {
        let mut block = [0; BLOCK_LEN];
        file.read_exact_at(&mut block, 0)?;
        let superblock =
            Superblock::decode(&block).ok_or(ReadError::Damaged("it has no superblock"))?;
        let bytes = u64::from(superblock.blocks) * BLOCK;
        if file.metadata()?.len() < bytes {
            return Err(ReadError::Damaged("it was cut"));
        }
        Ok(Self {
            file,
            bytes,
            build_time: superblock.build_time,
        })
    }

    /// The root directory.
    pub fn root(&self) -> Result<Node, ReadError> {
        let root = self.node(ROOT_OFFSET / INODE_SLOT)?;
        match root.file_type {
            FileType::Directory => Ok(root),
            _ => Err(ReadError::Damaged("its root is no directory")),
        }
    }

    /// The file with this number.
    pub fn node(&self, number: u64) -> Result<Node, ReadError> {
        let place = number
            .checked_mul(INODE_SLOT)
            .ok_or(ReadError::Damaged("a file is beyond its end"))?;
        let mut at = [0; EXTENDED_LEN];
        self.read(place, &mut at[..COMPACT_LEN])?;
        let format = u16_at(&at, 0);
        let extended = format & 1 == 1;
        let mut len = COMPACT_LEN;
        if extended {
            len = EXTENDED_LEN;
            self.read(place, &mut at)?;
        }
        let mode = u16_at(&at, 4);
        let file_type = FileType::of_mode(mode).ok_or(ReadError::Damaged("a file has no type"))?;
        let xattrs = match usize::from(u16_at(&at, 2)) {
            0 => 0,
            count => XATTR_HEADER_LEN + (count - 1) * 4,
        };
        let after = place + len as u64;
        let common = Node {
            number,
            file_type,
            mode: mode & 0o7777,
            uid: u32::from(u16_at(&at, 24)),
            gid: u32::from(u16_at(&at, 26)),
            mtime: self.build_time,
            size: u64::from(u32_at(&at, 8)),
            links: u32::from(u16_at(&at, 6)),
            layout: format >> 1 & 7,
            location: u32_at(&at, 16),
            xattrs: (after, xattrs),
            behind: after + xattrs as u64,
        };
        Ok(match extended {
            false => common,
            true => Node {
                uid: u32_at(&at, 24),
                gid: u32_at(&at, 28),
                mtime: Time {
                    seconds: u64_at(&at, 32) as i64,
                    nanoseconds: u32_at(&at, 40),
                },
                size: u64_at(&at, 8),
                links: u32_at(&at, 44),
                ..common
            },
        })
    }

    /// Names and values of a file's extended attributes.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>, ReadError> {
        let broken = || ReadError::Damaged("extended attributes are longer than they may be");
        let (place, len) = node.xattrs;
        let mut found = Vec::new();
        if len <= XATTR_HEADER_LEN {
            return Ok(found);
        }
        let mut bytes = vec![0; len - XATTR_HEADER_LEN];
        self.read(place + XATTR_HEADER_LEN as u64, &mut bytes)?;
        let mut rest = &bytes[..];
        while let Some((&[name_len, number, low, high], after)) = rest.split_first_chunk() {
            let (name_len, value_len) = (
                usize::from(name_len),
                usize::from(u16::from_le_bytes([low, high])),
            );
            let name = after.get(..name_len).ok_or_else(broken)?;
            let value = after
                .get(name_len..name_len + value_len)
                .ok_or_else(broken)?;
            let prefix =
                prefix(number).ok_or(ReadError::Damaged("an extended attribute is of no class"))?;
            found.push(([prefix, name].concat(), value.to_vec()));
            let used = (name_len + value_len).next_multiple_of(4);
            rest = after.get(used..).unwrap_or_default();
        }
        Ok(found)
    }

    /// Where a file's contents are.
    pub fn contents(&self, node: &Node) -> Result<Contents, ReadError> {
        let data = u64::from(node.location) * BLOCK;
        let mut found = Vec::new();
        let mut add = |at: u64, offset: u64, len: u64| {
            // Where nothing is does not matter.
            if len == 0 {
                return Ok(());
            }
            if at.checked_add(len).is_none_or(|end| end > self.bytes) {
                return Err(ReadError::Damaged("contents are beyond its end"));
            }
            found.push(Extent { at, offset, len });
            Ok(())
        };
        match node.layout {
            0 => add(data, 0, node.size)?,
            2 => {
                let tail = node.size % BLOCK;
                add(data, 0, node.size - tail)?;
                add(node.behind, node.size - tail, tail)?;
            }
            4 => {
                let bits = CHUNK_BITS.start() + (node.location & 0x1f);
                let chunk = 1_u64 << bits;
                let count = node.size.div_ceil(chunk);
                if count > MAX_CHUNKS {
                    return Err(ReadError::Damaged("a file has too many chunks"));
                }
                let mut list = vec![0; count as usize * 4];
                self.read(node.behind, &mut list)?;
                for (index, entry) in (0..).zip(list.chunks_exact(4)) {
                    let block = u32_at(entry, 0);
                    let offset = index * chunk;
                    if block != HOLE {
                        add(
                            u64::from(block) * BLOCK,
                            offset,
                            chunk.min(node.size - offset),
                        )?;
                    }
                }
            }
            _ => return Err(ReadError::Damaged("a file's contents are in no known form")),
        }
        Ok(found)
    }

    /// Where a symbolic link leads.
    pub fn target(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        let wrong = ReadError::Damaged("a symbolic link has no target, or too long a one");
        if node.size == 0 || node.size > MAX_SYMLINK as u64 {
            return Err(wrong);
        }
        let mut target = vec![0; node.size as usize];
        for extent in self.contents(node)? {
            let (from, to) = (
                extent.offset as usize,
                (extent.offset + extent.len) as usize,
            );
            self.read(extent.at, &mut target[from..to])?;
        }
        match target.contains(&0) {
            true => Err(wrong),
            false => Ok(target),
        }
    }

    /// What is in a directory: names, each fit to be one, and the numbers of what they stand for.
    pub fn entries(&self, node: &Node) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
        // Or the same block could be read as many times as a file has chunks.
        if node.size > self.bytes {
            return Err(ReadError::Damaged("a directory is larger than it"));
        }
        let mut found = Vec::new();
        for extent in self.contents(node)? {
            let mut done = 0;
            while done < extent.len {
                let len = (extent.len - done).min(BLOCK) as usize;
                let mut block = [0; BLOCK_LEN];
                self.read(extent.at + done, &mut block[..len])?;
                read_block(&block[..len], &mut found)?;
                done += len as u64;
            }
        }
        Ok(found)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(ReadError::Damaged("something is beyond its end"));
        }
        Ok(self.file.read_exact_at(bytes, at)?)
    }
}

/// Reads a block of a directory.
fn read_block(block: &[u8], found: &mut Vec<(Vec<u8>, u64)>) -> Result<(), ReadError> {
    let broken = || ReadError::Damaged("a directory has no sound entries");
    if block.len() < DIRENT_LEN {
        return Err(broken());
    }
    let names = usize::from(u16_at(block, 8));
    if names < DIRENT_LEN || names > block.len() || names % DIRENT_LEN != 0 {
        return Err(broken());
    }
    let (entries, _) = block.split_at(names);
    let mut entries = entries.chunks_exact(DIRENT_LEN).peekable();
    while let Some(entry) = entries.next() {
        let start = usize::from(u16_at(entry, 8));
        let end = entries
            .peek()
            .map_or(block.len(), |next| usize::from(u16_at(next, 8)));
        let name = block.get(start..end).ok_or_else(broken)?;
        // Zeros fill what the last name leaves of a block.
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if name.is_empty() || name.len() > NAME_LEN || name.contains(&b'/') {
            return Err(broken());
        }
        found.push((name.to_vec(), u64_at(entry, 0)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(entries: &[(u64, &str)]) -> Vec<u8> {
        let mut name = entries.len() * DIRENT_LEN;
        let mut bytes = Vec::new();
        for (number, text) in entries {
            bytes.extend(super::super::format::encode_dirent(
                *number,
                name as u16,
                FileType::Regular,
            ));
            name += text.len();
        }
        bytes.extend(entries.iter().flat_map(|(_, text)| text.bytes()));
        bytes
    }

    #[test]
    fn directory_when_read_then_its_names_and_numbers() {
        let mut found = Vec::new();
        let mut bytes = block(&[(1, "."), (2, ".."), (30, "a"), (40, "long name")]);
        bytes.resize(BLOCK_LEN, 0);
        read_block(&bytes, &mut found).expect("sound");
        assert_eq!(found, [(b"a".to_vec(), 30), (b"long name".to_vec(), 40)]);
    }

    #[test]
    fn directory_when_its_names_lead_elsewhere_then_refused() {
        for name in ["", "a/b", "/", &"x".repeat(256)] {
            let mut found = Vec::new();
            assert!(read_block(&block(&[(1, name)]), &mut found).is_err());
        }
        let mut past = block(&[(1, "a")]);
        past[8] = 200;
        assert!(read_block(&past, &mut Vec::new()).is_err());
        assert!(read_block(&[], &mut Vec::new()).is_err());
    }
}
