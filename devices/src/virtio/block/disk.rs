//! The file or block device behind a virtio disk: opened, checked, locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes in a sector, the unit of every number in the protocol (virtio 1.2 §5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// Why a disk could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It is not there, or may not be read (or written).
    #[error("cannot open disk {}: {error}", path.display())]
    Open {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A directory, socket, terminal, ...
    #[error("disk {} is neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The disk.
        path: PathBuf,
    },
    /// Not one sector long.
    #[error("disk {} is too small: it has {size} bytes, a disk has at least 512", path.display())]
    TooSmall {
        /// The disk.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// The guest could not see all of it. Refused rather than cut off, because what people then
    /// miss is the end of a file system.
    #[error("disk {} has {size} bytes, which is not a multiple of 512; is it a raw image?", path.display())]
    NotWholeSectors {
        /// The disk.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// Another process has it: two guests writing to one disk destroy its file system.
    #[error("disk {} is in use by another process (a disk is shared only if all open it read-only)", path.display())]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// The serial number does not fit its 20 bytes (virtio 1.2 §5.2.6).
    #[error("serial number {serial:?} of disk {} is longer than 20 bytes", path.display())]
    SerialTooLong {
        /// The disk.
        path: PathBuf,
        /// The serial number.
        serial: String,
    },
    /// io_uring was asked for, and this host does not give it.
    #[error("disk {}: io_uring cannot be used here: {error}", path.display())]
    NoIoUring {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Something else of the host's could not be had.
    #[error("disk {}: cannot {what}: {error}", path.display())]
    Host {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// An open disk. Its size is settled when it is opened.
#[derive(Debug)]
pub(super) struct Disk {
    pub file: Arc<File>,
    /// A whole number of sectors.
    pub size: u64,
    pub read_only: bool,
    /// Whether discards and zeroes can be handed to the file system.
    pub punches_holes: bool,
    /// The unit in which the host likes to do I/O, in bytes. At most a page: network file systems
    /// name far more, which is of no use to a guest's `mkfs`.
    pub block_size: u64,
}

impl Disk {
    /// No disk: nothing that is asked of it is within its size.
    pub fn none(read_only: bool) -> Result<Self, BlockError> {
        let path = Path::new("/dev/null");
        let file = File::open(path).map_err(|error| BlockError::Open {
            path: path.to_owned(),
            error,
        })?;
        Ok(Disk {
            file: Arc::new(file),
            size: 0,
            read_only,
            punches_holes: false,
            block_size: SECTOR_SIZE,
        })
    }

    /// Opens the disk and locks it, exclusively if it is writable.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BlockError> {
        let open_error = |error| BlockError::Open {
            path: path.to_owned(),
            error,
        };
        let kind = path.metadata().map_err(open_error)?.file_type();
        // Looked at before it is opened, because opening a FIFO blocks.
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotADisk {
                path: path.to_owned(),
            });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(open_error)?;
        lock(&file, path, read_only)?;

        // Block devices have no length but an end.
        let size = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if size < SECTOR_SIZE {
            return Err(BlockError::TooSmall {
                path: path.to_owned(),
                size,
            });
        }
        if size % SECTOR_SIZE != 0 {
            return Err(BlockError::NotWholeSectors {
                path: path.to_owned(),
                size,
            });
        }
        let block_size = file.metadata().map_err(open_error)?.blksize();
        Ok(Disk {
            punches_holes: !read_only && (kind.is_block_device() || punches_holes(&file, size)),
            size,
            read_only,
            block_size: block_size.clamp(SECTOR_SIZE, 4096),
            file: Arc::new(file),
        })
    }
}

/// An `flock`, which is what `udev` and image tools look at too. It goes when the file is closed,
/// so a killed VMM leaves none behind.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), BlockError> {
    let locked = if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(BlockError::InUse {
            path: path.to_owned(),
        }),
        // Some network and FUSE file systems have no locks. The disk is still usable.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            log::warn!("disk {} cannot be locked: {error}", path.display());
            Ok(())
        }
        Err(TryLockError::Error(error)) => Err(BlockError::Host {
            path: path.to_owned(),
            what: "lock it",
            error,
        }),
    }
}

/// Tries a hole behind the file's end, where it changes nothing.
fn punches_holes(file: &File, size: u64) -> bool {
    let Ok(end) = i64::try_from(size) else {
        return false;
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes no pointers; the descriptor is open.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, end, 4096) == 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn files_that_cannot_be_disks_are_refused_by_name() {
        let cases = [
            (Path::new("/nonexistent").to_owned(), "cannot open disk"),
            (Path::new("/dev/null").to_owned(), "neither a regular file"),
            (Path::new("/tmp").to_owned(), "neither a regular file"),
        ];
        let sizes = [
            (0, "too small"),
            (511, "too small"),
            (513, "not a multiple"),
        ];
        let files: Vec<_> = sizes.map(|(size, what)| (file(size), what)).into();
        let sized = files.iter().map(|(f, what)| (f.path().to_owned(), *what));
        for (path, what) in cases.into_iter().chain(sized) {
            let message = Disk::open(&path, true).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }

    #[test]
    fn disk_when_writable_is_not_shared() {
        let f = file(4096);
        let writer = Disk::open(f.path(), false).unwrap();
        for read_only in [false, true] {
            let error = Disk::open(f.path(), read_only).unwrap_err();
            assert!(matches!(error, BlockError::InUse { .. }), "{error}");
        }
        drop(writer);
        let _reader = Disk::open(f.path(), true).unwrap();
        let _another = Disk::open(f.path(), true).unwrap();
        let error = Disk::open(f.path(), false).unwrap_err();
        assert!(matches!(error, BlockError::InUse { .. }), "{error}");
    }
}
