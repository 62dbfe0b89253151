//! EROFS: the read-only file system that an image becomes, written in one pass.
//!
//! The kernel's documentation has the format (`filesystems/erofs`). Of what it allows, a disk here is:
//!
//! - **Uncompressed, blocks of 4 KiB.** The layers were compressed for the wire. On the disk every
//!   sandbox would decompress them again, while the host's page cache shares the plain blocks.
//! - **Written as its contents come.** An inode precedes its contents, so files are neither buffered
//!   nor counted before. Inode numbers are offsets in units of 32 bytes, and directories are written
//!   last, when every number is known; only then also the link counts of inodes with several names.
//!   The superblock has 16 bits for the root's number, so the root's inode follows the superblock, in
//!   the first block. The superblock is the last write: a disk without it is nobody's.
//! - **Inodes in extents** of 16 KiB that grow to 256 KiB, filled in memory and written at once. What
//!   a file has beyond whole blocks follows its inode (`FLAT_INLINE`), which must not cross a block:
//!   an inode goes to the first block of the extent that has room. So a small file costs its size
//!   and an inode, and is read with its neighbours. Contents in whole blocks (`FLAT_PLAIN`) are written
//!   between the extents, 1 MiB at a time.
//! - **Compact inodes** (32 bytes) where ids are below 65,536, the size is below 4 GiB and the time is
//!   that of the disk, which is the time of the first inode: images that are built reproducibly have
//!   one time for all. Others have 64 bytes. A compact inode counts links no further than 65,535.
//! - **Holes as chunks** (`CHUNK_BASED`, only if there are any) of the size, from 4 KiB to 8 TiB, that
//!   makes the list of chunks and the zeros in half-empty chunks cost least. A file that gains nothing by
//!   it is written with its holes as zeros.
//! - **Extended attributes beside their inodes**, sorted: `user.`, `trusted.`, `security.` and both ACLs.
//!   Overlayfs's own are left out, because a disk is the lower layer of an overlay and they would be
//!   obeyed there.
//! - **A function of its input**: no clock, no random number, no order of a hash table.
//!
//! Disks are read by the kernel, and, where that cannot, by [`Reader`].

mod attributes;
mod directory;
mod format;
mod output;
mod read;
mod space;
mod sparse;
mod writer;

pub use attributes::{Attributes, Time, XattrError, Xattrs};
pub use directory::{Child, Directories};
pub use format::{FileType, NAME_LEN};
pub use output::ReadAt;
pub use read::{Contents, Extent, Node, ReadError, Reader, Xattr};
pub use sparse::Piece;
pub use writer::{Inode, Special, Writer, Written};

/// Longest target of a symbolic link.
pub const MAX_SYMLINK: usize = 4095;

/// Why a disk cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The contents of a file could not be read.
    #[error("cannot read its contents: {0}")]
    Read(std::io::Error),
    /// The disk could not be written, or what was written could not be read back.
    #[error("cannot write the disk: {0}")]
    Write(std::io::Error),
    /// The disk is larger than it may be.
    #[error("the disk is larger than it may be")]
    Full,
    /// A symbolic link has no target, or one that is too long.
    #[error("the target of a symbolic link has {0} bytes, not 1 to {MAX_SYMLINK}")]
    Symlink(usize),
    /// Linux has no such device number.
    #[error("there is no device {major}:{minor}")]
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// The root directory's extended attributes do not fit into the first block.
    #[error("the extended attributes of the root directory are too large")]
    Root,
}

impl From<space::Full> for WriteError {
    fn from(_: space::Full) -> Self {
        Self::Full
    }
}
