//! Small kernels for tests: files of the right form with next to nothing in them.

use std::fs::File;
use std::io::{Seek, Write};

use bulkhead_devices::GuestMemory;
use vm_memory::GuestAddress;

use super::Compression;

pub(crate) const ENTRY: u64 = 0x100_0000;

/// Guest memory of `mib` MiB.
pub(crate) fn memory(mib: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), mib << 20)]).expect("memory")
}

/// A file with these bytes and no name.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(bytes).expect("write");
    file.rewind().expect("rewind");
    file
}

/// A segment of an ELF file.
#[derive(Clone)]
pub(crate) struct Segment {
    pub address: u64,
    pub data: Vec<u8>,
    pub memory_size: u64,
}

/// What the small vmlinux is made of: text, and data with zeroes behind it.
pub(crate) fn segments() -> Vec<Segment> {
    let text: Vec<u8> = (0..5000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    vec![
        Segment {
            address: ENTRY,
            memory_size: text.len() as u64,
            data: text,
        },
        Segment {
            address: ENTRY + 0x20_0000,
            data: b"data of the kernel".to_vec(),
            memory_size: 0x3000,
        },
    ]
}

/// A small vmlinux.
pub(crate) fn vmlinux() -> Vec<u8> {
    elf(ENTRY, &segments())
}

/// An ELF file with a note segment, which is not to be loaded, before these.
pub(crate) fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2u16.to_le_bytes());
    put(&mut file, 18, &62u16.to_le_bytes());
    put(&mut file, 24, &entry.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &(segments.len() as u16 + 1).to_le_bytes());

    let mut offset = 0x1000;
    file.extend(program_header(4, 0, 0xffff_ffff_ffff_0000, 64, 64));
    for segment in segments {
        let size = segment.data.len() as u64;
        file.extend(program_header(
            1,
            offset,
            segment.address,
            size,
            segment.memory_size,
        ));
        offset += size.next_multiple_of(0x1000);
    }
    for segment in segments {
        file.resize(file.len().next_multiple_of(0x1000), 0xee);
        file.extend(&segment.data);
    }
    file
}

fn program_header(kind: u32, offset: u64, address: u64, size: u64, memory_size: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(56);
    header.extend(kind.to_le_bytes());
    header.extend([0; 4]);
    for field in [
        offset,
        0xffff_ffff_8000_0000 | address,
        address,
        size,
        memory_size,
        0x1000,
    ] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// A bzImage with this vmlinux, packed as the kernel's build does it.
pub(crate) fn bzimage(compression: Compression, vmlinux: &[u8]) -> Vec<u8> {
    let mut payload = pack(compression, vmlinux);
    if !matches!(compression, Compression::None | Compression::Gzip) {
        payload.extend((vmlinux.len() as u32).to_le_bytes());
    }
    bzimage_of(&payload)
}

/// A bzImage with this payload.
pub(crate) fn bzimage_of(payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: usize = 3;
    const PAYLOAD_OFFSET: usize = 100;
    let mut file = vec![0; (SETUP_SECTORS + 1) * 512 + PAYLOAD_OFFSET];
    file[0x1f1] = SETUP_SECTORS as u8;
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20fu16.to_le_bytes());
    file[0x211] = 1;
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    put(&mut file, 0x24c, &(payload.len() as u32).to_le_bytes());
    put(&mut file, 0x260, &0x40_0000u32.to_le_bytes());
    file.extend(payload);
    file.extend(b"the decompressor's own data follows");
    file
}

/// `data` compressed, without the size that the kernel's build appends.
pub(crate) fn pack(compression: Compression, data: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => data.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(data).expect("pack");
            encoder.finish().expect("pack")
        }
        Compression::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(1);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("pack");
            encoder.write_all(data).expect("pack");
            encoder.finish().expect("pack")
        }
        Compression::Lz4 => {
            let mut packed = b"\x02\x21\x4c\x18".to_vec();
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}

pub(crate) fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
