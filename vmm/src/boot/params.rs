//! The zero page, `struct boot_params`: what a boot loader tells the kernel (Linux
//! `Documentation/arch/x86/zero-page.rst` and `boot.rst`).

use bulkhead_devices::GuestMemory;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::cmdline::{Cmdline, CmdlineError};
use super::initrd::Initrd;
use super::kernel::{LoadedKernel, SetupHeader};
use super::layout::{CMDLINE, EBDA_START, HIMEM_START, RNG_SEED, ZERO_PAGE};

const SIZE: usize = 4096;
/// Offsets of the fields we fill.
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;

/// A boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// The protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// The version of the protocol that we speak to a bare vmlinux.
const PROTOCOL_2_12: u16 = 0x20c;
const DEFAULT_ALIGNMENT: u32 = 0x100_0000;

/// `SETUP_RNG_SEED`: a piece of setup data with randomness for the kernel's generator.
const RNG_SEED_TYPE: u32 = 9;
/// Bytes of randomness: as many as the kernel's generator has of state.
const RNG_SEED_LEN: usize = 32;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Why the zero page could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// This kernel takes less command line than others.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The host has no randomness to give.
    #[error("cannot get a seed for the guest's random numbers: {0}")]
    Seed(std::io::Error),
    /// Guest memory is smaller than base memory.
    #[error("no room for the boot parameters: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Writes the zero page and the command line.
pub fn write(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    cmdline: &Cmdline,
    initrd: Option<Initrd>,
) -> Result<(), ParamsError> {
    let len = cmdline.as_str().len();
    let mut page = match &kernel.setup_header {
        Some(header) => {
            let max = header.cmdline_size() as usize;
            if len > max {
                return Err(CmdlineError::TooLong { len, max }.into());
            }
            Page::with_header(header)
        }
        None => Page::with_own_header(),
    };
    page.put_u8(TYPE_OF_LOADER, UNDEFINED_LOADER);
    page.put_u32(CMD_LINE_PTR, CMDLINE.raw_value() as u32);
    if let Some(initrd) = initrd {
        page.put_u64_split(RAMDISK_IMAGE, EXT_RAMDISK_IMAGE, initrd.start.raw_value());
        page.put_u64_split(RAMDISK_SIZE, EXT_RAMDISK_SIZE, initrd.size);
    }
    page.put_e820(&memory_map(memory));
    page.put_u64(SETUP_DATA, RNG_SEED.raw_value());
    memory.write_slice(&rng_seed()?, RNG_SEED)?;

    cmdline.write(memory)?;
    Ok(memory.write_slice(&page.bytes, ZERO_PAGE)?)
}

/// Setup data (`struct setup_data`, the last and only one) with a seed from the host. With it a guest
/// has random numbers from its first instruction, and need not gather them at boot.
fn rng_seed() -> Result<Vec<u8>, ParamsError> {
    let mut seed = [0; RNG_SEED_LEN];
    // SAFETY: the buffer is valid for its length, and borrowed for the call. As few as 256 bytes
    // always come whole (getrandom(2)).
    if unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) } < 0 {
        return Err(ParamsError::Seed(std::io::Error::last_os_error()));
    }
    let mut data = Vec::with_capacity(16 + seed.len());
    data.extend(0u64.to_le_bytes()); // no next one
    data.extend(RNG_SEED_TYPE.to_le_bytes());
    data.extend((seed.len() as u32).to_le_bytes());
    data.extend(seed);
    Ok(data)
}

/// One entry of the e820 map: start, bytes, kind.
type Range = (u64, u64, u32);

/// RAM as the guest may use it: all of it but the MP table and the PC's legacy hole.
fn memory_map(memory: &GuestMemory) -> Vec<Range> {
    let mut map = Vec::with_capacity(4);
    for region in memory.iter() {
        let (start, len) = (region.start_addr().raw_value(), region.len());
        if start == 0 && len > HIMEM_START.raw_value() {
            let (ebda, himem) = (EBDA_START.raw_value(), HIMEM_START.raw_value());
            map.push((0, ebda, E820_RAM));
            map.push((ebda, himem - ebda, E820_RESERVED));
            map.push((himem, len - himem, E820_RAM));
        } else {
            map.push((start, len, E820_RAM));
        }
    }
    map
}

/// The zero page in the making.
struct Page {
    bytes: [u8; SIZE],
}

impl Page {
    /// For a bzImage, whose setup header comes with it.
    fn with_header(header: &SetupHeader) -> Self {
        let mut page = Page { bytes: [0; SIZE] };
        let header = header.as_bytes();
        let start = SetupHeader::OFFSET;
        page.bytes[start..start + header.len()].copy_from_slice(header);
        page
    }

    /// For a vmlinux, which has none.
    fn with_own_header() -> Self {
        let mut page = Page { bytes: [0; SIZE] };
        page.put_u16(BOOT_FLAG, 0xaa55);
        page.bytes[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        page.put_u16(VERSION, PROTOCOL_2_12);
        page.put_u8(LOADFLAGS, LOADED_HIGH);
        page.put_u32(KERNEL_ALIGNMENT, DEFAULT_ALIGNMENT);
        page.put_u32(CMDLINE_SIZE, Cmdline::MAX_LEN as u32);
        page
    }

    fn put_u8(&mut self, offset: usize, value: u8) {
        self.bytes[offset] = value;
    }

    fn put_u16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Low and high halves of a field that was 32 bits wide once.
    fn put_u64_split(&mut self, low: usize, high: usize, value: u64) {
        self.put_u32(low, value as u32);
        self.put_u32(high, (value >> 32) as u32);
    }

    fn put_e820(&mut self, map: &[Range]) {
        self.put_u8(E820_ENTRIES, map.len() as u8); // RAM has at most two regions
        for (entry, (start, len, kind)) in map.iter().enumerate() {
            let at = E820_TABLE + entry * E820_ENTRY_SIZE;
            self.bytes[at..at + 8].copy_from_slice(&start.to_le_bytes());
            self.bytes[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
            self.put_u32(at + 16, *kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::boot::kernel::testing::{bzimage, file, memory, put, vmlinux};
    use crate::boot::kernel::{self, Compression};

    fn load(memory: &GuestMemory, bytes: &[u8]) -> LoadedKernel {
        kernel::load(memory, &file(bytes), Path::new("kernel")).expect("load")
    }

    fn cmdline(text: &str) -> Cmdline {
        let mut cmdline = Cmdline::new();
        cmdline.push(text).expect("command line");
        cmdline
    }

    fn field<T: vm_memory::ByteValued>(memory: &GuestMemory, offset: u64) -> T {
        memory
            .read_obj(GuestAddress(ZERO_PAGE.raw_value() + offset))
            .expect("field")
    }

    fn e820(memory: &GuestMemory) -> Vec<Range> {
        (0..u64::from(field::<u8>(memory, 0x1e8)))
            .map(|entry| 0x2d0 + entry * 20)
            .map(|at| {
                (
                    field(memory, at),
                    field(memory, at + 8),
                    field(memory, at + 16),
                )
            })
            .collect()
    }

    #[test]
    fn zero_page_for_a_vmlinux_has_a_header_of_its_own() {
        let memory = memory(64);
        let kernel = load(&memory, &vmlinux());
        let initrd = Initrd {
            start: GuestAddress(0x300_0000),
            size: 0x1234,
        };
        write(&memory, &kernel, &cmdline("quiet"), Some(initrd)).expect("write");
        assert_eq!(field::<u16>(&memory, 0x1fe), 0xaa55);
        assert_eq!(field::<[u8; 4]>(&memory, 0x202), *b"HdrS");
        assert_eq!(field::<u8>(&memory, 0x210), 0xff);
        assert_eq!(field::<u32>(&memory, 0x218), 0x300_0000);
        assert_eq!(field::<u32>(&memory, 0x21c), 0x1234);
        assert_eq!(field::<u64>(&memory, 0xc0), 0, "high halves");
        assert_eq!(field::<u32>(&memory, 0x228), 0x2_0000);
        let text: [u8; 6] = memory.read_obj(GuestAddress(0x2_0000)).expect("text");
        assert_eq!(&text, b"quiet\0");
    }

    #[test]
    fn zero_page_for_a_bzimage_keeps_what_its_header_says() {
        let memory = memory(64);
        let kernel = load(&memory, &bzimage(Compression::Lz4, &vmlinux()));
        write(&memory, &kernel, &cmdline("quiet"), None).expect("write");
        assert_eq!(field::<u16>(&memory, 0x206), 0x20f);
        assert_eq!(field::<u32>(&memory, 0x260), 0x40_0000, "init_size");
        assert_eq!(field::<u8>(&memory, 0x210), 0xff);
        assert_eq!(field::<u32>(&memory, 0x228), 0x2_0000);
        assert_eq!(field::<u32>(&memory, 0x218), 0);
    }

    #[test]
    fn seed_is_setup_data_and_never_twice_the_same() {
        let seed = || {
            let memory = memory(64);
            let kernel = load(&memory, &vmlinux());
            write(&memory, &kernel, &cmdline("quiet"), None).expect("write");
            let at: u64 = field(&memory, SETUP_DATA as u64);
            let mut data = [0u8; 16 + RNG_SEED_LEN];
            memory
                .read_slice(&mut data, GuestAddress(at))
                .expect("setup data");
            data
        };
        let (first, second) = (seed(), seed());
        assert_eq!(first[..8], [0; 8]);
        assert_eq!(first[8..16], [9, 0, 0, 0, 32, 0, 0, 0]);
        assert_ne!(first[16..], second[16..]);
    }

    #[test]
    fn command_line_when_longer_than_the_kernel_takes_is_refused() {
        let memory = memory(64);
        let mut image = bzimage(Compression::None, &vmlinux());
        put(&mut image, 0x238, &255u32.to_le_bytes());
        let kernel = load(&memory, &image);
        write(&memory, &kernel, &cmdline(&"a".repeat(255)), None).expect("just fits");
        let error =
            write(&memory, &kernel, &cmdline(&"a".repeat(256)), None).expect_err("too long");
        assert!(
            error
                .to_string()
                .contains("256 bytes long, and the kernel takes 255")
        );
    }

    #[test]
    fn memory_map_leaves_out_the_mp_table_and_the_legacy_hole() {
        let memory = memory(64);
        let kernel = load(&memory, &vmlinux());
        write(&memory, &kernel, &cmdline(""), None).expect("write");
        assert_eq!(
            e820(&memory),
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x6_0400, 2),
                (0x10_0000, 63 << 20, 1)
            ]
        );
    }

    #[test]
    fn memory_map_when_ram_goes_on_above_4_gib_says_so() {
        let high = GuestAddress(1 << 32);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20), (high, 1 << 20)])
            .expect("memory");
        assert_eq!(
            memory_map(&memory)[2..],
            [(0x10_0000, 1 << 20, 1), (1 << 32, 1 << 20, 1)]
        );
    }
}
