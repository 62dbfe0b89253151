//! Guest memory: one memfd, or anonymous, around the hole below 4 GiB where devices live.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

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

/// What is behind guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Memory of this process alone.
    Anonymous,
    /// A memfd. Parts of it may be covered by what was loaded into memory.
    Memfd,
    /// A memfd that a second process (a vhost-user back end) maps as well: all of memory is in it, and
    /// no process can take any of it away.
    Shared,
}

impl Backing {
    /// The one for which this host has huge pages: with them the guest's first touch of each 2 MiB is
    /// one fault and not 512, and its addresses are translated in one step less ever after. A memfd if
    /// that makes no difference. Few hosts give huge pages to memfds as they are installed.
    pub fn preferred() -> Self {
        let chosen = |setting| {
            let text = std::fs::read_to_string(format!("{HUGE_PAGES}/{setting}"));
            chosen(&text.unwrap_or_default()).map(str::to_owned)
        };
        Self::preferred_for(
            chosen("enabled").as_deref(),
            chosen("shmem_enabled").as_deref(),
        )
    }

    fn preferred_for(anonymous: Option<&str>, memfd: Option<&str>) -> Self {
        match (anonymous, memfd) {
            (Some("always" | "madvise"), None | Some("never" | "deny")) => Backing::Anonymous,
            _ => Backing::Memfd,
        }
    }
}

/// Where a host says what it gives huge pages to (Linux `admin-guide/mm/transhuge.rst`).
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";

/// The word in brackets.
fn chosen(setting: &str) -> Option<&str> {
    setting
        .split_once('[')?
        .1
        .split_once(']')
        .map(|(word, _)| word)
}

/// Maps `mib` MiB of guest memory. Nothing is touched yet: pages come as the guest uses them.
pub fn allocate(mib: u64, backing: Backing) -> Result<GuestMemory, MemoryError> {
    let size = mib << 20;
    let ranges = ranges_around_the_hole(size);
    let memory = match backing {
        Backing::Anonymous => {
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(start, len)| (GuestAddress(start), len as usize))
                .collect();
            let _room = align_next_mapping(ranges[0].1);
            GuestMemory::from_ranges(&ranges)?
        }
        Backing::Memfd | Backing::Shared => {
            let failed = |source| MemoryError::Allocate { mib, source };
            let file = memfd(size, backing).map_err(failed)?;
            let mut offset = 0;
            let mut with_files = Vec::with_capacity(ranges.len());
            for (start, len) in ranges {
                let file = file.try_clone().map_err(failed)?;
                let at = Some(FileOffset::new(file, offset));
                with_files.push((GuestAddress(start), len as usize, at));
                offset += len;
            }
            GuestMemory::from_ranges_with_files(with_files)?
        }
    };
    for region in memory.iter() {
        advise(region);
    }
    Ok(memory)
}

/// Address space that is taken so that the next mapping starts where a huge page can.
struct Filler {
    start: *mut libc::c_void,
    len: usize,
}

impl Drop for Filler {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made for this, which nobody knows of.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// Sees to it that a mapping of `len` bytes, made while the result lives, is aligned as the guest's
/// physical addresses are: otherwise KVM cannot map a huge page of the host's as one of the guest's.
/// Newer kernels do this by themselves. Where it fails, small pages work, too.
fn align_next_mapping(len: usize) -> Option<Filler> {
    let map = |len| {
        // SAFETY: a new mapping, in a place that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (start != libc::MAP_FAILED).then_some(Filler { start, len })
    };
    // The kernel looks for room from the top down, and will find this place again, or the one below
    // what is taken of it.
    let found = map(len)?.start as usize;
    match found % HUGE_PAGE {
        0 => None,
        beyond => map(beyond),
    }
}

/// Bytes in a huge page of x86-64.
const HUGE_PAGE: usize = 2 << 20;

fn memfd(size: u64, backing: Backing) -> io::Result<File> {
    let flags = match backing {
        Backing::Shared => libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        _ => libc::MFD_CLOEXEC,
    };
    // SAFETY: the name is a valid C string; a non-negative result is a descriptor that we then own.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest-memory".as_ptr(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(size)?;
    if backing == Backing::Shared {
        // SAFETY: takes no pointer; the descriptor is ours.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) };
        if sealed < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

/// What holds of memory that is shared: it keeps its size, so that nobody can pull it from under another.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Whether `memory` is [`Backing::Shared`]: then all that is in it must be in its file.
pub fn is_shared(memory: &GuestMemory) -> bool {
    memory.iter().any(|region| {
        region.file_offset().is_some_and(|file| {
            // SAFETY: takes no pointer; the descriptor is open as long as the region is there.
            let seals = unsafe { libc::fcntl(file.file().as_raw_fd(), libc::F_GET_SEALS) };
            seals >= 0 && seals & SEALS == SEALS
        })
    })
}

/// Guest start and length in bytes of each region of `size` bytes of memory.
pub(crate) fn ranges_around_the_hole(size: u64) -> Vec<(u64, u64)> {
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
    fn backing_is_the_one_with_huge_pages_and_else_one_that_can_be_shared() {
        use Backing::{Anonymous, Memfd};
        for (anonymous, memfd, backing) in [
            (
                "always [madvise] never",
                "always advise [never] deny force",
                Anonymous,
            ),
            (
                "[always] madvise never",
                "always advise never [deny] force",
                Anonymous,
            ),
            (
                "always [madvise] never",
                "always [advise] never deny force",
                Memfd,
            ),
            (
                "[always] madvise never",
                "always [within_size] never",
                Memfd,
            ),
            (
                "always madvise [never]",
                "always advise [never] deny force",
                Memfd,
            ),
            ("[always] madvise never", "", Anonymous),
            ("", "", Memfd),
        ] {
            let preferred = Backing::preferred_for(chosen(anonymous), chosen(memfd));
            assert_eq!(preferred, backing, "{anonymous} / {memfd}");
        }
    }

    #[test]
    fn anonymous_memory_is_aligned_for_huge_pages_and_private() {
        let host = |memory: &GuestMemory| {
            let region = memory.iter().next().expect("region");
            assert!(region.file_offset().is_none());
            region
                .get_host_address(MemoryRegionAddress(0))
                .expect("host") as usize
        };
        for mib in [64, 3 * 1024 + 64] {
            // Other tests' threads map, too, and may do so in between.
            let aligned = (0..100).any(|_| {
                let memory = allocate(mib, Backing::Anonymous).expect("memory");
                host(&memory) % HUGE_PAGE == 0
            });
            assert!(aligned, "{mib} MiB");
        }
    }

    #[test]
    fn shared_memory_keeps_its_size_and_is_told_from_the_rest() {
        for (backing, shared) in [
            (Backing::Anonymous, false),
            (Backing::Memfd, false),
            (Backing::Shared, true),
        ] {
            let memory = allocate(1, backing).expect("memory");
            assert_eq!(is_shared(&memory), shared, "{backing:?}");
            let region = memory.iter().next().expect("region");
            if let Some(file) = region.file_offset() {
                assert_eq!(file.file().set_len(0).is_err(), shared);
            }
        }
    }

    #[test]
    fn memory_above_the_hole_is_its_own_and_the_hole_is_not_memory() {
        let memory = allocate(3 * 1024 + 2, Backing::Memfd).expect("memory");
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
