//! The bzImage container: a setup header, real-mode code that we never run, and a decompressor with
//! the compressed vmlinux as its payload (Linux `Documentation/arch/x86/boot.rst`).

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use bulkhead_devices::GuestMemory;

use super::error::Problem;
use super::payload::{self, Compression};
use super::source::UnpackedSource;
use super::{KernelKind, LoadedKernel, elf};

const SECTOR: u64 = 512;
/// `setup_sects` of 0 means this, for historical reasons.
const DEFAULT_SETUP_SECTORS: u8 = 4;
const BOOT_FLAG: usize = 0x1fe;
/// The second byte of the jump instruction at 0x200 tells where the header ends.
const HEADER_END: usize = 0x201;
const HEADER_MAGIC: usize = 0x202;
/// The zero page has something else from here on, whatever the jump says.
const MAX_HEADER_END: usize = 0x290;
const PROTOCOL_2_08: u16 = 0x208;
const LOADED_HIGH: u8 = 1;
/// Fields up to here exist in protocol 2.08: `payload_length` is the last.
const MIN_HEADER_END: usize = 0x250;

/// The most a payload may unpack to. Kernels with everything built in have some 100 MiB.
const MAX_UNPACKED: u64 = 1 << 30;

/// The setup header of a bzImage, as it goes on to the zero page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    bytes: Vec<u8>,
}

impl SetupHeader {
    /// Where the header lies, in the file and in the zero page.
    pub const OFFSET: usize = 0x1f1;

    /// All of it, from [`OFFSET`](Self::OFFSET) on.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of command line that this kernel takes, without the NUL.
    pub fn cmdline_size(&self) -> u32 {
        self.u32_at(0x238)
    }

    /// The highest address an initrd's last byte may have.
    pub fn initrd_addr_max(&self) -> u32 {
        self.u32_at(0x22c)
    }

    /// Reads and checks the header in the file's first bytes.
    fn parse(start: &[u8]) -> Result<Self, Problem> {
        let jump = *start.get(HEADER_END).ok_or(Problem::Unknown)?;
        let end = (HEADER_MAGIC + usize::from(jump)).min(MAX_HEADER_END);
        if end < MIN_HEADER_END {
            // An old header is short; say that and not that it is damaged.
            let version = start.get(0x206..0x208).ok_or(Problem::Unknown)?;
            let version = u16::from_le_bytes([version[0], version[1]]);
            return Err(if version < PROTOCOL_2_08 {
                Problem::OldProtocol(version)
            } else {
                Problem::SetupHeader("it is too short for its version")
            });
        }
        let bytes = start
            .get(Self::OFFSET..end)
            .ok_or(Problem::CutShort {
                needed: end as u64,
                len: start.len() as u64,
            })?
            .to_vec();
        let header = SetupHeader { bytes };
        if header.version() < PROTOCOL_2_08 {
            return Err(Problem::OldProtocol(header.version()));
        }
        if header.u8_at(0x211) & LOADED_HIGH == 0 {
            return Err(Problem::ZImage);
        }
        Ok(header)
    }

    fn version(&self) -> u16 {
        u16::from_le_bytes([self.u8_at(0x206), self.u8_at(0x207)])
    }

    /// Offset and length of the payload in the file.
    fn payload(&self) -> (u64, u64) {
        let sectors = match self.u8_at(0x1f1) {
            0 => DEFAULT_SETUP_SECTORS,
            sectors => sectors,
        };
        let protected_mode = (u64::from(sectors) + 1) * SECTOR;
        (
            protected_mode + u64::from(self.u32_at(0x248)),
            u64::from(self.u32_at(0x24c)),
        )
    }

    /// A field by its offset in the boot protocol; below [`MIN_HEADER_END`], which was checked.
    fn u8_at(&self, offset: usize) -> u8 {
        self.bytes[offset - Self::OFFSET]
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|byte| self.u8_at(offset + byte)))
    }
}

/// Whether a file that begins with `start` is, or once was, a bzImage.
pub(super) fn is_bzimage(start: &[u8]) -> bool {
    start.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
        && start.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS")
}

/// Unpacks the payload of `file`, which is `len` bytes long and begins with `start`, to guest memory.
pub(super) fn load(
    memory: &GuestMemory,
    mut file: &File,
    len: u64,
    start: &[u8],
) -> Result<LoadedKernel, Problem> {
    let header = SetupHeader::parse(start)?;
    let (offset, payload_len) = header.payload();
    let needed = offset + payload_len; // two 32-bit numbers and a little
    if needed > len {
        return Err(Problem::CutShort { needed, len });
    }
    let mut magic = [0; payload::MAGIC_SIZE];
    if payload_len < magic.len() as u64 {
        return Err(Problem::SetupHeader("it has no payload"));
    }
    file.seek(SeekFrom::Start(offset)).map_err(Problem::Io)?;
    file.read_exact(&mut magic).map_err(Problem::Io)?;
    let compression = Compression::of_payload(&magic)?;

    file.seek(SeekFrom::Start(offset)).map_err(Problem::Io)?;
    let packed = BufReader::with_capacity(64 << 10, file.take(payload_len));
    let reader = compression
        .reader(packed, payload_len)
        .map_err(|source| Problem::Damaged {
            compression,
            source,
        })?;
    let mut source = UnpackedSource::new(reader, compression, MAX_UNPACKED);
    let image = elf::load(&mut source, memory)?;
    source.finish()?;
    Ok(LoadedKernel {
        entry: image.entry,
        end: image.end,
        kind: KernelKind::BzImage(compression),
        setup_header: Some(header),
    })
}
