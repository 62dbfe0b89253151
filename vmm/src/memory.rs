//! Guest memory: one memfd, mapped shared, around the hole below 4 GiB where devices live.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use bulkhead_devices::GuestMemory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

use crate::boot::layout::{MMIO_HOLE_END, MMIO_HOLE_START};

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file behind it could not be made.
    #[error("cannot get {mib} MiB of guest memory from the host: {source}")]
    Allocate {
        /// What was asked for, in MiB.
        mib: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The file could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// KVM would not take it.
    #[error("KVM refuses the guest's memory: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
}

/// Maps `mib` MiB of guest memory. Nothing is touched yet: pages come as the guest uses them.
pub fn allocate(mib: u64) -> Result<GuestMemory, MemoryError> {
    let size = mib << 20;
    let failed = |source| MemoryError::Allocate { mib, source };
    // A memfd and not anonymous memory, because a second process (a vhost-user back end, a snapshot)
    // can then share it, and because holes punched in it give memory back to the host.
    // SAFETY: the name is a valid C string; a non-negative result is a descriptor that we then own.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        File::from_raw_fd(fd)
    };
    file.set_len(size).map_err(failed)?;

    let mut ranges = Vec::with_capacity(2);
    let mut offset = 0;
    for (start, len) in ranges_around_the_hole(size) {
        let file = file.try_clone().map_err(failed)?;
        ranges.push((
            GuestAddress(start),
            len as usize,
            Some(FileOffset::new(file, offset)),
        ));
        offset += len;
    }
    let memory = GuestMemory::from_ranges_with_files(ranges)?;
    for region in memory.iter() {
        advise(region);
    }
    Ok(memory)
}

/// Guest start and length in bytes of each region of `size` bytes of memory.
fn ranges_around_the_hole(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(MMIO_HOLE_START);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((MMIO_HOLE_END, size - low));
    }
    ranges
}

/// Huge pages make both loading the kernel and the guest's own faults cheaper; a core dump of the VMM
/// must not contain the guest. Both are hints: a host that knows neither is as good.
fn advise(region: &vm_memory::GuestRegionMmap<()>) {
    let Ok(start) = region.get_host_address(MemoryRegionAddress(0)) else {
        return;
    };
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: the range is one whole mapping that `region` owns, and neither advice changes what
        // is in it.
        unsafe { libc::madvise(start.cast(), region.len() as usize, advice) };
    }
}

/// Gives `memory` to the VM, a slot for each region.
///
/// The caller keeps `memory` mapped for as long as `vm` lives.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let Ok(host) = region.get_host_address(MemoryRegionAddress(0)) else {
            continue; // an empty region: there is none
        };
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the slot covers exactly one mapping, which outlives the VM by the contract above.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    Ok(())
}

/// Bytes of RAM this host has, to tell a mistyped size from a real one.
pub fn host_memory() -> Option<u64> {
    // SAFETY: sysconf has no preconditions.
    let (pages, page_size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    u64::try_from(pages)
        .ok()?
        .checked_mul(u64::try_from(page_size).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ranges_when_memory_reaches_the_hole_go_on_above_it() {
        assert_eq!(ranges_around_the_hole(GIB), [(0, GIB)]);
        assert_eq!(ranges_around_the_hole(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(
            ranges_around_the_hole(5 * GIB),
            [(0, 3 * GIB), (4 * GIB, 2 * GIB)]
        );
    }

    #[test]
    fn memory_above_the_hole_is_its_own_and_the_hole_is_not_memory() {
        let memory = allocate(3 * 1024 + 2).expect("memory");
        memory.write_obj(1u64, GuestAddress(0)).expect("low");
        memory.write_obj(2u64, GuestAddress(4 * GIB)).expect("high");
        let low: u64 = memory.read_obj(GuestAddress(0)).expect("low");
        assert_eq!(low, 1);
        let last = GuestAddress(4 * GIB + (2 << 20) - 8);
        memory.write_obj(3u64, last).expect("last");
        assert!(memory.write_obj(0u8, GuestAddress(3 * GIB)).is_err());
        assert!(
            memory
                .write_obj(0u8, GuestAddress(4 * GIB + (2 << 20)))
                .is_err()
        );
    }
}
