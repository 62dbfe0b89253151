//! How much of a file was read: what of it the host's page cache has, after that was emptied. Both kinds
//! read an image's file through that cache, the VMM by reading it and the host's kernel by mounting it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr;

use rustix::fs::{Advice, fadvise};

/// Bytes of a page: this is x86-64.
const PAGE: usize = 4096;

/// Has the host's page cache forget a file that nobody maps.
pub fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // What is not on the disk yet cannot be forgotten.
    file.sync_data()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// How many bytes of a file are in the host's page cache.
pub fn cached(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(0);
    }
    let mapping = Mapping::of(&file, length)?;
    let mut pages = vec![0_u8; length.div_ceil(PAGE)];
    // SAFETY: the mapping has this length, and the vector a byte for each of its pages.
    if unsafe { libc::mincore(mapping.start, length, pages.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let present = pages.iter().filter(|&&byte| byte & 1 != 0).count();
    Ok((present * PAGE) as u64)
}

struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn of(file: &File, length: usize) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice, which nothing here reads.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `of` mapped, to which nothing refers.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn file_when_just_written_is_in_the_cache_as_far_as_it_goes() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(&[1; 10_000]).expect("write");
        assert_eq!(cached(file.path()).expect("look"), 3 * 4096);
        forget(file.path()).expect("forget");
        assert!(cached(file.path()).expect("look") <= 3 * 4096);
        let empty = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(cached(empty.path()).expect("look"), 0);
    }
}
