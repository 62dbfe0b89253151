//! Loads a Linux kernel to guest memory: an ELF vmlinux, or a bzImage, whose payload is unpacked here
//! so that the guest never has to.
//!
//! The file may be anything: every offset, length and address in it is checked before it is used, and
//! what does not lie in the guest's memory above 1 MiB is refused.

mod bzimage;
mod elf;
mod error;
mod lz4;
mod payload;
mod source;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bulkhead_devices::GuestMemory;
use vm_memory::GuestAddress;

pub use bzimage::SetupHeader;
pub use error::{LoadError, Problem};
pub use payload::Compression;

pub(super) use elf::low_memory_end;

use source::FileSource;

/// Enough of a file to tell what it is, and all of a bzImage's setup header.
const START_SIZE: usize = 1024;

/// What kind of file the kernel came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// An ELF executable.
    Vmlinux,
    /// A bzImage with its payload so compressed.
    BzImage(Compression),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Where the boot vCPU starts.
    pub entry: GuestAddress,
    /// The first address behind the kernel.
    pub end: GuestAddress,
    /// What it was loaded from.
    pub kind: KernelKind,
    /// What a bzImage says to its boot loader.
    pub setup_header: Option<SetupHeader>,
}

/// Opens a kernel, so that a wrong name is reported before any VM exists.
pub fn open(path: &Path) -> Result<File, LoadError> {
    let failed = |problem| LoadError::new(path, problem);
    // Asked before it is opened: opening a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(|error| failed(Problem::Io(error)))?;
    if !metadata.is_file() {
        return Err(failed(Problem::NotAFile));
    }
    File::open(path).map_err(|error| failed(Problem::Io(error)))
}

/// Loads the kernel in `file` to `memory`, which must be fresh: what is to be zero is not cleared.
///
/// `path` is for messages. On error, some of the kernel may be in memory.
pub fn load(memory: &GuestMemory, file: &File, path: &Path) -> Result<LoadedKernel, LoadError> {
    load_from(memory, file).map_err(|problem| LoadError::new(path, problem))
}

fn load_from(memory: &GuestMemory, mut file: &File) -> Result<LoadedKernel, Problem> {
    let len = file.metadata().map_err(Problem::Io)?.len();
    let mut start = Vec::with_capacity(START_SIZE);
    file.seek(SeekFrom::Start(0)).map_err(Problem::Io)?;
    file.take(START_SIZE as u64)
        .read_to_end(&mut start)
        .map_err(Problem::Io)?;
    if start.is_empty() {
        return Err(Problem::Empty);
    }
    if start.starts_with(elf::MAGIC) {
        let image = elf::load(&mut FileSource::new(file, len), memory)?;
        return Ok(LoadedKernel {
            entry: image.entry,
            end: image.end,
            kind: KernelKind::Vmlinux,
            setup_header: None,
        });
    }
    if bzimage::is_bzimage(&start) {
        return bzimage::load(memory, file, len, &start);
    }
    Err(what_else(&start))
}

/// What a file that is no kernel seems to be.
fn what_else(start: &[u8]) -> Problem {
    if let Some(compression) = Compression::of(start) {
        return Problem::Packed(compression);
    }
    // The first bytes may end in the middle of a character.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return Problem::Unknown,
    };
    let readable = |c: char| !c.is_control() || c.is_ascii_whitespace() || c == '\x1b';
    if !text.is_empty() && text.chars().all(readable) {
        Problem::Text
    } else {
        Problem::Unknown
    }
}
