//! Unpacks the payload of a bzImage, on the host, where it is many times faster than in the guest.
//!
//! All decompressors stream: they hold their window and no more, and it is freed when the kernel is
//! loaded.

use std::fmt;
use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

use super::elf;
use super::error::Problem;
use super::lz4::Lz4LegacyReader;

/// Bytes of a payload that tell how it is compressed.
pub(super) const MAGIC_SIZE: usize = 6;

/// The kernel's build appends the unpacked size, in 4 bytes, to all but gzip, which ends with it
/// anyway. It belongs to the payload and not to the compressed stream, and tells us nothing: we
/// unpack until the kernel is complete.
const SIZE_SUFFIX: u64 = 4;

/// Dictionary and decoder, in KiB. The kernel's build uses dictionaries of 32 MiB, newer ones of
/// 128 MiB.
const XZ_MEMORY_KIB: u32 = 160 << 10;
/// `zstd -22 --ultra`, as the kernel's build has it, uses 128 MiB.
const ZSTD_WINDOW: u64 = 128 << 20;

/// How a kernel is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `CONFIG_KERNEL_GZIP`
    Gzip,
    /// `CONFIG_KERNEL_XZ`
    Xz,
    /// `CONFIG_KERNEL_LZ4`
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// By the first bytes of a payload or a file; `None` if it is nothing we can unpack.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        let known: [(&[u8], Self); 5] = [
            (elf::MAGIC, Compression::None),
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (Lz4LegacyReader::<&[u8]>::MAGIC, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        known
            .into_iter()
            .find(|(magic, _)| start.starts_with(magic))
            .map(|(_, compression)| compression)
    }

    /// By the first bytes of a bzImage's payload.
    pub(super) fn of_payload(magic: &[u8; MAGIC_SIZE]) -> Result<Self, Problem> {
        Self::of(magic).ok_or(match magic {
            [b'B', b'Z', b'h', ..] => Problem::Unsupported("bzip2"),
            [0x5d, 0, 0, ..] => Problem::Unsupported("lzma"),
            [0x89, b'L', b'Z', b'O', ..] => Problem::Unsupported("lzo"),
            _ => Problem::UnknownPayload,
        })
    }

    /// The unpacked form of the `len` bytes of payload that `packed` has.
    pub(super) fn reader<'a>(
        self,
        packed: impl io::BufRead + 'a,
        len: u64,
    ) -> io::Result<Box<dyn Read + 'a>> {
        let stream_len = match self {
            Compression::None | Compression::Gzip => len,
            _ => len.saturating_sub(SIZE_SUFFIX),
        };
        let packed = packed.take(stream_len);
        Ok(match self {
            Compression::None => Box::new(packed),
            Compression::Gzip => Box::new(GzDecoder::new(packed)),
            Compression::Xz => Box::new(XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB)),
            Compression::Lz4 => Box::new(Lz4LegacyReader::new(packed)?),
            Compression::Zstd => Box::new(
                StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW)
                    .map_err(io::Error::other)?,
            ),
        })
    }
}
