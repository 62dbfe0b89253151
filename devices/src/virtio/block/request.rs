//! What a driver asks of the disk (virtio 1.2 §5.2.6), parsed and checked whole.

use vm_memory::{ByteValued, GuestAddress};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::SECTOR_SIZE;
use crate::GuestMemory;
use crate::virtio::chain::DescriptorChain;

/// Segments one discard or write-zeroes request may have.
pub(super) const MAX_SEGMENTS: u32 = 32;
/// Sectors one such segment may cover: 1 GiB, so that no single one keeps a thread for long.
pub(super) const MAX_SEGMENT_SECTORS: u32 = 1 << 21;

const HEADER_SIZE: u32 = 16;
const SEGMENT_SIZE: u32 = 16;

/// What a request's last byte tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

#[derive(Copy, Clone, Default)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

// SAFETY: three integers with no padding (4 + 4 + 8 bytes, aligned to 8), any bits are valid.
unsafe impl ByteValued for Header {}

#[derive(Copy, Clone, Default)]
#[repr(C)]
struct RawSegment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

// SAFETY: three integers with no padding (8 + 4 + 4 bytes, aligned to 8), any bits are valid.
unsafe impl ByteValued for RawSegment {}

/// A piece of the disk to discard or to fill with zeroes, known to lie on it. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
    /// The driver does not mind if the space is given back.
    pub unmap: bool,
}

/// The work of a request. Offsets and lengths are in bytes and on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Disk to the first `len` writable bytes of the chain.
    Read {
        offset: u64,
        len: u32,
    },
    /// The `len` readable bytes behind the header to disk.
    Write {
        offset: u64,
        len: u32,
    },
    Flush,
    GetId,
    /// The pieces are in the `extents` given to [`Request::parse`].
    Discard,
    WriteZeroes,
}

impl Command {
    /// Bytes that go through the host's memory for it.
    pub fn transfer_len(self) -> u32 {
        match self {
            Command::Read { len, .. } | Command::Write { len, .. } => len,
            _ => 0,
        }
    }
}

/// Offset in the chain's readable bytes where a write's data begin.
pub(super) const WRITE_DATA_OFFSET: u32 = HEADER_SIZE;

/// What the disk is like, as far as requests are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes on the disk.
    pub size: u64,
    pub read_only: bool,
    /// Whether the driver negotiated these.
    pub discard: bool,
    pub write_zeroes: bool,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// The chain to give back.
    pub head: u16,
    /// Where the status byte goes: the last writable byte of the chain.
    pub status: GuestAddress,
    /// Writable bytes before the status.
    pub room: u32,
}

impl Reply {
    /// What the used ring says was written, if `data` bytes were: a run from the first byte on, so
    /// the status counts only if nothing before it was left out.
    pub fn written(&self, data: u32) -> u32 {
        // Cannot overflow: the chain's length, status included, is a u32.
        if data == self.room { data + 1 } else { data }
    }
}

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub reply: Reply,
    /// What to do, or what to answer right away.
    pub command: Result<Command, Status>,
}

impl Request {
    /// Reads the request in `chain`, each guest byte once. `None` if it leaves no room for a status:
    /// such a request cannot even be refused.
    pub fn parse(
        chain: &DescriptorChain,
        memory: &GuestMemory,
        limits: &Limits,
        extents: &mut Vec<Extent>,
    ) -> Option<Self> {
        let last = chain.writable.segments().last()?;
        Some(Request {
            reply: Reply {
                head: chain.head(),
                // The last byte of a segment that lies whole in memory.
                status: GuestAddress(last.addr.0 + u64::from(last.len) - 1),
                room: chain.writable.len() - 1,
            },
            command: parse_command(chain, memory, limits, extents),
        })
    }
}

fn parse_command(
    chain: &DescriptorChain,
    memory: &GuestMemory,
    limits: &Limits,
    extents: &mut Vec<Extent>,
) -> Result<Command, Status> {
    let header: Header = chain.readable.read_obj(memory, 0).ok_or(Status::IoError)?;
    let sector = u64::from_le(header.sector);
    // Both sides were found long enough: the header above, the status byte before.
    let out_len = chain.readable.len() - HEADER_SIZE;
    let in_len = chain.writable.len() - 1;
    match u32::from_le(header.kind) {
        VIRTIO_BLK_T_IN => {
            let offset = place(sector, in_len.into(), limits.size)?;
            Ok(Command::Read {
                offset,
                len: in_len,
            })
        }
        VIRTIO_BLK_T_OUT if limits.read_only => Err(Status::IoError),
        VIRTIO_BLK_T_OUT => {
            let offset = place(sector, out_len.into(), limits.size)?;
            Ok(Command::Write {
                offset,
                len: out_len,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Command::GetId),
        VIRTIO_BLK_T_DISCARD if limits.discard => {
            parse_extents(chain, memory, limits, extents)?;
            // §5.2.6.2: the flag means nothing for a discard and must be refused.
            if extents.iter().any(|extent| extent.unmap) {
                return Err(Status::Unsupported);
            }
            Ok(Command::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => {
            parse_extents(chain, memory, limits, extents)?;
            Ok(Command::WriteZeroes)
        }
        _ => Err(Status::Unsupported),
    }
}

fn parse_extents(
    chain: &DescriptorChain,
    memory: &GuestMemory,
    limits: &Limits,
    extents: &mut Vec<Extent>,
) -> Result<(), Status> {
    extents.clear();
    let len = chain.readable.len() - HEADER_SIZE;
    let count = len / SEGMENT_SIZE;
    if !len.is_multiple_of(SEGMENT_SIZE) || count == 0 || count > MAX_SEGMENTS {
        return Err(Status::IoError);
    }
    for n in 0..count {
        let raw: RawSegment = chain
            .readable
            .read_obj(memory, HEADER_SIZE + n * SEGMENT_SIZE)
            .ok_or(Status::IoError)?;
        let flags = u32::from_le(raw.flags);
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        let sectors = u32::from_le(raw.sectors);
        if sectors > MAX_SEGMENT_SECTORS {
            return Err(Status::IoError);
        }
        let len = u64::from(sectors) * SECTOR_SIZE;
        let offset = place(u64::from_le(raw.sector), len, limits.size)?;
        if len > 0 {
            extents.push(Extent {
                offset,
                len,
                unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            });
        }
    }
    Ok(())
}

/// The byte offset of `len` bytes from `sector` on, if they are whole sectors of a disk of `size`
/// bytes.
fn place(sector: u64, len: u64, size: u64) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
    let end = offset.checked_add(len).ok_or(Status::IoError)?;
    if !len.is_multiple_of(SECTOR_SIZE) || end > size {
        return Err(Status::IoError);
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_when_at_the_edges_is_exact() {
        let size = 8 * SECTOR_SIZE;
        assert_eq!(place(0, size, size), Ok(0));
        assert_eq!(place(7, 512, size), Ok(7 * 512));
        assert_eq!(place(8, 0, size), Ok(size));
        for (sector, len) in [
            (8, 512),
            (7, 1024),
            (0, 511),
            (9, 0),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 0),
        ] {
            assert_eq!(place(sector, len, size), Err(Status::IoError), "{sector}");
        }
    }
}
