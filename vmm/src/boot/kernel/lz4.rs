//! The legacy LZ4 frame: a magic number, then blocks that each start with their packed length and
//! unpack to 8 MiB, the last to less. `lz4 -l` writes it, and so does the kernel's build.

use std::io::{self, Read};

use lz4_flex::block;

const BLOCK_SIZE: usize = 8 << 20;
/// What 8 MiB of noise are packed to.
const MAX_PACKED_SIZE: usize = BLOCK_SIZE + BLOCK_SIZE / 255 + 16;

/// Unpacks one frame. It ends where the input does.
pub(super) struct Lz4LegacyReader<R> {
    input: R,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
    /// The part of `unpacked` that was not read yet.
    start: usize,
    end: usize,
}

impl<R: Read> Lz4LegacyReader<R> {
    /// The first bytes of a frame.
    pub(super) const MAGIC: &[u8; 4] = b"\x02\x21\x4c\x18";

    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if magic != *Self::MAGIC {
            return Err(invalid("no legacy lz4 frame"));
        }
        Ok(Lz4LegacyReader {
            input,
            packed: Vec::new(),
            unpacked: vec![0; BLOCK_SIZE],
            start: 0,
            end: 0,
        })
    }

    /// Unpacks the next block, which may be empty; `false` at the end of the input.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut len = [0; 4];
        let mut filled = 0;
        while filled < len.len() {
            match self.input.read(&mut len[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        if len == *Self::MAGIC {
            return Ok(true); // frames may follow each other
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_PACKED_SIZE {
            return Err(invalid("a block is larger than any can be"));
        }
        self.packed.resize(len, 0);
        self.input.read_exact(&mut self.packed)?;
        self.end = block::decompress_into(&self.packed, &mut self.unpacked)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.start = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Lz4LegacyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.start == self.end {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let len = buffer.len().min(self.end - self.start);
        buffer[..len].copy_from_slice(&self.unpacked[self.start..self.start + len]);
        self.start += len;
        Ok(len)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
