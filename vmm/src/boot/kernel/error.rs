//! Why a kernel cannot be loaded, in words for the one who named the file.

use std::io;
use std::path::{Path, PathBuf};

use super::Compression;

/// A kernel file that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the kernel {path}: {problem}", path = path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

impl LoadError {
    pub(super) fn new(path: &Path, problem: Problem) -> Self {
        LoadError {
            path: path.to_owned(),
            problem,
        }
    }
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The host cannot open or read it.
    #[error("{0}")]
    Io(io::Error),
    /// A directory, a device, a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// The file is shorter than its headers say.
    #[error(
        "the file is cut short: it should have at least {needed} bytes and has {len}; copy it again"
    )]
    CutShort {
        /// Bytes it should have.
        needed: u64,
        /// Bytes it has.
        len: u64,
    },
    /// A script, a configuration file, an error page.
    #[error("it is a text file; give an ELF vmlinux or a bzImage")]
    Text,
    /// A vmlinux.gz or the like.
    #[error("it is a {0} file; unpack it first")]
    Packed(Compression),
    /// Nothing we know.
    #[error("it is neither an ELF vmlinux nor a bzImage")]
    Unknown,
    /// ELFCLASS32 or big-endian.
    #[error("it is a 32-bit or big-endian ELF file; only 64-bit x86 kernels can be booted")]
    NotElf64,
    /// Another architecture's kernel.
    #[error("it is built for {}; only x86-64 kernels can be booted", machine_name(*.0))]
    Machine(u16),
    /// An object file, a kernel module, a shared library, a core dump.
    #[error("it is an ELF file but not an executable (type {0}); give the kernel's vmlinux itself")]
    NotExecutable(u16),
    /// Headers that make no sense.
    #[error("its ELF headers are damaged: {0}")]
    Elf(&'static str),
    /// A segment that would overwrite what the kernel is started with.
    #[error("it asks to be loaded at {0:#x}; a kernel lies at 1 MiB or above")]
    TooLow(u64),
    /// A segment beyond the guest's low memory.
    #[error(
        "it needs memory up to {needed_mib} MiB and the guest has {memory_mib} MiB below 3 GiB; give it more"
    )]
    DoesNotFit {
        /// What the kernel needs, in MiB from address 0.
        needed_mib: u64,
        /// What there is, in MiB.
        memory_mib: u64,
    },
    /// A bzImage older than what carries a 64-bit payload we can find.
    #[error("it speaks boot protocol {}.{:02}; 2.08 (Linux 2.6.26) or later is needed", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// A zImage, loaded below 1 MiB.
    #[error("it is a zImage; build a bzImage or give its vmlinux")]
    ZImage,
    /// A bzImage whose header contradicts itself.
    #[error("its setup header is damaged: {0}")]
    SetupHeader(&'static str),
    /// A payload we cannot unpack.
    #[error(
        "its payload is compressed with {0}, which is not supported; build it with gzip, xz, lz4 or \
         zstd, or give its vmlinux"
    )]
    Unsupported(&'static str),
    /// A payload of no known kind.
    #[error("its payload is compressed in an unknown way; give its vmlinux")]
    UnknownPayload,
    /// The decompressor gave up.
    #[error("its {compression} payload is damaged: {source}")]
    Damaged {
        /// How the payload is compressed.
        compression: Compression,
        /// What the decompressor says.
        source: io::Error,
    },
    /// The payload ends before its ELF headers say.
    #[error("its payload ends at {0} unpacked bytes, before the kernel does")]
    PayloadTooShort(u64),
    /// A decompression bomb, or no kernel.
    #[error("its payload unpacks to more than {0} MiB; that is no kernel")]
    PayloadTooLong(u64),
}

/// Names for the machines whose kernels people have at hand.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        8 => "MIPS".into(),
        21 => "64-bit PowerPC".into(),
        22 => "s390".into(),
        40 => "32-bit Arm".into(),
        183 => "64-bit Arm".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("ELF machine {other}"),
    }
}
