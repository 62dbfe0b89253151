//! Puts a part of a file into guest memory: mapped where that can be done, copied elsewhere.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use bulkhead_devices::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::memory::is_shared;

/// The host's pages, and the guest's.
const PAGE_SIZE: u64 = 4096;

/// Puts the `len` bytes from `offset` of `file` at `address`. The caller has checked that they lie
/// whole in one region of `memory`.
///
/// Pages that lie the same way in both are mapped, private to this VM, over what `memory` has there.
/// That takes no time, whatever their number; a page is copied when the guest first writes to it, and
/// until then all VMs that boot from this file share it. So the file must not be written to while a VM
/// runs. To replace it with another, as installers do, is fine.
///
/// Where guest memory is a file itself, that file has holes in these places, which a process that it is
/// shared with would see in place of what the guest makes of its pages. So to shared memory all is copied.
pub(super) fn place(
    mut file: &File,
    offset: u64,
    len: u64,
    memory: &GuestMemory,
    address: GuestAddress,
) -> io::Result<()> {
    let (head, pages) = match whole_pages(offset, len, address.0) {
        Some((head, pages))
            if !is_shared(memory) && map(file, offset + head, pages, memory, address.0 + head)? =>
        {
            (head, pages)
        }
        _ => (len, 0),
    };
    let mut copy = |skip: u64, len: u64| {
        if len == 0 {
            return Ok(());
        }
        // Within what the caller has checked.
        file.seek(SeekFrom::Start(offset + skip))?;
        let mut slice = memory
            .get_slice(GuestAddress(address.0 + skip), len as usize)
            .map_err(io::Error::other)?;
        file.read_exact_volatile(&mut slice)
            .map_err(io::Error::other)
    };
    copy(0, head)?;
    copy(head + pages, len - head - pages)
}

/// The bytes before the first whole page, and those of all whole pages; `None` if there are none, or
/// if the file and the guest divide the bytes into pages differently.
fn whole_pages(offset: u64, len: u64, address: u64) -> Option<(u64, u64)> {
    if offset % PAGE_SIZE != address % PAGE_SIZE {
        return None;
    }
    let head = address.wrapping_neg() % PAGE_SIZE;
    let rest = len.checked_sub(head)?;
    let pages = rest - rest % PAGE_SIZE;
    (pages != 0).then_some((head, pages))
}

/// Maps `len` bytes of `file` at `address`; `false` if this file cannot be mapped, and nothing was done.
fn map(file: &File, offset: u64, len: u64, memory: &GuestMemory, address: u64) -> io::Result<bool> {
    let host = memory
        .get_slice(GuestAddress(address), len as usize)
        .map_err(io::Error::other)?
        .ptr_guard_mut()
        .as_ptr();
    let failed = |mapping| mapping == libc::MAP_FAILED;
    // First somewhere else: a mapping that fails over another may already have removed that one.
    // SAFETY: a new mapping, in a place that the kernel chooses, that nobody refers to.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if failed(mapping) {
        return Ok(false);
    }
    // As with the rest of guest memory, a core dump of the VMM must not contain it. A hint.
    // SAFETY: all of the mapping made above; the advice does not change what is in it.
    unsafe { libc::madvise(mapping, len as usize, libc::MADV_DONTDUMP) };
    // SAFETY: the source is all of the mapping made above. The target is whole pages of a mapping that
    // `memory` owns, unmaps as a whole, and only ever accesses as volatile; what takes their place is
    // readable and writable like them.
    let moved = unsafe {
        libc::mremap(
            mapping,
            len as usize,
            len as usize,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            host,
        )
    };
    if failed(moved) {
        let error = io::Error::last_os_error();
        // SAFETY: it is where it was made, and still nobody refers to it.
        unsafe { libc::munmap(mapping, len as usize) };
        return Err(error);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    use crate::memory::{self, Backing};

    const MEMORY_MIB: u64 = 1;

    fn file(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8 | 1).collect();
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(&bytes).expect("write");
        (file, bytes)
    }

    /// Places a part of a file and checks that it is there and nothing else is. Gives the memory, and
    /// how much of it is not the file's.
    fn place_and_compare(offset: usize, len: usize, address: u64) -> (GuestMemory, u64) {
        let (file, bytes) = file(40_000);
        let memory = memory::allocate(MEMORY_MIB, Backing::Memfd).expect("memory");
        place(
            &file,
            offset as u64,
            len as u64,
            &memory,
            GuestAddress(address),
        )
        .expect("place");
        let allocated = memory_file(&memory).metadata().expect("metadata");

        let mut expected = vec![0; (MEMORY_MIB << 20) as usize];
        expected[address as usize..][..len].copy_from_slice(&bytes[offset..][..len]);
        let mut got = vec![0; expected.len()];
        memory.read_slice(&mut got, GuestAddress(0)).expect("read");
        assert!(got == expected, "{offset} {len} {address:#x}");
        (
            memory,
            std::os::unix::fs::MetadataExt::blocks(&allocated) * 512,
        )
    }

    fn memory_file(memory: &GuestMemory) -> &File {
        use vm_memory::GuestMemoryRegion;
        let region = memory.iter().next().expect("region");
        region.file_offset().expect("a file").file()
    }

    #[test]
    fn pages_when_aligned_alike_are_mapped_and_the_rest_is_copied() {
        for (offset, len, address, copied) in [
            (4096, 8192, 0x1_0000, 0),
            (4096, 8193, 0x1_0000, 1),
            (100, 20_000, 0x2_0064, 2),
            (100, 4096, 0x2_0064, 2),
            (100, 3996, 0x2_0064, 1),
            (0, 1, 0x3_0000, 1),
            (1, 8192, 0x1_0000, 2),
            (4096, 8192, 0x1_0200, 3),
        ] {
            let (_, allocated) = place_and_compare(offset, len, address);
            assert_eq!(allocated, copied * PAGE_SIZE, "{offset} {len} {address:#x}");
        }
    }

    #[test]
    fn guest_when_it_writes_has_its_own_copy() {
        let (file, bytes) = file(8192);
        let memories = [(); 2].map(|()| {
            let memory = memory::allocate(MEMORY_MIB, Backing::Memfd).expect("memory");
            place(&file, 0, 8192, &memory, GuestAddress(0x4000)).expect("place");
            memory
        });
        memories[0]
            .write_obj(0u64, GuestAddress(0x5000))
            .expect("write");
        let read =
            |memory: &GuestMemory| memory.read_obj::<u64>(GuestAddress(0x5000)).expect("read");
        assert_eq!(read(&memories[0]), 0);
        let original = u64::from_le_bytes(bytes[4096..4104].try_into().expect("8 bytes"));
        assert_eq!(read(&memories[1]), original);
        let mut now = vec![0; 8192];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut now, 0).expect("read");
        assert!(now == bytes, "the file has changed");
    }

    #[test]
    fn memory_when_shared_has_it_all_in_its_file() {
        let (file, bytes) = file(40_000);
        let memory = memory::allocate(MEMORY_MIB, Backing::Shared).expect("memory");
        place(&file, 100, 20_000, &memory, GuestAddress(0x2_0064)).expect("place");
        let mut there = vec![0; 20_000];
        std::os::unix::fs::FileExt::read_exact_at(memory_file(&memory), &mut there, 0x2_0064)
            .expect("read");
        assert!(there == bytes[100..20_100], "the file has holes");
    }

    #[test]
    fn file_when_it_cannot_be_mapped_is_copied() {
        // procfs has no mappings.
        let file = File::open("/proc/self/cmdline").expect("open");
        let expected = std::fs::read("/proc/self/cmdline").expect("read");
        let memory = memory::allocate(MEMORY_MIB, Backing::Memfd).expect("memory");
        let len = expected.len().min(4096);
        assert!(!map(&file, 0, 4096, &memory, 0x1000).expect("nothing was done"));
        place(&file, 0, len as u64, &memory, GuestAddress(0x1000)).expect("place");
        let mut got = vec![0; len];
        memory
            .read_slice(&mut got, GuestAddress(0x1000))
            .expect("read");
        assert_eq!(got, expected[..len]);
    }

    #[test]
    fn file_when_shorter_than_asked_is_an_error_where_it_is_copied() {
        let (file, _) = file(100);
        let memory = memory::allocate(MEMORY_MIB, Backing::Memfd).expect("memory");
        place(&file, 0, 101, &memory, GuestAddress(0)).expect_err("short");
    }
}
