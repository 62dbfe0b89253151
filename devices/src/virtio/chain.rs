//! One request of a driver: a descriptor chain, validated whole before any of it is used.
//!
//! The chain is walked here and not through `virtio_queue::DescriptorChain`, whose iterator ends a
//! malformed chain as if it were complete: a device must be able to tell the two apart.
//!
//! What holds of a chain that was parsed (virtio 1.2 §2.7.4, §2.7.5):
//! - every buffer lies whole in one region of guest memory;
//! - all readable buffers come before all writable ones;
//! - it has at most as many buffers as the queue has descriptors, so a loop is an error;
//! - an indirect table is not nested, not empty, and a whole number of descriptors;
//! - the lengths of each side add up to less than 2^32.

use libc::iovec;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use crate::GuestMemory;

/// Bytes in one descriptor (virtio 1.2 §2.7.5).
const DESCRIPTOR_SIZE: u32 = 16;

/// Why a chain was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// A descriptor index is not below the table's size.
    #[error("descriptor index {0} is out of range")]
    IndexOutOfRange(u32),
    /// The descriptor table or an indirect table is not in guest memory.
    #[error("descriptor table at {0:#x} is not in guest memory")]
    TableOutsideMemory(u64),
    /// A buffer is not whole in guest memory.
    #[error("buffer of {len} bytes at {addr:#x} is not in guest memory")]
    BufferOutsideMemory {
        /// Guest-physical start.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// More buffers than the queue has descriptors: a loop, or a driver that lies.
    #[error("chain has more than {0} buffers")]
    TooLong(u16),
    /// A readable buffer follows a writable one.
    #[error("a readable buffer follows a writable one")]
    OutOfOrder,
    /// An indirect descriptor inside an indirect table, with NEXT set, or with a bad table size.
    #[error("malformed indirect descriptor")]
    BadIndirect,
    /// The buffers of one side add up to 2^32 bytes or more.
    #[error("chain is longer than 4 GiB")]
    LengthOverflow,
}

#[derive(Copy, Clone, Default, Debug)]
#[repr(C)]
struct RawDescriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

// SAFETY: four integers with no padding between or after them (8 + 4 + 2 + 2 bytes, aligned to 8),
// for which every bit pattern is valid.
unsafe impl ByteValued for RawDescriptor {}

/// A piece of guest memory, known to lie whole in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical start.
    pub addr: GuestAddress,
    /// Length in bytes, never 0.
    pub len: u32,
}

/// One side of a chain: its readable or its writable buffers, as one run of bytes.
#[derive(Debug, Default)]
pub struct Buffers {
    segments: Vec<Segment>,
    len: u32,
}

impl Buffers {
    /// Bytes in all segments together.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is nothing on this side.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Copies guest bytes from `offset` into `data`. `false`, with `data` in an unspecified state,
    /// if there are fewer than that.
    #[must_use]
    pub fn read_at(&self, memory: &GuestMemory, offset: u32, data: &mut [u8]) -> bool {
        let mut done = 0;
        self.for_range(offset, data.len(), |segment| {
            let part = &mut data[done..done + segment.len as usize];
            done += part.len();
            memory.read_slice(part, segment.addr).is_ok()
        })
    }

    /// Copies `data` to the guest at `offset`. `false` if it does not fit; then nothing is written.
    #[must_use]
    pub fn write_at(&self, memory: &GuestMemory, offset: u32, data: &[u8]) -> bool {
        let mut done = 0;
        self.for_range(offset, data.len(), |segment| {
            let part = &data[done..done + segment.len as usize];
            done += part.len();
            memory.write_slice(part, segment.addr).is_ok()
        })
    }

    /// Reads a fixed-size value at `offset`, `None` if it is not whole in the buffers.
    pub fn read_obj<T: ByteValued + Default>(
        &self,
        memory: &GuestMemory,
        offset: u32,
    ) -> Option<T> {
        let mut value = T::default();
        self.read_at(memory, offset, value.as_mut_slice())
            .then_some(value)
    }

    /// Writes a fixed-size value at `offset`; `false` if it does not fit.
    #[must_use]
    pub fn write_obj<T: ByteValued>(&self, memory: &GuestMemory, offset: u32, value: T) -> bool {
        self.write_at(memory, offset, value.as_slice())
    }

    /// Appends host `iovec`s for the `len` bytes at `offset`. `false`, and nothing appended, if they
    /// are not all there.
    ///
    /// The pointers stay good as long as `memory` is mapped, which is as long as the caller holds
    /// an `Arc` to it: guest memory is never unmapped piecemeal.
    #[must_use]
    pub fn append_iovecs(
        &self,
        memory: &GuestMemory,
        offset: u32,
        len: usize,
        iovecs: &mut Vec<iovec>,
    ) -> bool {
        let before = iovecs.len();
        let whole = self.for_range(offset, len, |segment| {
            let Ok(slice) = memory.get_slice(segment.addr, segment.len as usize) else {
                return false;
            };
            iovecs.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            true
        });
        if !whole {
            iovecs.truncate(before);
        }
        whole
    }

    /// Calls `each` for the pieces of the `len` bytes at `offset`, until it returns `false`.
    /// `false` without a call if the range is not whole in the buffers.
    fn for_range(&self, offset: u32, len: usize, mut each: impl FnMut(Segment) -> bool) -> bool {
        if u64::from(offset) + len as u64 > u64::from(self.len) {
            return false;
        }
        let mut skip = offset;
        let mut left = len as u32; // at most self.len, checked above
        for segment in &self.segments {
            if left == 0 {
                break;
            }
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            let piece = Segment {
                // Inside a validated segment, so this cannot overflow.
                addr: GuestAddress(segment.addr.0 + u64::from(skip)),
                len: (segment.len - skip).min(left),
            };
            left -= piece.len;
            skip = 0;
            if !each(piece) {
                return false;
            }
        }
        true
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
    }

    fn push(&mut self, segment: Segment) -> Result<(), ChainError> {
        self.len = self
            .len
            .checked_add(segment.len)
            .ok_or(ChainError::LengthOverflow)?;
        self.segments.push(segment);
        Ok(())
    }
}

/// A parsed chain. Reused from request to request, so that parsing does not allocate.
#[derive(Debug, Default)]
pub struct DescriptorChain {
    head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers,
    /// What the device may fill.
    pub writable: Buffers,
}

impl DescriptorChain {
    /// An empty chain to parse into.
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the first descriptor: what goes back on the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Walks and checks the chain that starts at descriptor `head` of the table at `table` with
    /// `queue_size` descriptors, replacing what was here.
    pub fn parse(
        &mut self,
        memory: &GuestMemory,
        table: GuestAddress,
        queue_size: u16,
        head: u16,
    ) -> Result<(), ChainError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();

        let mut table = table;
        let mut table_len = u32::from(queue_size);
        let mut index = u32::from(head);
        let mut indirect = false;
        // One step more than there may be buffers: the descriptor that names the indirect table.
        for _ in 0..=u32::from(queue_size) {
            if index >= table_len {
                return Err(ChainError::IndexOutOfRange(index));
            }
            let descriptor = read_descriptor(memory, table, index)?;
            let flags = u32::from(descriptor.flags);

            if flags & VRING_DESC_F_INDIRECT != 0 {
                let whole = descriptor.len != 0 && descriptor.len % DESCRIPTOR_SIZE == 0;
                if indirect || flags & VRING_DESC_F_NEXT != 0 || !whole {
                    return Err(ChainError::BadIndirect);
                }
                indirect = true;
                table = GuestAddress(descriptor.addr);
                table_len = descriptor.len / DESCRIPTOR_SIZE;
                index = 0;
                continue;
            }

            if self.readable.segments.len() + self.writable.segments.len()
                >= usize::from(queue_size)
            {
                return Err(ChainError::TooLong(queue_size));
            }
            self.push(memory, &descriptor)?;
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(descriptor.next);
        }
        Err(ChainError::TooLong(queue_size))
    }

    fn push(&mut self, memory: &GuestMemory, descriptor: &RawDescriptor) -> Result<(), ChainError> {
        let writable = u32::from(descriptor.flags) & VRING_DESC_F_WRITE != 0;
        if !writable && !self.writable.segments.is_empty() {
            return Err(ChainError::OutOfOrder);
        }
        // An empty buffer says nothing; skipping it keeps `Segment::len` above 0.
        if descriptor.len == 0 {
            return Ok(());
        }
        let segment = Segment {
            addr: GuestAddress(descriptor.addr),
            len: descriptor.len,
        };
        memory
            .get_slice(segment.addr, segment.len as usize)
            .map_err(|_| ChainError::BufferOutsideMemory {
                addr: descriptor.addr,
                len: descriptor.len,
            })?;
        if writable {
            self.writable.push(segment)
        } else {
            self.readable.push(segment)
        }
    }
}

fn read_descriptor(
    memory: &GuestMemory,
    table: GuestAddress,
    index: u32,
) -> Result<RawDescriptor, ChainError> {
    let raw: RawDescriptor = table
        .0
        .checked_add(u64::from(index) * u64::from(DESCRIPTOR_SIZE))
        .and_then(|addr| memory.read_obj(GuestAddress(addr)).ok())
        .ok_or(ChainError::TableOutsideMemory(table.0))?;
    Ok(RawDescriptor {
        addr: u64::from_le(raw.addr),
        len: u32::from_le(raw.len),
        flags: u16::from_le(raw.flags),
        next: u16::from_le(raw.next),
    })
}
