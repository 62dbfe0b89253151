//! `working-set`: the pages that the first VM of a snapshot had written to by the time it was at work. Those after it have
//! their own of each before they run, all at once: that is a page fault and a way out of the guest less for each. Pages
//! that are only read come as they are touched: the host maps those around them at the same time.
//!
//! It is a hint and nothing else. A VM goes on without it, and any content of it is as good for the guest as any other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bulkhead_devices::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::WORKING_SET_FILE;

/// The only version that is read and written.
const FORMAT: u32 = 1;
/// No such file is larger, in bytes.
const MAX_SIZE: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// The most pages: 32 MiB. Beyond that it is no start any more but work. As many runs fit in [`MAX_SIZE`].
const MAX_PAGES: u64 = 8192;
/// Pages that are looked at at once.
const CHUNK: u64 = 512;

/// Linux `admin-guide/mm/pagemap.rst`: a page of a file, or of shared memory.
const OF_FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// A run of pages: the number of the first in the memory's file, and how many there are.
type Run = (u64, u64);

/// Which pages a VM has written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    format: u32,
    written: Vec<Run>,
}

impl WorkingSet {
    /// What this process has written to of `memory`, which was mapped by [`super::memory::restore`].
    pub fn of(memory: &GuestMemory) -> io::Result<Self> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut written: Vec<Run> = Vec::new();
        let mut left = MAX_PAGES;
        let mut base = 0;
        let mut entries = [0; CHUNK as usize * 8];
        for region in memory.iter() {
            let host = host_address(region)? / PAGE;
            let pages = region.len() / PAGE;
            for at in (0..pages).step_by(CHUNK as usize) {
                let count = (pages - at).min(CHUNK);
                let entries = &mut entries[..count as usize * 8]; // at most CHUNK
                pagemap.read_exact_at(entries, (host + at) * 8)?;
                for (page, entry) in (base + at..).zip(entries.chunks_exact(8)) {
                    let entry = entry
                        .iter()
                        .rfold(0, |all, byte| all << 8 | u64::from(*byte));
                    if left == 0 || entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
                        continue;
                    }
                    left -= 1;
                    match written.last_mut() {
                        Some((first, count)) if page == *first + *count => *count += 1,
                        _ => written.push((page, 1)),
                    }
                }
            }
            base += pages;
        }
        Ok(WorkingSet {
            format: FORMAT,
            written,
        })
    }

    /// Keeps it beside the snapshot in `folder`, in the place of one that may be there.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        // Siblings may do the same at the same time.
        let new = folder.join(format!("{WORKING_SET_FILE}.{}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&serde_json::to_vec(self)?))
            .and_then(|()| fs::rename(&new, folder.join(WORKING_SET_FILE)));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// That of the snapshot in `folder`, whose memory this is. None if there is none yet.
    pub fn read(folder: &Path, memory: &GuestMemory) -> io::Result<Option<Self>> {
        let file = match File::open(folder.join(WORKING_SET_FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut text)?;
        let bytes: u64 = memory.iter().map(|region| region.len()).sum();
        Self::parse(&text, bytes / PAGE).map(Some)
    }

    /// Reads the text of one, for memory of `pages`.
    pub fn parse(text: &[u8], pages: u64) -> io::Result<Self> {
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let set: WorkingSet = serde_json::from_slice(text)?;
        if set.format != FORMAT {
            return Err(damaged("it has another format"));
        }
        let mut end = 0;
        for (first, count) in &set.written {
            let is_good = *first >= end && *count > 0;
            end = first.saturating_add(*count);
            if !is_good || end > pages {
                return Err(damaged("there can be no such pages"));
            }
        }
        Ok(set)
    }

    /// Gives this process pages of its own for it, as far as the host does that.
    pub fn prefetch(&self, memory: &GuestMemory) {
        let mut left = MAX_PAGES;
        for (first, count) in &self.written {
            let count = left.min(*count);
            populate(memory, *first, count);
            left -= count;
        }
    }
}

fn host_address(region: &impl GuestMemoryRegion) -> io::Result<u64> {
    let address = region.get_host_address(MemoryRegionAddress(0));
    address.map(|it| it as u64).map_err(io::Error::other)
}

/// A run can reach from one region into the next.
fn populate(memory: &GuestMemory, first: u64, count: u64) {
    let (from, to) = (first * PAGE, (first + count) * PAGE);
    let mut base = 0;
    for region in memory.iter() {
        let (start, end) = (from.max(base), to.min(base + region.len()));
        if let Ok(host) = host_address(region)
            && start < end
        {
            let at = (host + start - base) as *mut libc::c_void;
            let len = (end - start) as usize;
            // SAFETY: the range is within the region's mapping, and what is in it stays as it is. A host that does not
            // know this advice refuses it, and then pages come as they are touched.
            unsafe { libc::madvise(at, len, libc::MADV_POPULATE_WRITE) };
        }
        base += region.len();
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::restore;
    use super::super::{MEMORY_FILE, memory};
    use super::*;
    use crate::memory::{Backing, allocate};
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 1;

    fn page(number: u64) -> GuestAddress {
        GuestAddress(number * PAGE)
    }

    /// A snapshot's memory: page 1 has a word, and there is nothing else.
    fn snapshot() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        let memory = allocate(MIB, Backing::Memfd).expect("memory");
        memory.write_obj(7u64, page(1)).expect("write");
        memory::write(&memory, folder.path()).expect("a snapshot");
        folder
    }

    fn mapped(folder: &Path) -> GuestMemory {
        restore(folder, MIB, &[], false, Backing::Memfd).expect("memory")
    }

    #[test]
    fn pages_that_one_has_written_are_there_in_the_next_with_what_was_in_them() {
        let folder = snapshot();
        let first = mapped(folder.path());
        assert_eq!(WorkingSet::read(folder.path(), &first).expect("read"), None);
        for number in [1, 9, 10] {
            first.write_obj(1u8, page(number)).expect("write");
        }
        assert_eq!(first.read_obj::<u8>(page(40)).expect("read"), 0);
        let set = WorkingSet::of(&first).expect("look");
        assert_eq!(set.written, [(1, 1), (9, 2)]);
        set.write(folder.path()).expect("keep");
        // Those that come at the same time do the same.
        set.write(folder.path()).expect("keep again");
        let files = fs::read_dir(folder.path()).expect("list").count();
        assert_eq!(files, 2, "{MEMORY_FILE} and {WORKING_SET_FILE}");

        let next = mapped(folder.path());
        let kept = WorkingSet::read(folder.path(), &next).expect("read");
        let kept = kept.expect("there is one");
        assert_eq!(kept, set);
        let none: [Run; 0] = [];
        assert_eq!(WorkingSet::of(&next).expect("look").written, none);
        kept.prefetch(&next);
        assert_eq!(WorkingSet::of(&next).expect("look").written, set.written);
        assert_eq!(next.read_obj::<u64>(page(1)).expect("read"), 7);
        assert_eq!(next.read_obj::<u8>(page(9)).expect("read"), 0);
    }

    #[test]
    fn pages_when_there_can_be_none_are_refused() {
        let parse = |format: u32, runs: &str| {
            let text = format!("{{\"format\": {format}, \"written\": {runs}}}");
            WorkingSet::parse(text.as_bytes(), 256)
        };
        parse(1, "[[0, 1], [1, 255]]").expect("all there are");
        for runs in [
            "[[0, 0]]",
            "[[256, 1]]",
            "[[1, 256]]",
            "[[5, 2], [6, 1]]",
            "[[18446744073709551615, 2]]",
            "[[-1, 1]]",
            "[[1]]",
        ] {
            parse(1, runs).expect_err(runs);
        }
        let other = parse(2, "[]").expect_err("another format").to_string();
        assert!(other.contains("another format"), "{other}");
    }
}
