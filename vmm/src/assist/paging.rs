//! Linear addresses to guest memory, as a supervisor access in 64-bit mode would go
//! (Intel SDM 3A 4.5, 4.6, 4.8).
//!
//! `KVM_TRANSLATE` is not enough: it does not say whether a page may be written, and a signal frame
//! on a copy-on-write stack must fault rather than be written through. Nor does it set the dirty bit.

use std::sync::atomic::{AtomicU64, Ordering};

use bulkhead_devices::GuestMemory;
use kvm_bindings::kvm_sregs;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

const PAGE_SIZE: u64 = 4096;
/// More than the largest XSAVE area needs, so that a bad length cannot make us walk for ever.
const MAX_PAGES: usize = 8;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const CR0_WP: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;
const RFLAGS_AC: u64 = 1 << 18;

/// What is to be done with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Read and written.
    Write,
}

/// Why an access cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The guest gets `#PF` with this error code, and CR2.
    Page {
        /// The linear address that faulted.
        address: u64,
        /// As the processor pushes it.
        error: u32,
    },
    /// The guest gets `#GP(0)` or `#SS(0)`: the address is not canonical.
    NotCanonical,
    /// A page table or the page is not in the guest's RAM.
    NotMemory(u64),
}

/// The paging mode, for supervisor accesses.
#[derive(Debug, Clone, Copy)]
pub struct Paging {
    root: u64,
    levels: u32,
    write_protect: bool,
    /// User pages are out of bounds.
    smap: bool,
}

impl Paging {
    /// Takes the mode out of the registers of a vCPU in 64-bit mode.
    pub fn new(sregs: &kvm_sregs, rflags: u64) -> Self {
        Paging {
            root: sregs.cr3 & FRAME,
            levels: if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 },
            write_protect: sregs.cr0 & CR0_WP != 0,
            smap: sregs.cr4 & CR4_SMAP != 0 && rflags & RFLAGS_AC == 0,
        }
    }

    fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - (12 + 9 * self.levels);
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// Finds the guest-physical address, setting accessed and dirty bits on the way.
    pub fn translate(
        &self,
        memory: &GuestMemory,
        address: u64,
        access: Access,
    ) -> Result<u64, Fault> {
        if !self.is_canonical(address) {
            return Err(Fault::NotCanonical);
        }
        let write = access == Access::Write;
        let fault = |present: bool| Fault::Page {
            address,
            error: u32::from(present) | u32::from(write) << 1,
        };
        let mut table = self.root;
        let (mut writable, mut user) = (true, true);
        let mut level = self.levels;
        loop {
            let shift = 12 + 9 * (level - 1);
            let slot = table + (address >> shift & 511) * 8;
            let entry = load(memory, slot)?;
            if entry & PRESENT == 0 {
                return Err(fault(false));
            }
            writable &= entry & WRITABLE != 0;
            user &= entry & USER != 0;
            let leaf = level == 1 || (level <= 3 && entry & LARGE != 0);
            if leaf && ((write && !writable && self.write_protect) || (user && self.smap)) {
                return Err(fault(true));
            }
            let mark = ACCESSED | if leaf && write { DIRTY } else { 0 };
            if entry & mark != mark {
                set_bits(memory, slot, mark)?;
            }
            if leaf {
                let offset = (1u64 << shift) - 1;
                return Ok(entry & FRAME & !offset | address & offset);
            }
            table = entry & FRAME;
            level -= 1;
        }
    }
}

fn load(memory: &GuestMemory, slot: u64) -> Result<u64, Fault> {
    memory
        .load(GuestAddress(slot), Ordering::Acquire)
        .map_err(|_| Fault::NotMemory(slot))
}

/// Atomically, because another vCPU or its walker may be changing the same entry.
fn set_bits(memory: &GuestMemory, slot: u64, bits: u64) -> Result<(), Fault> {
    let slice = memory
        .get_slice(GuestAddress(slot), 8)
        .map_err(|_| Fault::NotMemory(slot))?;
    let entry = slice
        .get_atomic_ref::<AtomicU64>(0)
        .map_err(|_| Fault::NotMemory(slot))?;
    entry.fetch_or(bits, Ordering::AcqRel);
    slice.bitmap().mark_dirty(0, 8);
    Ok(())
}

/// A run of linear addresses, every page of it translated and allowed.
#[derive(Debug)]
pub struct Window<'a> {
    memory: &'a GuestMemory,
    /// Offset of the first byte in the first page.
    skew: usize,
    len: usize,
    pages: [u64; MAX_PAGES],
}

impl<'a> Window<'a> {
    /// Translates `len` bytes at `address`: all of them, before any is touched.
    pub fn new(
        memory: &'a GuestMemory,
        paging: &Paging,
        address: u64,
        len: usize,
        access: Access,
    ) -> Result<Self, Fault> {
        let skew = (address % PAGE_SIZE) as usize;
        let count = skew.saturating_add(len).div_ceil(PAGE_SIZE as usize);
        let mut pages = [0; MAX_PAGES];
        if count > MAX_PAGES {
            return Err(Fault::NotMemory(address));
        }
        for (i, page) in pages.iter_mut().take(count).enumerate() {
            // The first address as it is: a fault must report it, not its page.
            let at = match i {
                0 => address,
                _ => (address - skew as u64).wrapping_add(i as u64 * PAGE_SIZE),
            };
            let physical = paging.translate(memory, at, access)? & !(PAGE_SIZE - 1);
            if !memory.check_range(GuestAddress(physical), PAGE_SIZE as usize) {
                return Err(Fault::NotMemory(physical));
            }
            *page = physical;
        }
        Ok(Window {
            memory,
            skew,
            len,
            pages,
        })
    }

    /// Copies guest bytes out. `None` if they are not all in the window.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Option<()> {
        let mut done = 0;
        self.pieces(offset, data.len(), |address, len| {
            let part = data.get_mut(done..done + len)?;
            done += len;
            self.memory.read_slice(part, address).ok()
        })
    }

    /// Copies bytes to the guest. `None` if they do not all fit in the window.
    pub fn write(&self, offset: usize, data: &[u8]) -> Option<()> {
        let mut done = 0;
        self.pieces(offset, data.len(), |address, len| {
            let part = data.get(done..done + len)?;
            done += len;
            self.memory.write_slice(part, address).ok()
        })
    }

    /// The guest-physical address of the first byte.
    pub fn physical(&self) -> u64 {
        self.pages[0] + self.skew as u64
    }

    fn pieces(
        &self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(GuestAddress, usize) -> Option<()>,
    ) -> Option<()> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let (mut at, end) = (self.skew + offset, self.skew + offset + len);
        while at < end {
            let within = at % PAGE_SIZE as usize;
            let piece = (end - at).min(PAGE_SIZE as usize - within);
            let page = self.pages.get(at / PAGE_SIZE as usize)?;
            each(GuestAddress(page + within as u64), piece)?;
            at += piece;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u64 = 0x1000;
    const PT: u64 = 0x4000;
    const SIZE: usize = 0x40_0000;

    /// Maps linear 0 to 2 MiB page by page (page N to frame N unless changed), 2 to 4 MiB as a large
    /// page, and the same again at the top of the address space.
    fn memory() -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), SIZE)]).expect("memory");
        let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).expect("put");
        put(ROOT, 0x2007);
        put(ROOT + 511 * 8, 0x2007);
        put(0x2000, 0x3007);
        put(0x2000 + 511 * 8, 0x3007);
        put(0x3000, PT | 7);
        put(0x3000 + 8, 0x20_0083);
        for i in 0..512 {
            put(PT + i * 8, i << 12 | 3);
        }
        memory
    }

    fn paging(cr0: u64, cr4: u64, rflags: u64) -> Paging {
        let sregs = kvm_sregs {
            cr0,
            cr3: ROOT | 0x18, // cache bits are not address bits
            cr4,
            ..Default::default()
        };
        Paging::new(&sregs, rflags)
    }

    fn entry(memory: &GuestMemory, page: u64) -> u64 {
        memory.read_obj(GuestAddress(PT + page * 8)).expect("entry")
    }

    fn set_entry(memory: &GuestMemory, page: u64, value: u64) {
        memory
            .write_obj(value, GuestAddress(PT + page * 8))
            .expect("entry");
    }

    #[test]
    fn small_and_large_pages_translate_and_mark_accessed_and_dirty() {
        let memory = memory();
        let paging = paging(CR0_WP, 0, 0);
        assert_eq!(
            paging.translate(&memory, 0x12_345, Access::Read),
            Ok(0x12_345)
        );
        assert_eq!(entry(&memory, 0x12), 0x12_023);
        assert_eq!(
            paging.translate(&memory, 0x12_345, Access::Write),
            Ok(0x12_345)
        );
        assert_eq!(entry(&memory, 0x12), 0x12_063);
        assert_eq!(
            paging.translate(&memory, 0x3f_f123, Access::Write),
            Ok(0x3f_f123)
        );
        let large: u64 = memory.read_obj(GuestAddress(0x3008)).expect("entry");
        assert_eq!(large, 0x20_00e3);
        assert_eq!(
            paging.translate(&memory, 0xffff_ffff_c000_0001, Access::Read),
            Ok(1)
        );
    }

    #[test]
    fn faults_carry_the_address_and_the_processors_error_code() {
        let memory = memory();
        set_entry(&memory, 5, 0);
        set_entry(&memory, 6, 0x6001);
        set_entry(&memory, 7, 0x7007);
        let protected = paging(CR0_WP, CR4_SMAP, 0);
        let page = |address, error| Err(Fault::Page { address, error });
        assert_eq!(
            protected.translate(&memory, 0x5008, Access::Read),
            page(0x5008, 0)
        );
        assert_eq!(
            protected.translate(&memory, 0x5008, Access::Write),
            page(0x5008, 2)
        );
        assert_eq!(
            protected.translate(&memory, 0x6008, Access::Write),
            page(0x6008, 3)
        );
        assert_eq!(
            protected.translate(&memory, 0x6008, Access::Read),
            Ok(0x6008)
        );
        assert_eq!(
            protected.translate(&memory, 0x7008, Access::Read),
            page(0x7008, 1)
        );
        assert_eq!(
            protected.translate(&memory, 0x7008, Access::Write),
            page(0x7008, 3)
        );
        // STAC lifts SMAP; CR0.WP=0 lifts write protection.
        assert!(
            paging(CR0_WP, CR4_SMAP, RFLAGS_AC)
                .translate(&memory, 0x7008, Access::Write)
                .is_ok()
        );
        assert!(
            paging(0, 0, 0)
                .translate(&memory, 0x6008, Access::Write)
                .is_ok()
        );
    }

    #[test]
    fn addresses_that_are_not_canonical_or_not_memory_are_told_apart() {
        let memory = memory();
        let paging = paging(CR0_WP, 0, 0);
        assert_eq!(
            paging.translate(&memory, 1 << 47, Access::Read),
            Err(Fault::NotCanonical)
        );
        set_entry(&memory, 9, 0x000f_ffff_ffff_f003);
        let far = Window::new(&memory, &paging, 0x9000, 8, Access::Read);
        assert_eq!(
            far.expect_err("far"),
            Fault::NotMemory(0x000f_ffff_ffff_f000)
        );
        let cr3 = Paging {
            root: 0x000f_ffff_ffff_f000,
            ..paging
        };
        assert!(matches!(
            cr3.translate(&memory, 0, Access::Read),
            Err(Fault::NotMemory(_))
        ));
    }

    #[test]
    fn a_window_crosses_pages_that_are_not_neighbours_in_memory() {
        let memory = memory();
        set_entry(&memory, 0x11, 0x8_0003);
        let paging = paging(CR0_WP, 0, 0);
        let window = Window::new(&memory, &paging, 0x1_0ffc, 8, Access::Write).expect("window");
        window.write(0, b"abcdefgh").expect("write");
        let mut bytes = [0; 4];
        memory
            .read_slice(&mut bytes, GuestAddress(0x8_0000))
            .expect("read");
        assert_eq!(&bytes, b"efgh");
        let mut back = [0; 6];
        window.read(2, &mut back).expect("read");
        assert_eq!(&back, b"cdefgh");
        assert_eq!(window.read(3, &mut back), None);
        assert_eq!(window.write(usize::MAX, &back), None);
    }

    #[test]
    fn a_window_is_refused_whole_if_its_second_page_is_missing() {
        let memory = memory();
        set_entry(&memory, 0x21, 0);
        let paging = paging(CR0_WP, 0, 0);
        let fault = Window::new(&memory, &paging, 0x2_0fc0, 576, Access::Write);
        assert_eq!(
            fault.expect_err("missing"),
            Fault::Page {
                address: 0x2_1000,
                error: 2
            }
        );
        let endless = Window::new(&memory, &paging, 0, usize::MAX, Access::Read);
        assert!(endless.is_err());
    }
}
