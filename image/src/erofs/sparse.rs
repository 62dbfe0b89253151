//! Files with holes: which size of chunk wastes least, and which chunks there are.

use super::format::{BLOCK, CHUNK_BITS, HOLE};

/// A piece of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its offset in the file.
    pub offset: u64,
    /// Its bytes, at least one.
    pub len: u64,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Most chunks of one file: their list is then 1 MiB.
const MAX_CHUNKS: u64 = 1 << 18;

/// How a file with holes is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunking {
    /// Size of a chunk as a power of two.
    pub bits: u32,
    /// Chunks, holes among them.
    pub chunks: u64,
    /// Blocks of those that are no holes.
    pub blocks: u64,
}

impl Chunking {
    /// The cheapest way, or none if the file is as cheap with its holes written out. `pieces` are in
    /// order, apart, and end within `size`.
    pub fn choose(size: u64, pieces: &[Piece]) -> Option<Self> {
        let plain = size.div_ceil(BLOCK);
        CHUNK_BITS
            .map(|bits| Self::measure(size, pieces, bits))
            .filter(|chunking| chunking.chunks <= MAX_CHUNKS)
            .min_by_key(Self::cost)
            .filter(|chunking| chunking.cost() < plain * BLOCK)
    }

    /// Bytes of the disk.
    fn cost(&self) -> u64 {
        self.blocks * BLOCK + self.chunks * 4
    }

    fn measure(size: u64, pieces: &[Piece], bits: u32) -> Self {
        let mut blocks = 0;
        let mut end = 0;
        for piece in pieces {
            let first = piece.offset >> bits << bits;
            let chunk_end = chunk_end(piece.end(), bits, size);
            blocks += (chunk_end - first.max(end)) / BLOCK;
            end = chunk_end;
        }
        Self {
            bits,
            chunks: size.div_ceil(1 << bits),
            blocks,
        }
    }

    /// The first block of each chunk, if the first that is no hole begins at `block`.
    pub fn list(self, size: u64, pieces: &[Piece], mut block: u32) -> impl Iterator<Item = u32> {
        let mut pieces = pieces.iter().peekable();
        (0..self.chunks).map(move |chunk| {
            let start = chunk << self.bits;
            let end = chunk_end(start + 1, self.bits, size);
            while pieces.next_if(|piece| piece.end() <= start).is_some() {}
            match pieces.peek() {
                Some(piece) if piece.offset < end => {
                    let first = block;
                    block += ((end - start) / BLOCK) as u32;
                    first
                }
                _ => HOLE,
            }
        })
    }
}

/// Where the chunk with the byte before `offset` ends; the last one ends with the file's last block.
pub fn chunk_end(offset: u64, bits: u32, size: u64) -> u64 {
    offset
        .next_multiple_of(1 << bits)
        .min(size.next_multiple_of(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, len: u64) -> Piece {
        Piece { offset, len }
    }

    #[test]
    fn choose_when_little_of_much_then_takes_the_cheapest_chunks() {
        let pieces = [piece(0, 1), piece(1 << 40, 4096)];
        let chunking = Chunking::choose((1 << 40) + 4096, &pieces).expect("holes");
        assert!(chunking.chunks <= MAX_CHUNKS);
        assert!(chunking.cost() < 10 << 20, "{chunking:?}");
        let list: Vec<u32> = chunking
            .list((1 << 40) + 4096, &pieces, 7)
            .filter(|block| *block != HOLE)
            .collect();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0], 7);
    }

    #[test]
    fn choose_when_all_hole_then_one_chunk() {
        let chunking = Chunking::choose(1 << 30, &[]).expect("a hole");
        assert_eq!((chunking.chunks, chunking.blocks), (1, 0));
        assert_eq!(chunking.list(1 << 30, &[], 9).collect::<Vec<_>>(), [HOLE]);
    }

    #[test]
    fn choose_when_holes_are_small_then_none() {
        assert_eq!(Chunking::choose(4096, &[piece(0, 10)]), None);
        assert_eq!(
            Chunking::choose(8192, &[piece(100, 10), piece(5000, 1)]),
            None
        );
    }

    #[test]
    fn list_when_pieces_share_chunks_then_counts_their_blocks_once() {
        let pieces = [
            piece(0, 5),
            piece(100, 5000),
            piece(40_960, 1),
            piece(45_000, 3000),
        ];
        let size = 50_000;
        let chunking = Chunking::measure(size, &pieces, 12);
        assert_eq!((chunking.chunks, chunking.blocks), (13, 4));
        let list: Vec<u32> = chunking.list(size, &pieces, 1).collect();
        let hole = HOLE;
        assert_eq!(
            list,
            [
                1, 2, hole, hole, hole, hole, hole, hole, hole, hole, 3, 4, hole
            ]
        );
    }
}
