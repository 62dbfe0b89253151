//! `memory`: guest memory from its first byte to its last, with the hole for devices left out and holes
//! where there is nothing but zeroes.

use std::fs::{File, OpenOptions};
use std::io;
use std::iter::once;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bulkhead_devices::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use super::{MEMORY_FILE, SnapshotError};
use crate::memory::{Backing, MemoryError, allocate, ranges_around_the_hole};

const PAGE: usize = 4096;
/// What is looked at, written and summed up at once, in bytes.
const CHUNK: usize = 1 << 20;

/// A piece of memory that is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u32, u32)", into = "(u64, u32, u32)")]
pub struct Extent {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// How long it is, in bytes: whole pages, at most [`CHUNK`].
    pub len: u32,
    /// Its CRC-32.
    pub crc: u32,
}

impl From<(u64, u32, u32)> for Extent {
    fn from((offset, len, crc): (u64, u32, u32)) -> Self {
        Extent { offset, len, crc }
    }
}

impl From<Extent> for (u64, u32, u32) {
    fn from(extent: Extent) -> Self {
        (extent.offset, extent.len, extent.crc)
    }
}

impl Extent {
    /// Whether all lie one behind the other in memory of `size` bytes.
    pub fn check(extents: &[Extent], size: u64) -> Result<(), String> {
        let mut end = 0;
        for extent in extents {
            let is_good = extent.offset >= end
                && extent.len > 0
                && extent.len as usize <= CHUNK
                && (extent.offset | u64::from(extent.len)) % PAGE as u64 == 0;
            end = extent.offset.saturating_add(extent.len.into());
            if !is_good || end > size {
                return Err(format!("there can be no memory at {:#x}", extent.offset));
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Writes the memory of a guest that stands still into `folder`.
pub fn write(memory: &GuestMemory, folder: &Path) -> Result<Vec<Extent>, SnapshotError> {
    let path = folder.join(MEMORY_FILE);
    let failed = failed("write the snapshot's memory", &path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(&failed)?;
    let size = memory.iter().map(|region| region.len()).sum();
    file.set_len(size).map_err(&failed)?;
    let mut extents = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let mut base = 0;
    for region in memory.iter() {
        let mut at = 0;
        while at < region.len() {
            let len = (region.len() - at).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..len];
            region
                .read_slice(chunk, MemoryRegionAddress(at))
                .map_err(|e| failed(io::Error::other(e)))?;
            for (start, piece) in pieces(chunk) {
                let offset = base + at + start as u64;
                file.write_all_at(piece, offset).map_err(&failed)?;
                extents.push(Extent {
                    offset,
                    len: piece.len() as u32, // at most CHUNK
                    crc: crc32fast::hash(piece),
                });
            }
            at += len as u64;
        }
        base += region.len();
    }
    Ok(extents)
}

/// The runs of pages that are not zero, and where each starts.
fn pieces(chunk: &[u8]) -> Vec<(usize, &[u8])> {
    let mut pieces: Vec<(usize, &[u8])> = Vec::new();
    let mut run: Option<usize> = None;
    for (index, page) in chunk.chunks(PAGE).enumerate() {
        let is_zero = page
            .chunks(64)
            .all(|line| line.iter().fold(0, |all, byte| all | byte) == 0);
        match (is_zero, run) {
            (false, None) => run = Some(index * PAGE),
            (true, Some(start)) => {
                pieces.push((start, &chunk[start..index * PAGE]));
                run = None;
            }
            _ => {}
        }
    }
    pieces.extend(run.map(|start| (start, &chunk[start..])));
    pieces
}

/// Makes guest memory out of what is in `folder`. What the guest writes stays with it; all else stays in the
/// file, and is shared with every other VM from it. With `backing` shared the file is copied instead, as
/// another process must see what the guest writes.
///
/// With `verify` all of it is read and compared with its checksums.
pub fn restore(
    folder: &Path,
    mib: u64,
    extents: &[Extent],
    verify: bool,
    backing: Backing,
) -> Result<GuestMemory, SnapshotError> {
    let path = folder.join(MEMORY_FILE);
    let read = failed("read the snapshot's memory", &path);
    let file = File::open(&path).map_err(&read)?;
    let size = mib << 20;
    let found = file.metadata().map_err(&read)?.len();
    if found != size {
        return Err(SnapshotError::Damaged {
            path: path.clone(),
            why: format!("it has {found} bytes where {size} belong"),
        });
    }
    if backing == Backing::Shared {
        return copy(&file, mib, extents, &path);
    }
    if verify {
        let mut buffer = vec![0; CHUNK];
        for extent in extents {
            check(&file, extent, &mut buffer, &path)?;
        }
        check_gaps(&file, extents, size, &mut buffer, &path)?;
    }
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges_around_the_hole(size) {
        let from = FileOffset::new(file.try_clone().map_err(&read)?, offset);
        let mapping = MmapRegion::build(
            Some(from),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(|e| read(io::Error::other(e)))?;
        // SAFETY: the range is one whole mapping that was just made; the advice changes nothing in it.
        unsafe { libc::madvise(mapping.as_ptr().cast(), len as usize, libc::MADV_DONTDUMP) };
        regions.extend(GuestRegionMmap::new(mapping, GuestAddress(start)));
        offset += len;
    }
    GuestMemory::from_regions(regions).map_err(|e| read(io::Error::other(e)))
}

fn check<'b>(
    file: &File,
    extent: &Extent,
    buffer: &'b mut [u8],
    path: &Path,
) -> Result<&'b [u8], SnapshotError> {
    let bytes = &mut buffer[..extent.len as usize]; // at most CHUNK, as was checked
    file.read_exact_at(bytes, extent.offset)
        .map_err(failed("read the snapshot's memory", path))?;
    match crc32fast::hash(bytes) == extent.crc {
        true => Ok(bytes),
        false => Err(SnapshotError::Damaged {
            path: path.to_owned(),
            why: format!("the checksum of what is at {:#x} is wrong", extent.offset),
        }),
    }
}

/// What is between the extents is nothing, or nothing but zeroes: it is mapped with the rest.
fn check_gaps(
    file: &File,
    extents: &[Extent],
    size: u64,
    buffer: &mut [u8],
    path: &Path,
) -> Result<(), SnapshotError> {
    let read = failed("read the snapshot's memory", path);
    let ends = extents.iter().map(|e| e.offset + u64::from(e.len));
    let starts = extents.iter().map(|e| e.offset);
    let gaps = once(0).chain(ends).zip(starts.chain(once(size)));
    for (mut at, end) in gaps.filter(|(start, end)| start < end) {
        while let Some(data) = next_data(file, at).map_err(&read)?
            && data < end
        {
            let len = (end - data).min(buffer.len() as u64) as usize;
            let bytes = &mut buffer[..len];
            file.read_exact_at(bytes, data).map_err(&read)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(SnapshotError::Damaged {
                    path: path.to_owned(),
                    why: format!("there is something at {data:#x} where nothing was"),
                });
            }
            at = data + len as u64;
        }
    }
    Ok(())
}

/// Where the file has something, from `at` on. A file system that does not know says that it has everywhere.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let at = libc::off64_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), at, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
    }
}

/// Into a memfd.
fn copy(
    file: &File,
    mib: u64,
    extents: &[Extent],
    path: &Path,
) -> Result<GuestMemory, SnapshotError> {
    let write = failed("copy the snapshot's memory", path);
    let memory =
        allocate(mib, Backing::Shared).map_err(|e: MemoryError| write(io::Error::other(e)))?;
    let mut buffer = vec![0; CHUNK];
    for extent in extents {
        let bytes = check(file, extent, &mut buffer, path)?;
        let mut base = 0;
        for region in memory.iter() {
            // A chunk does not reach beyond a region: both end at whole chunks.
            if (base..base + region.len()).contains(&extent.offset) {
                let at = region.start_addr().unchecked_add(extent.offset - base);
                memory
                    .write_slice(bytes, at)
                    .map_err(|e| write(io::Error::other(e)))?;
            }
            base += region.len();
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 2;

    /// A guest's memory with something on two pages, written down.
    fn written(folder: &Path) -> Vec<Extent> {
        let memory = allocate(MIB, Backing::Memfd).expect("memory");
        for page in [3, 300] {
            let at = GuestAddress(page * PAGE as u64);
            memory.write_slice(&[7; PAGE], at).expect("write");
        }
        write(&memory, folder).expect("write")
    }

    /// Writes into the file behind its back.
    fn overwrite(folder: &Path, bytes: &[u8], at: usize) {
        let file = OpenOptions::new()
            .write(true)
            .open(folder.join(MEMORY_FILE));
        let written = file.and_then(|file| file.write_all_at(bytes, at as u64));
        written.expect("write");
    }

    fn read(folder: &Path, extents: &[Extent], verify: bool) -> Result<GuestMemory, SnapshotError> {
        restore(folder, MIB, extents, verify, Backing::Memfd)
    }

    #[test]
    fn memory_when_read_again_is_what_it_was() {
        let dir = tempfile::tempdir().expect("folder");
        let extents = written(dir.path());
        assert_eq!(extents.len(), 2);
        let memory = read(dir.path(), &extents, true).expect("read");
        for (page, wanted) in [(2, 0), (3, 7), (4, 0), (300, 7), (511, 0)] {
            let mut bytes = [1; PAGE];
            let at = GuestAddress(page * PAGE as u64);
            memory.read_slice(&mut bytes, at).expect("read");
            assert_eq!(bytes, [wanted; PAGE], "page {page}");
        }
    }

    #[test]
    fn memory_when_damaged_anywhere_is_refused_if_it_is_looked_at() {
        for at in [0, 3 * PAGE, 4 * PAGE + 5, 300 * PAGE, 512 * PAGE - 1] {
            let dir = tempfile::tempdir().expect("folder");
            let extents = written(dir.path());
            overwrite(dir.path(), &[8], at);
            let refused = read(dir.path(), &extents, true).expect_err("damaged");
            assert!(
                matches!(refused, SnapshotError::Damaged { .. }),
                "{refused}"
            );
            read(dir.path(), &extents, false).expect("nobody looks");
        }
    }

    #[test]
    fn zeroes_when_they_are_written_where_nothing_was_are_no_damage() {
        let dir = tempfile::tempdir().expect("folder");
        let extents = written(dir.path());
        overwrite(dir.path(), &[0; 3 * PAGE], 0);
        overwrite(dir.path(), &[0; PAGE], 511 * PAGE);
        read(dir.path(), &extents, true).expect("read");
    }
}
