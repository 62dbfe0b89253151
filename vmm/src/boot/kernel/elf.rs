//! Loads an ELF image: the loadable segments go to their physical addresses, and nothing else of it
//! is looked at.

use bulkhead_devices::GuestMemory;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::error::Problem;
use super::source::Source;
use crate::boot::layout::HIMEM_START;

pub(super) const MAGIC: &[u8] = b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// A vmlinux has five or so.
const MAX_PROGRAM_HEADERS: u16 = 128;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const TYPE_EXECUTABLE: u16 = 2;
const SEGMENT_LOAD: u32 = 1;

/// What was loaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Physical address of the first instruction.
    pub entry: GuestAddress,
    /// First address behind all segments, the zeroed part included.
    pub end: GuestAddress,
}

/// A `PT_LOAD` program header.
struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// Loads the image to `memory`, which must be zero where it goes: what a segment has in memory and
/// not in the file is not cleared here, as that would make pages real that the guest may never use.
pub(super) fn load(source: &mut impl Source, memory: &GuestMemory) -> Result<Image, Problem> {
    let mut header = [0; HEADER_SIZE];
    source.read(0, &mut header)?;
    check_ident(&header)?;
    let entry = u64_at(&header, 24);
    let table = u64_at(&header, 32);
    let entry_size = u16_at(&header, 54);
    let count = u16_at(&header, 56);
    if usize::from(entry_size) != PROGRAM_HEADER_SIZE {
        return Err(Problem::Elf("program headers of a wrong size"));
    }
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(Problem::Elf("no program headers, or far too many"));
    }

    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_SIZE];
    source.read(table, &mut headers)?;
    let mut segments: Vec<Segment> = headers
        .chunks_exact(PROGRAM_HEADER_SIZE)
        .filter(|header| u32_at(header, 0) == SEGMENT_LOAD)
        .map(|header| Segment {
            offset: u64_at(header, 8),
            address: u64_at(header, 24),
            file_size: u64_at(header, 32),
            memory_size: u64_at(header, 40),
        })
        .filter(|segment| segment.memory_size != 0)
        .collect();
    // All are checked before the first byte goes to the guest, and a payload is unpacked in order.
    segments.sort_by_key(|segment| segment.offset);
    let end = check_segments(&segments, entry, memory)?;
    for segment in segments {
        if segment.file_size != 0 {
            let address = GuestAddress(segment.address);
            source.load(segment.offset, segment.file_size, memory, address)?;
        }
    }
    Ok(Image {
        entry: GuestAddress(entry),
        end,
    })
}

fn check_ident(header: &[u8; HEADER_SIZE]) -> Result<(), Problem> {
    if !header.starts_with(MAGIC) {
        return Err(Problem::Elf("it does not start with the ELF magic number"));
    }
    let machine = u16_at(header, 18);
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(Problem::NotElf64);
    }
    if machine != MACHINE_X86_64 {
        return Err(Problem::Machine(machine));
    }
    let kind = u16_at(header, 16);
    if kind != TYPE_EXECUTABLE {
        return Err(Problem::NotExecutable(kind));
    }
    Ok(())
}

/// Checks that every segment lies in the guest's low memory above 1 MiB and that `entry` is in one of
/// them. Gives the address behind the last.
fn check_segments(
    segments: &[Segment],
    entry: u64,
    memory: &GuestMemory,
) -> Result<GuestAddress, Problem> {
    // The identity map and the address fields of the zero page reach 4 GiB, so not the high region.
    let low_memory = low_memory_end(memory);
    let mut end = 0;
    for segment in segments {
        if segment.file_size > segment.memory_size {
            return Err(Problem::Elf(
                "a segment is larger in the file than in memory",
            ));
        }
        if segment.address < HIMEM_START.raw_value() {
            return Err(Problem::TooLow(segment.address));
        }
        let segment_end = segment
            .address
            .checked_add(segment.memory_size)
            .ok_or(Problem::Elf("a segment ends beyond 2^64"))?;
        if segment_end > low_memory {
            return Err(Problem::DoesNotFit {
                needed_mib: segment_end.div_ceil(1 << 20),
                memory_mib: low_memory >> 20,
            });
        }
        end = end.max(segment_end);
    }
    if end == 0 {
        return Err(Problem::Elf("nothing in it is to be loaded"));
    }
    let holds_entry = |s: &Segment| entry >= s.address && entry - s.address < s.file_size;
    if !segments.iter().any(holds_entry) {
        return Err(Problem::Elf("the entry point is not in any segment"));
    }
    Ok(GuestAddress(end))
}

/// The first address behind the RAM that starts at 0.
pub(in crate::boot) fn low_memory_end(memory: &GuestMemory) -> u64 {
    memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.len())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
