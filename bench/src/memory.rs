//! Memory: how fast it is copied and read, and how fast pages come that are touched for the first time.

use std::hint::black_box;
use std::io;
use std::ptr;
use std::time::Duration;

use crate::timed::{Done, for_about};

/// Bytes of each of the two buffers. More than most processors' second-level caches; what a guest has to
/// fill first, on a host that emulates its kernel, is what bounds it.
pub const BUFFER: usize = 16 << 20;
/// The kernel's large pages.
const LARGE: usize = 2 << 20;
/// The kernel's small ones.
const SMALL: usize = 4096;
/// The most memory that is touched for the first time.
const MOST_TOUCHED: usize = 64 << 20;

/// Memory of our own, zero at first, at a large page's boundary.
struct Mapping {
    start: *mut u8,
    offset: usize,
    length: usize,
}

impl Mapping {
    fn new(length: usize, advice: libc::c_int) -> Result<Self, String> {
        let failed = |what| format!("cannot {what} memory: {}", io::Error::last_os_error());
        let whole = length + LARGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new memory at no particular address touches none that there is.
        let start = unsafe { libc::mmap(ptr::null_mut(), whole, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(failed("get"));
        }
        // SAFETY: the memory just mapped. A kernel without large pages says no, and that is all right.
        unsafe { libc::madvise(start, whole, advice) };
        let start = start.cast::<u8>();
        Ok(Mapping {
            offset: start.align_offset(LARGE),
            start,
            length,
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are mapped from there on, zeros are bytes, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(self.offset), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, to which no reference is left.
        unsafe { libc::munmap(self.start.cast(), self.length + LARGE) };
    }
}

/// Bytes copied from one buffer to the other.
pub fn copy(budget: Duration) -> Result<Done, String> {
    let mut from = Mapping::new(BUFFER, libc::MADV_HUGEPAGE)?;
    let mut to = Mapping::new(BUFFER, libc::MADV_HUGEPAGE)?;
    let (from, to) = (from.bytes(), to.bytes());
    touch(from);
    touch(to);
    for_about(budget, || {
        to.copy_from_slice(black_box(from));
        black_box(&mut *to);
        Ok(BUFFER as u64)
    })
}

/// Bytes read from one buffer.
pub fn read(budget: Duration) -> Result<Done, String> {
    let mut buffer = Mapping::new(BUFFER, libc::MADV_HUGEPAGE)?;
    let bytes = buffer.bytes();
    touch(bytes);
    for_about(budget, || {
        black_box(sum(black_box(bytes)));
        Ok(BUFFER as u64)
    })
}

/// Small pages touched for the first time: each is a fault, which the kernel answers with a page of
/// zeros.
pub fn first_touch(budget: Duration) -> Result<Done, String> {
    let mut buffer = Mapping::new(MOST_TOUCHED, libc::MADV_NOHUGEPAGE)?;
    let mut pages = buffer.bytes().chunks_exact_mut(SMALL);
    for_about(budget, || {
        let mut touched = 0;
        for page in pages.by_ref().take(16) {
            page[0] = 1;
            touched += 1;
        }
        Ok(touched)
    })
}

fn touch(bytes: &mut [u8]) {
    for page in bytes.chunks_mut(SMALL) {
        page[0] = 1;
    }
}

fn sum(bytes: &[u8]) -> u64 {
    // Lanes that do not wait for each other, which the compiler makes vectors of.
    let mut lanes = [0_u64; 8];
    for chunk in bytes.chunks_exact(64) {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(word);
            *lane = lane.wrapping_add(u64::from_ne_bytes(value));
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_when_measured_once_is_copied_read_and_touched() {
        assert_eq!(copy(Duration::ZERO).expect("copied").count, BUFFER as u64);
        assert_eq!(read(Duration::ZERO).expect("read").count, BUFFER as u64);
        assert_eq!(first_touch(Duration::ZERO).expect("touched").count, 16);
        let all = first_touch(Duration::from_secs(3600)).expect("touched");
        assert_eq!(all.count, (MOST_TOUCHED / SMALL) as u64);
    }

    #[test]
    fn sum_when_of_words_wraps() {
        let mut bytes = [0; 128];
        bytes[0] = 3;
        bytes[72..80].fill(0xff);
        assert_eq!(sum(&bytes), 2);
    }
}
