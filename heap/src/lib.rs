//! The allocator of a command that lives for milliseconds.
//!
//! The C library's asks the kernel for a mapping for every other kind of block, and gives it back when
//! the last one is freed: a third of all the system calls of a container's start. Here small blocks are
//! cut from chunks that are kept, one size class after the other in lists of their own; large ones are
//! the C library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

/// The largest block that is cut from a chunk, in bytes.
const LARGEST: usize = 32 << 10;
/// What is asked of the kernel at a time, in bytes.
const CHUNK: usize = 256 << 10;
/// Blocks are multiples of this, and aligned to it.
const GRAIN: usize = 16;
/// Four classes for each doubling of the size, up to [`LARGEST`], after the first four grains.
const CLASSES: usize = 4 + 4 * 9;

/// The allocator. There is one of it in a program.
#[derive(Debug)]
pub struct Heap {
    lock: Mutex<()>,
    blocks: UnsafeCell<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    /// For each class the first free block. A free block begins with the address of the next.
    free: [*mut u8; CLASSES],
    /// What is left of the latest chunk.
    next: *mut u8,
    left: usize,
}

// SAFETY: the blocks are touched only by who holds the lock.
unsafe impl Sync for Heap {}

impl Heap {
    /// An empty one.
    pub const fn new() -> Self {
        Heap {
            lock: Mutex::new(()),
            blocks: UnsafeCell::new(Blocks {
                free: [ptr::null_mut(); CLASSES],
                next: ptr::null_mut(),
                left: 0,
            }),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Blocks) -> T) -> T {
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the lock is held, and nothing in here allocates: there is no other reference.
        act(unsafe { &mut *self.blocks.get() })
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// The class of a block with this layout, unless it is too large or aligned too far.
fn class(layout: Layout) -> Option<usize> {
    if layout.align() > GRAIN || layout.size() > LARGEST {
        return None;
    }
    let grains = layout.size().div_ceil(GRAIN).max(1);
    if grains <= 4 {
        return Some(grains - 1);
    }
    // Of 4 * 2^n + 1 to 8 * 2^n grains: steps of 2^n.
    let n = (grains - 1).ilog2() - 2;
    let step = (grains - 1) >> n;
    Some(4 * n as usize + step)
}

/// The size of the blocks of a class, in bytes.
fn size(class: usize) -> usize {
    if class < 4 {
        return (class + 1) * GRAIN;
    }
    let (n, step) = ((class - 4) / 4, class % 4 + 4);
    ((step + 1) << n) * GRAIN
}

impl Blocks {
    fn take(&mut self, class: usize) -> Option<NonNull<u8>> {
        let free = self.free.get_mut(class)?;
        if let Some(block) = NonNull::new(*free) {
            // SAFETY: a free block of this class is at least a grain long, aligned to that, nobody else's, and begins
            // with an address that was written there when it was freed.
            *free = unsafe { block.cast::<*mut u8>().read() };
            return Some(block);
        }
        let size = size(class);
        if self.left < size {
            // What is left of the old chunk is lost: less than a block.
            self.next = map(CHUNK)?.as_ptr();
            self.left = CHUNK;
        }
        let block = self.next;
        // SAFETY: the chunk has at least `size` bytes left behind this.
        self.next = unsafe { block.add(size) };
        self.left -= size;
        NonNull::new(block)
    }

    /// # Safety
    /// The block was taken of this class, and nobody uses it any more.
    unsafe fn give_back(&mut self, class: usize, block: *mut u8) {
        if let Some(free) = self.free.get_mut(class) {
            // SAFETY: the block is ours from here on, at least a grain long and aligned to that.
            unsafe { block.cast::<*mut u8>().write(*free) };
            *free = block;
        }
    }
}

/// Memory of the kernel's, zeroed.
fn map(bytes: usize) -> Option<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(mapped.cast())
}

// SAFETY: blocks of a class are as large as the class and aligned to a grain, which is at least what their layouts ask for;
// each is given to one caller until that gives it back. All others are the system's, and a block's layout tells which it is.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some(class) => {
                let block = self.with(|blocks| blocks.take(class));
                block.map_or(ptr::null_mut(), NonNull::as_ptr)
            }
            // SAFETY: the caller's promises are the same.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class(layout) {
            // SAFETY: the caller promises that the block is of `alloc` with this layout, and so of this class, and unused.
            Some(class) => self.with(|blocks| unsafe { blocks.give_back(class, block) }),
            // SAFETY: the caller's promises are the same, and `alloc` has asked the system for this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class(layout).is_none() {
            // SAFETY: the caller's promises are the same.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promises are the same.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: a new block of at least this size.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size, rounded up to the alignment, is no overflow.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (class(layout), class(new)) {
            (Some(old), Some(new)) if old == new => block,
            // SAFETY: the caller's promises are the same, and both are the system's.
            (None, None) => unsafe { System.realloc(block, layout, new_size) },
            _ => {
                // SAFETY: the caller promises that the size is not zero.
                let moved = unsafe { self.alloc(new) };
                if !moved.is_null() {
                    let length = layout.size().min(new_size);
                    // SAFETY: both are at least so long, and different blocks.
                    unsafe { ptr::copy_nonoverlapping(block, moved, length) };
                    // SAFETY: the caller's promise; its block is not used any more.
                    unsafe { self.dealloc(block, layout) };
                }
                moved
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("layout")
    }

    #[test]
    fn class_when_its_size_is_taken_back_is_the_smallest_that_fits() {
        let mut last = 0;
        for bytes in 1..=LARGEST {
            let class = class(layout(bytes)).expect("small");
            assert!(size(class) >= bytes && class < CLASSES, "{bytes}");
            assert!(class == 0 || size(class - 1) < bytes, "{bytes}");
            assert!(class == last || class == last + 1, "{bytes}");
            last = class;
        }
        assert_eq!((last, size(last)), (CLASSES - 1, LARGEST));
        assert_eq!(class(layout(LARGEST + 1)), None);
        assert_eq!(class(Layout::from_size_align(8, 64).expect("layout")), None);
    }

    #[test]
    fn blocks_when_many_threads_take_and_give_them_are_nobody_elses() {
        let heap = Heap::new();
        let work = |seed: usize| {
            let mut kept: Vec<(*mut u8, Layout, u8)> = Vec::new();
            let check = |(block, layout, mark): (*mut u8, Layout, u8)| {
                // SAFETY: a block of ours with this layout, all of which was written.
                let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
                assert!(bytes.iter().all(|&byte| byte == mark));
            };
            for n in 0..20_000usize {
                let random = n.wrapping_mul(0x9e37_79b9).wrapping_add(seed * 7919) >> 3;
                if random % 3 == 0 && !kept.is_empty() {
                    let (block, layout, mark) = kept.swap_remove(random % kept.len());
                    check((block, layout, mark));
                    // SAFETY: taken with this layout, and forgotten here.
                    unsafe { heap.dealloc(block, layout) };
                    continue;
                }
                let wanted = layout(1 + random % 3000 * (1 + random % 20));
                let mark = (random % 251) as u8;
                // SAFETY: the size is not zero.
                let block = unsafe { heap.alloc(wanted) };
                assert!(!block.is_null() && block.addr() % 8 == 0);
                // SAFETY: as long as asked for.
                unsafe { block.write_bytes(mark, wanted.size()) };
                kept.push((block, wanted, mark));
                if let Some(last) = kept.last_mut().filter(|_| random % 5 == 0) {
                    let new = layout(last.1.size() * 2);
                    // SAFETY: taken with this layout; the new size is not zero.
                    let moved = unsafe { heap.realloc(last.0, last.1, new.size()) };
                    check((moved, last.1, mark));
                    // SAFETY: as long as asked for.
                    unsafe { moved.write_bytes(mark, new.size()) };
                    *last = (moved, new, mark);
                }
                if kept.len() > 500 {
                    let (block, layout, mark) = kept.swap_remove(0);
                    check((block, layout, mark));
                    // SAFETY: taken with this layout, and forgotten here.
                    unsafe { heap.dealloc(block, layout) };
                }
            }
            for (block, layout, mark) in kept {
                check((block, layout, mark));
                // SAFETY: taken with this layout, and forgotten here.
                unsafe { heap.dealloc(block, layout) };
            }
        };
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let work = &work;
                scope.spawn(move || work(seed));
            }
        });
    }

    #[test]
    fn block_when_asked_for_in_zeros_is_zero_even_if_it_was_used() {
        let heap = Heap::new();
        for _ in 0..2 {
            // SAFETY: the size is not zero.
            let block = unsafe { heap.alloc_zeroed(layout(100)) };
            // SAFETY: as long as asked for, and written by the allocator.
            let bytes = unsafe { std::slice::from_raw_parts_mut(block, 100) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(7);
            // SAFETY: taken with this layout, and not used any more.
            unsafe { heap.dealloc(block, layout(100)) };
        }
    }
}
