//! Loads an initial RAM disk to the top of the guest's low memory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_devices::GuestMemory;
use vm_memory::{Address, GuestAddress};

use super::kernel::{LoadedKernel, low_memory_end};
use super::place::place;

const PAGE_SIZE: u64 = 4096;
/// What x86-64 kernels say in their setup header, for those that come without one.
const DEFAULT_ADDR_MAX: u32 = 0x7fff_ffff;

/// An initrd that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the initrd {path}: {problem}", path = path.display())]
pub struct InitrdError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: InitrdProblem,
}

/// What is wrong with an initrd file.
#[derive(Debug, thiserror::Error)]
pub enum InitrdProblem {
    /// The host cannot open or read it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, a device, a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Kernel and initrd together are too much.
    #[error(
        "it has {size_mib} MiB, and {room_mib} MiB are free for it; give the guest more memory"
    )]
    DoesNotFit {
        /// Its size, rounded up.
        size_mib: u64,
        /// The room between the kernel and the end of the memory it may use.
        room_mib: u64,
    },
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Where it starts: at a page.
    pub start: GuestAddress,
    /// Its length in bytes, never 0.
    pub size: u64,
}

/// Opens an initrd, so that a wrong name is reported before any VM exists.
pub fn open(path: &Path) -> Result<File, InitrdError> {
    let open = || {
        // Asked before it is opened: opening a pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(InitrdProblem::NotAFile);
        }
        Ok(File::open(path)?)
    };
    open().map_err(|problem| InitrdError {
        path: path.to_owned(),
        problem,
    })
}

/// Loads the initrd in `file` as high in low memory as `kernel`, which was loaded before, allows.
///
/// `path` is for messages.
pub fn load(
    memory: &GuestMemory,
    file: &File,
    path: &Path,
    kernel: &LoadedKernel,
) -> Result<Initrd, InitrdError> {
    load_from(memory, file, kernel).map_err(|problem| InitrdError {
        path: path.to_owned(),
        problem,
    })
}

fn load_from(
    memory: &GuestMemory,
    file: &File,
    kernel: &LoadedKernel,
) -> Result<Initrd, InitrdProblem> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(InitrdProblem::Empty);
    }
    let addr_max = kernel
        .setup_header
        .as_ref()
        .map_or(DEFAULT_ADDR_MAX, |header| header.initrd_addr_max());
    let top = low_memory_end(memory).min(u64::from(addr_max) + 1);
    let bottom = kernel.end.raw_value().next_multiple_of(PAGE_SIZE); // low memory, far from overflow
    let start = top
        .checked_sub(size)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|&start| start >= bottom)
        .ok_or(InitrdProblem::DoesNotFit {
            size_mib: size.div_ceil(1 << 20),
            room_mib: top.saturating_sub(bottom) >> 20,
        })?;
    let start = GuestAddress(start);
    place(file, 0, size, memory, start)?;
    Ok(Initrd { start, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    use crate::boot::kernel::testing::{bzimage, file, memory, put, vmlinux};
    use crate::boot::kernel::{self, Compression};

    fn load_bytes(
        memory: &GuestMemory,
        kernel: &[u8],
        initrd: &[u8],
    ) -> Result<Initrd, InitrdError> {
        let kernel = kernel::load(memory, &file(kernel), Path::new("kernel")).expect("kernel");
        load(memory, &file(initrd), Path::new("/i/initrd"), &kernel)
    }

    #[test]
    fn initrd_when_loaded_lies_at_a_page_at_the_top_of_memory() {
        let memory = memory(32);
        let bytes: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let initrd = load_bytes(&memory, &vmlinux(), &bytes).expect("load");
        assert_eq!(initrd.start, GuestAddress((32 << 20) - 3 * 4096));
        assert_eq!(initrd.size, 10_000);
        let mut loaded = vec![0; 10_000];
        memory.read_slice(&mut loaded, initrd.start).expect("read");
        assert_eq!(loaded, bytes);
    }

    #[test]
    fn initrd_when_the_kernel_sets_a_limit_lies_below_it() {
        let mut image = bzimage(Compression::Gzip, &vmlinux());
        put(&mut image, 0x22c, &0x17f_ffffu32.to_le_bytes());
        let initrd = load_bytes(&memory(32), &image, b"initrd").expect("load");
        assert_eq!(initrd.start, GuestAddress(0x180_0000 - 4096));
    }

    #[test]
    fn initrd_when_it_would_reach_the_kernel_is_refused() {
        // The kernel ends at 16 + 2 MiB and 12 KiB.
        let error =
            load_bytes(&memory(20), &vmlinux(), &vec![1; (2 << 20) - 8192]).expect_err("big");
        assert_eq!(
            error.to_string(),
            "cannot load the initrd /i/initrd: it has 2 MiB, and 1 MiB are free for it; give the \
             guest more memory"
        );
        load_bytes(&memory(20), &vmlinux(), &vec![1; (2 << 20) - 12288]).expect("just fits");
        let huge = load_bytes(&memory(20), &vmlinux(), &vec![1; 21 << 20]);
        assert!(matches!(
            huge.expect_err("huge").problem,
            InitrdProblem::DoesNotFit { .. }
        ));
    }

    #[test]
    fn initrd_when_empty_or_missing_says_so() {
        let error = load_bytes(&memory(32), &vmlinux(), b"").expect_err("empty");
        assert!(matches!(error.problem, InitrdProblem::Empty));
        let error = open(Path::new("/no/such/initrd"))
            .expect_err("missing")
            .to_string();
        assert!(
            error.starts_with("cannot load the initrd /no/such/initrd: No such file"),
            "{error}"
        );
    }
}
