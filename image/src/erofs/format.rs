//! What lies on the disk, byte by byte: superblock, inodes, directory entries. All little-endian.

use super::attributes::Attributes;

/// Bytes of a block, of whatever is mapped into a page cache at once.
pub const BLOCK: u64 = 4096;
/// The same for what is in memory.
pub const BLOCK_LEN: usize = BLOCK as usize;
/// Where the superblock is.
pub const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_LEN: usize = 128;
/// The root directory's inode follows the superblock, because the superblock has 16 bits for it.
pub const ROOT_OFFSET: u64 = (SUPERBLOCK_OFFSET + SUPERBLOCK_LEN) as u64;
/// An inode's number is its offset in these units.
pub const INODE_SLOT: u64 = 32;
/// Bytes of the two forms of an inode.
pub const COMPACT_LEN: usize = 32;
/// Bytes of an inode that has a time of its own.
pub const EXTENDED_LEN: usize = 64;
/// Bytes before an inode's extended attributes.
pub const XATTR_HEADER_LEN: usize = 12;
/// Bytes of a directory entry without its name.
pub const DIRENT_LEN: usize = 12;
/// Longest name in a directory.
pub const NAME_LEN: usize = 255;
/// A chunk that is a hole.
pub const HOLE: u32 = u32::MAX;
/// Smallest and largest chunk, as powers of two.
pub const CHUNK_BITS: std::ops::RangeInclusive<u32> = 12..=12 + 31;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A symbolic link.
    Symlink,
}

impl FileType {
    /// The type's bits in `st_mode`.
    fn mode(self) -> u16 {
        match self {
            Self::Regular => S_IFREG,
            Self::Directory => S_IFDIR,
            Self::Character => S_IFCHR,
            Self::Block => S_IFBLK,
            Self::Fifo => S_IFIFO,
            Self::Symlink => S_IFLNK,
        }
    }

    /// The type that `st_mode` tells, if it is one of these.
    pub fn of_mode(mode: u16) -> Option<Self> {
        let all = [
            Self::Regular,
            Self::Directory,
            Self::Character,
            Self::Block,
            Self::Fifo,
            Self::Symlink,
        ];
        all.into_iter().find(|kind| kind.mode() == mode & !0o7777)
    }

    /// The type as a directory entry tells it.
    fn dirent(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::Character => 3,
            Self::Block => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }
}

/// Where an inode's contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In blocks from this one on.
    Plain(u32),
    /// In blocks from this one on, but for the last, partial one, which follows the inode.
    Inline(u32),
    /// In chunks of `1 << bits` bytes; their blocks are listed behind the inode.
    Chunks {
        /// Size of a chunk as a power of two.
        bits: u32,
    },
    /// Nowhere: a device, of this encoded number, or a pipe.
    Device(u32),
}

impl Layout {
    fn format(self) -> u16 {
        match self {
            Self::Plain(_) | Self::Device(_) => 0,
            Self::Inline(_) => 2,
            Self::Chunks { .. } => 4,
        }
    }

    fn location(self) -> u32 {
        match self {
            Self::Plain(block) | Self::Inline(block) => block,
            Self::Chunks { bits } => bits - CHUNK_BITS.start(),
            Self::Device(number) => number,
        }
    }
}

/// An inode as it is written; its extended attributes follow it.
#[derive(Debug, Clone, Copy)]
pub struct InodeRecord<'a> {
    /// Owner, permissions, time.
    pub attributes: &'a Attributes,
    /// What it is.
    pub file_type: FileType,
    /// Where its contents are.
    pub layout: Layout,
    /// Bytes of its contents.
    pub size: u64,
    /// Names it has.
    pub links: u32,
    /// A number for 32-bit programs.
    pub serial: u32,
    /// Whether it has the long form.
    pub extended: bool,
}

impl InodeRecord<'_> {
    /// Writes the inode and its extended attributes to the front of `at`, which must have room.
    pub fn encode(&self, at: &mut [u8]) {
        let attributes = self.attributes;
        let form = u16::from(self.extended);
        let mode = self.file_type.mode() | attributes.mode & 0o7777;
        put(at, 0, &(form | self.layout.format() << 1).to_le_bytes());
        put(at, 2, &attributes.xattrs.count().to_le_bytes());
        put(at, 4, &mode.to_le_bytes());
        put(at, 16, &self.layout.location().to_le_bytes());
        put(at, 20, &self.serial.to_le_bytes());
        let xattrs = if self.extended {
            put(at, 8, &self.size.to_le_bytes());
            put(at, 24, &attributes.uid.to_le_bytes());
            put(at, 28, &attributes.gid.to_le_bytes());
            put(at, 32, &attributes.mtime.seconds.to_le_bytes());
            put(at, 40, &attributes.mtime.nanoseconds.to_le_bytes());
            EXTENDED_LEN
        } else {
            put(at, 8, &(self.size as u32).to_le_bytes());
            put(at, 24, &(attributes.uid as u16).to_le_bytes());
            put(at, 26, &(attributes.gid as u16).to_le_bytes());
            COMPACT_LEN
        };
        let (offset, links) = encode_links(self.links, self.extended);
        put(at, offset, links.as_slice());
        let entries = attributes.xattrs.entries();
        if !entries.is_empty() {
            put(at, xattrs + XATTR_HEADER_LEN, entries);
        }
    }
}

/// A link count, and where in an inode it belongs.
#[derive(Debug, Clone, Copy)]
pub enum Links {
    /// In a compact inode.
    Short([u8; 2]),
    /// In an extended one.
    Long([u8; 4]),
}

impl Links {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }
}

/// The offset of the link count in an inode, and its bytes. A compact inode counts no further than
/// 65,535: it is the file's names that matter, and they are all there.
pub fn encode_links(links: u32, extended: bool) -> (usize, Links) {
    if extended {
        (44, Links::Long(links.to_le_bytes()))
    } else {
        let links = u16::try_from(links).unwrap_or(u16::MAX);
        (6, Links::Short(links.to_le_bytes()))
    }
}

/// A directory entry without its name, which is `name_offset` bytes into the entry's block.
pub fn encode_dirent(nid: u64, name_offset: u16, file_type: FileType) -> [u8; DIRENT_LEN] {
    let mut entry = [0; DIRENT_LEN];
    put(&mut entry, 0, &nid.to_le_bytes());
    put(&mut entry, 8, &name_offset.to_le_bytes());
    entry[10] = file_type.dirent();
    entry
}

/// A device's number as the kernel encodes it: 12 bits of major, 20 of minor.
pub fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// Major and minor number of a device as the kernel encodes it.
pub fn decode_device(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00)
}

/// The superblock.
#[derive(Debug, Clone, Copy)]
pub struct Superblock {
    /// Inodes there are.
    pub inodes: u64,
    /// Blocks there are.
    pub blocks: u32,
    /// The time of all compact inodes.
    pub build_time: super::attributes::Time,
    /// Names this file system.
    pub uuid: [u8; 16],
    /// Whether there is a file in chunks.
    pub chunks: bool,
}

impl Superblock {
    /// Writes the superblock into the first block of the disk, which is complete otherwise: the
    /// checksum covers the rest of the block as well. The feature that it has one is not named: the
    /// kernel would compute it at each mount, byte by byte, and we look at it ourselves.
    pub fn encode(&self, block: &mut [u8; BLOCK_LEN]) {
        let at = &mut block[SUPERBLOCK_OFFSET..];
        put(at, 0, &MAGIC.to_le_bytes());
        put(at, 4, &[0; 4]);
        put(at, 8, &COMPAT_MTIME.to_le_bytes());
        at[12] = BLOCK.trailing_zeros() as u8;
        put(at, 14, &((ROOT_OFFSET / INODE_SLOT) as u16).to_le_bytes());
        put(at, 16, &self.inodes.to_le_bytes());
        put(at, 24, &self.build_time.seconds.to_le_bytes());
        put(at, 32, &self.build_time.nanoseconds.to_le_bytes());
        put(at, 36, &self.blocks.to_le_bytes());
        put(at, 48, &self.uuid);
        let incompatible = if self.chunks {
            INCOMPAT_CHUNKED_FILE
        } else {
            0
        };
        put(at, 80, &incompatible.to_le_bytes());
        let checksum = crc32c(at);
        put(at, 4, &checksum.to_le_bytes());
    }

    /// What a disk's first block says, if it is one of ours and whole.
    pub fn decode(block: &[u8; BLOCK_LEN]) -> Option<Self> {
        let mut block = *block;
        let at = &mut block[SUPERBLOCK_OFFSET..];
        let checksum = u32_at(at, 4);
        put(at, 4, &[0; 4]);
        let is_ours = u32_at(at, 0) == MAGIC
            && crc32c(at) == checksum
            && u32::from(at[12]) == BLOCK.trailing_zeros()
            && u64::from(u16_at(at, 14)) == ROOT_OFFSET / INODE_SLOT
            && u32_at(at, 80) & !INCOMPAT_CHUNKED_FILE == 0;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&at[48..64]);
        is_ours.then(|| Self {
            inodes: u64_at(at, 16),
            blocks: u32_at(at, 36),
            build_time: super::attributes::Time {
                seconds: u64_at(at, 24) as i64,
                nanoseconds: u32_at(at, 32),
            },
            uuid,
            chunks: u32_at(at, 80) & INCOMPAT_CHUNKED_FILE != 0,
        })
    }
}

/// A number in bytes that there are.
pub fn u16_at(at: &[u8], offset: usize) -> u16 {
    let mut bytes = [0; 2];
    bytes.copy_from_slice(&at[offset..offset + 2]);
    u16::from_le_bytes(bytes)
}

/// The same, of four bytes.
pub fn u32_at(at: &[u8], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&at[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

/// The same, of eight bytes.
pub fn u64_at(at: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&at[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

fn put(at: &mut [u8], offset: usize, bytes: &[u8]) {
    at[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C without the final inversion, as the kernel has it. Bit by bit: it is for one block.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_when_of_the_check_string_then_is_the_published_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn encode_device_when_large_then_splits_the_minor_number() {
        assert_eq!(encode_device(8, 1), Some(0x0801));
        assert_eq!(encode_device(0xabc, 0xdef12), Some(0xdefa_bc12));
        assert_eq!(encode_device(1 << 12, 0), None);
        assert_eq!(encode_device(0, 1 << 20), None);
        for device in [(0, 0), (8, 1), (0xabc, 0xdef12), (0xfff, 0xfffff)] {
            let number = encode_device(device.0, device.1).expect("small");
            assert_eq!(decode_device(number), device);
        }
    }

    #[test]
    fn superblock_when_read_again_then_the_same_and_damaged_is_none() {
        let superblock = Superblock {
            inodes: 7,
            blocks: 9,
            build_time: super::super::attributes::Time {
                seconds: -5,
                nanoseconds: 6,
            },
            uuid: [3; 16],
            chunks: true,
        };
        let mut block = [0; BLOCK_LEN];
        superblock.encode(&mut block);
        let read = Superblock::decode(&block).expect("whole");
        assert_eq!(format!("{read:?}"), format!("{superblock:?}"));
        block[BLOCK_LEN - 1] ^= 1;
        assert!(Superblock::decode(&block).is_none());
    }
}
