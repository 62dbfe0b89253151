//! Which bytes of the disk belong to whom.
//!
//! Pure arithmetic on a state that is cheap to copy, so that the directories can be placed in a dry
//! run before any of them is written: each needs its neighbours' inode numbers.

use super::format::{BLOCK, BLOCK_LEN, INODE_SLOT};

/// Blocks of the largest extent for inodes. It is filled in memory and written at once, and within it
/// an inode goes wherever it fits, so that contents that follow their inodes waste little.
const MAX_EXTENT: usize = 64;
/// Blocks of the first; each is twice the last, so that a small image is a small disk.
const FIRST_EXTENT: usize = 4;

/// Inodes with what follows them that are larger than this get blocks of their own.
pub const MAX_INODE: usize = 128 << 10;

/// The disk is larger than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A run of blocks for inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its offset in bytes.
    pub offset: u64,
    /// Its bytes.
    pub len: usize,
}

/// What is taken.
#[derive(Debug, Clone)]
pub struct Space {
    /// The first block that nobody has.
    next: u64,
    /// Blocks there may be.
    limit: u64,
    extent: Extent,
    /// Bytes taken in each block of the extent. Blocks are begun in order.
    used: [u16; MAX_EXTENT],
    begun: usize,
}

impl Space {
    /// A disk whose first block is taken, and which may have `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            next: 1,
            limit: (limit / BLOCK).min(u64::from(u32::MAX - 1)),
            extent: Extent { offset: 0, len: 0 },
            used: [0; MAX_EXTENT],
            begun: 0,
        }
    }

    /// Blocks that are taken.
    pub fn blocks(&self) -> u32 {
        // The limit is smaller than `u32::MAX`.
        self.next as u32
    }

    /// The extent that the last inode is in.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Takes whole blocks for contents and tells the first.
    pub fn data(&mut self, blocks: u64) -> Result<u32, Full> {
        let first = self.next;
        let next = first.checked_add(blocks).ok_or(Full)?;
        if next > self.limit {
            return Err(Full);
        }
        self.next = next;
        Ok(first as u32)
    }

    /// Takes `len` bytes for an inode and what follows it, at most `MAX_INODE`, and tells their
    /// offset. What fits into a block is in one block.
    pub fn inode(&mut self, len: usize) -> Result<u64, Full> {
        let len = len.next_multiple_of(INODE_SLOT as usize);
        loop {
            if len <= BLOCK_LEN {
                let room = (BLOCK_LEN - len) as u16;
                if let Some(block) = self.used[..self.begun]
                    .iter()
                    .position(|used| *used <= room)
                {
                    return Ok(self.take(block, len));
                }
            }
            if self.begun + len.div_ceil(BLOCK_LEN) <= self.extent.len / BLOCK_LEN {
                let block = self.begun;
                self.begun += len.div_ceil(BLOCK_LEN);
                return Ok(self.take(block, len));
            }
            self.begin_extent(len)?;
        }
    }

    /// Takes bytes in an extent's block and, if there are more, in the untouched ones after it.
    fn take(&mut self, block: usize, len: usize) -> u64 {
        let start = usize::from(self.used[block]);
        let offset = self.extent.offset + (block * BLOCK_LEN + start) as u64;
        let mut end = start + len;
        for used in &mut self.used[block..] {
            *used = end.min(BLOCK_LEN) as u16;
            if end <= BLOCK_LEN {
                break;
            }
            end -= BLOCK_LEN;
        }
        offset
    }

    fn begin_extent(&mut self, len: usize) -> Result<(), Full> {
        let blocks = (self.extent.len / BLOCK_LEN * 2)
            .clamp(FIRST_EXTENT, MAX_EXTENT)
            .max(len.div_ceil(BLOCK_LEN));
        let first = self.data(blocks as u64)?;
        self.extent = Extent {
            offset: u64::from(first) * BLOCK,
            len: blocks * BLOCK_LEN,
        };
        self.used = [0; MAX_EXTENT];
        self.begun = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_when_it_fits_nowhere_in_the_extent_then_begins_a_larger_one() {
        let mut space = Space::new(1 << 30);
        let first: Vec<u64> = (0..4).map(|_| space.inode(3000).expect("room")).collect();
        assert_eq!(first, [4096, 8192, 12288, 16384]);
        assert_eq!(space.inode(1000), Ok(4096 + 3008));
        assert_eq!(space.data(2), Ok(5));
        assert_eq!(space.inode(1100), Ok(7 * 4096));
        assert_eq!(
            space.extent(),
            Extent {
                offset: 7 * 4096,
                len: 8 * 4096
            }
        );
        assert_eq!(space.blocks(), 15);
    }

    #[test]
    fn inode_when_larger_than_a_block_then_has_neighbouring_blocks() {
        let mut space = Space::new(1 << 30);
        assert_eq!(space.inode(100), Ok(4096));
        assert_eq!(space.inode(10_000), Ok(8192));
        assert_eq!(space.inode(2_000), Ok(4096 + 128));
        assert_eq!(space.inode(2_000), Ok(4096 * 4 + 10_016 - 8192));
        assert_eq!(space.inode(MAX_INODE), Ok(4096 * 5));
        assert_eq!(space.extent().len, MAX_INODE);
    }

    #[test]
    fn anything_when_beyond_the_limit_then_is_full() {
        let mut space = Space::new(10 * BLOCK);
        assert_eq!(space.data(u64::MAX), Err(Full));
        assert_eq!(space.data(7), Ok(1));
        assert_eq!(space.inode(32), Err(Full));
        assert_eq!(space.data(2), Ok(8));
        assert_eq!(space.data(1), Err(Full));
    }
}
