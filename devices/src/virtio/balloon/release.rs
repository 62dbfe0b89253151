//! Giving guest memory back to the host.

use std::io;

use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use crate::GuestMemory;

/// Bytes in a page, the balloon's (§5.5.6) and the host's.
pub const PAGE_SIZE: u64 = 4096;

/// What became of a range.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// Bytes that are with the host now. What was in them is lost: zeros are read there, or what the
    /// guest was loaded with, until the guest writes.
    pub bytes: u64,
    /// Bytes that the host was asked to take and did not.
    pub failed: u64,
}

/// Releases the whole pages in `[start, start + len)` that are guest memory. What is not is left
/// alone: holes in the guest's address space, and everything beyond it.
pub fn release(memory: &GuestMemory, start: u64, len: u64) -> Released {
    let mut released = Released::default();
    let Some(end) = start.checked_add(len) else {
        return released;
    };
    let Some(start) = start.checked_next_multiple_of(PAGE_SIZE) else {
        return released;
    };
    let end = end - end % PAGE_SIZE;
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        // Regions start on a page of the host, as all mappings do, and of the guest. A last page that
        // is not whole is kept.
        let Some(top) = base.checked_add(region.len() - region.len() % PAGE_SIZE) else {
            continue;
        };
        let (from, to) = (start.max(base), end.min(top));
        if from >= to {
            continue;
        }
        match release_in(region, from - base, to - from) {
            Ok(()) => released.bytes += to - from,
            Err(_) => released.failed += to - from,
        }
    }
    released
}

/// Releases `[offset, offset + len)`, whole pages within `region`.
fn release_in(region: &GuestRegionMmap<()>, offset: u64, len: u64) -> io::Result<()> {
    let host = region
        .get_host_address(MemoryRegionAddress(offset))
        .map_err(io::Error::other)?;
    // Dropping the pages of a shared mapping would leave them in the file behind it: there the hole
    // has to be made in the file.
    let shared = region.file_offset().is_some() && region.flags() & libc::MAP_SHARED != 0;
    let advice = if shared {
        libc::MADV_REMOVE
    } else {
        libc::MADV_DONTNEED
    };
    let give_up = |at: u64, len: u64, advice| {
        // SAFETY: the range lies within the mapping that `region` owns, by the caller's contract. It is
        // guest memory, whose contents the guest has given up and nobody holds references into: the VMM
        // only ever accesses it as volatile.
        let result = unsafe { libc::madvise(host.add(at as usize).cast(), len as usize, advice) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match give_up(0, len, advice) {
        // Some of the range is no longer the file's: the VMM maps what it loads from files, like the
        // kernel, over it, private.
        Err(e) if shared && e.raw_os_error() == Some(libc::EACCES) => (0..len)
            .step_by(PAGE_SIZE as usize)
            .try_for_each(|page| match give_up(page, PAGE_SIZE, advice) {
                Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                    give_up(page, PAGE_SIZE, libc::MADV_DONTNEED)
                }
                result => result,
            }),
        result => result,
    }
}

/// Sorts page numbers and calls `each` with the start and the length, in bytes, of every run of
/// adjacent ones.
pub fn for_runs(pages: &mut [u32], mut each: impl FnMut(u64, u64)) {
    pages.sort_unstable();
    let adjacent = |a: &u32, b: &u32| *b - *a <= 1; // sorted; the same page twice counts once
    for run in pages.chunk_by(adjacent) {
        if let [first, .., last] | [first @ last] = run {
            let start = u64::from(*first) * PAGE_SIZE;
            each(start, (u64::from(*last) + 1) * PAGE_SIZE - start);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    /// Two regions with a hole between them, in one memfd, filled; and the memfd.
    pub fn shared_memory(first: usize, second: (u64, usize)) -> (GuestMemory, File) {
        // SAFETY: a C string; the descriptor is ours.
        let file = unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        };
        file.set_len((first + second.1) as u64).unwrap();
        let part = |offset| Some(FileOffset::new(file.try_clone().unwrap(), offset));
        let memory = GuestMemory::from_ranges_with_files([
            (GuestAddress(0), first, part(0)),
            (GuestAddress(second.0), second.1, part(first as u64)),
        ])
        .unwrap();
        for region in memory.iter() {
            let ones = vec![1; region.len() as usize];
            memory.write_slice(&ones, region.start_addr()).unwrap();
        }
        (memory, file)
    }

    pub fn resident(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }

    fn is_zero(memory: &GuestMemory, page: u64) -> bool {
        let byte: u8 = memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap();
        byte == 0
    }

    #[test]
    fn pages_of_shared_memory_leave_the_file() {
        let (memory, file) = shared_memory(0x1_0000, (0x10_0000, 0x1_0000));
        assert_eq!(resident(&file), 0x2_0000);
        let released = release(&memory, 0x2000, 0x3000);
        assert_eq!((released.bytes, released.failed), (0x3000, 0));
        assert_eq!(resident(&file), 0x2_0000 - 0x3000);
        let zeros: Vec<u64> = (0..16).filter(|n| is_zero(&memory, *n)).collect();
        assert_eq!(zeros, [2, 3, 4]);
    }

    #[test]
    fn pages_mapped_over_shared_memory_are_dropped() {
        let (memory, file) = shared_memory(0x1_0000, (0x10_0000, 0x1_0000));
        let mut loaded = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut loaded, &[7; 0x2000]).unwrap();
        let host = memory.get_host_address(GuestAddress(0x3000)).unwrap();
        // SAFETY: two whole pages of the mapping made above, which nothing refers to.
        let mapping = unsafe {
            libc::mmap(
                host.cast(),
                0x2000,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                loaded.as_raw_fd(),
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED);
        memory
            .write_slice(&[9; 0x2000], GuestAddress(0x3000))
            .unwrap();
        let released = release(&memory, 0x2000, 0x4000);
        assert_eq!((released.bytes, released.failed), (0x4000, 0));
        // Those two pages had their place in the file all along.
        assert_eq!(resident(&file), 0x2_0000 - 0x2000);
        let first = |page: u64| -> u8 { memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap() };
        assert_eq!([1, 2, 3, 4, 5, 6].map(first), [1, 0, 7, 7, 0, 1]);
    }

    #[test]
    fn pages_of_private_memory_are_dropped() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        memory.write_slice(&[1; 0x4000], GuestAddress(0)).unwrap();
        assert_eq!(release(&memory, 0x1000, 0x1000).bytes, 0x1000);
        assert!(is_zero(&memory, 1));
        assert!(!is_zero(&memory, 0) && !is_zero(&memory, 2));
    }

    #[test]
    fn ranges_that_are_not_all_guest_memory_release_only_what_is() {
        let (memory, file) = shared_memory(0x1_0000, (0x10_0000, 0x1_0000));
        for (start, len, bytes) in [
            (0xf000, 0xf_2000, 0x2000), // across the hole
            (0x2_0000, 0x1000, 0),      // in the hole
            (0x11_0000, 0x1000, 0),     // beyond the end
            (0x10_f000, u64::MAX - 0x11_0000, 0x1000),
            (u64::MAX - 0xfff, 0x1000, 0), // would overflow
            (u64::MAX, 0, 0),
            (0x3001, 0x1ffe, 0), // no whole page
            (0x3001, 0x1fff, 0x1000),
            (0x5000, 0, 0),
        ] {
            let released = release(&memory, start, len);
            assert_eq!(released.bytes, bytes, "{start:#x} {len:#x}");
            assert_eq!(released.failed, 0);
        }
        assert_eq!(resident(&file), 0x2_0000 - 0x4000);
    }

    #[test]
    fn page_numbers_become_runs() {
        let mut runs = Vec::new();
        let mut pages = [9, 3, 2, u32::MAX, 4, 3, 7, 8, u32::MAX - 1];
        for_runs(&mut pages, |start, len| runs.push((start, len)));
        let top = (u64::from(u32::MAX) - 1) * PAGE_SIZE;
        assert_eq!(runs, [(0x2000, 0x3000), (0x7000, 0x3000), (top, 0x2000)]);
        for_runs(&mut [], |_, _| panic!("nothing to run"));
        for_runs(&mut [0], |start, len| assert_eq!((start, len), (0, 0x1000)));
    }
}
