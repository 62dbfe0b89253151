//! How a disk's I/O is done without holding up the event loop: by io_uring, or by threads where that
//! is not to be had.

mod pool;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use libc::{c_int, iovec};

use super::disk::BlockError;
use pool::Pool;
use uring::Uring;

/// Which way a disk's I/O takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring if the host gives it, threads otherwise.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// A few threads that make blocking system calls.
    ThreadPool,
}

/// One operation on the disk's file, as the kernel knows it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Io {
    Read {
        iovecs: *const iovec,
        count: u32,
        offset: u64,
    },
    Write {
        iovecs: *const iovec,
        count: u32,
        offset: u64,
        /// On stable storage when it completes.
        durable: bool,
    },
    /// `fdatasync`
    Sync,
    /// `fallocate`
    Allocate { mode: c_int, offset: u64, len: u64 },
}

// SAFETY: the pointers are only followed while the operation is in flight, and for that time whoever
// pushed it keeps what they point to alive and unchanged (see `Backend::push`); memory does not care
// which thread does so.
unsafe impl Send for Io {}

/// The engine of one disk. Operations are told apart by the slot number they are pushed with.
pub(super) enum Backend {
    Uring(Uring),
    Pool(Pool),
}

impl Backend {
    /// Gets ready for up to `depth` operations in flight on `file`.
    pub fn open(
        engine: Engine,
        file: &Arc<File>,
        path: &Path,
        depth: u16,
        name: &str,
    ) -> Result<Self, BlockError> {
        if engine != Engine::ThreadPool {
            match Uring::new(file, depth) {
                Ok(uring) => return Ok(Backend::Uring(uring)),
                Err(error) if engine == Engine::IoUring => {
                    return Err(BlockError::NoIoUring {
                        path: path.to_owned(),
                        error,
                    });
                }
                Err(error) => {
                    log::info!("{name}: no io_uring ({error}), using threads");
                }
            }
        }
        let pool = Pool::new(file, name).map_err(|error| BlockError::Host {
            path: path.to_owned(),
            what: "make an eventfd",
            error,
        })?;
        Ok(Backend::Pool(pool))
    }

    /// Makes sure that the engine runs.
    pub fn start(&mut self) -> io::Result<()> {
        match self {
            Backend::Uring(_) => Ok(()),
            Backend::Pool(pool) => pool.start(),
        }
    }

    /// Readable when completions may have come.
    pub fn event_fd(&self) -> RawFd {
        match self {
            Backend::Uring(uring) => uring.event_fd(),
            Backend::Pool(pool) => pool.event_fd(),
        }
    }

    /// Takes an operation in. It starts at the next [`Self::submit`] at the latest.
    ///
    /// # Safety
    /// Until `slot` comes out of [`Self::next_completion`], or [`Self::drain`] returns, the `iovec`s
    /// and the memory they name stay valid and the `iovec`s unchanged, and `slot` is not pushed
    /// again. At most `depth` operations are in flight at a time.
    pub unsafe fn push(&mut self, slot: u16, io: Io) -> io::Result<()> {
        match self {
            // SAFETY: the caller's promise, handed on.
            Backend::Uring(uring) => unsafe { uring.push(slot, io) },
            // SAFETY: the caller's promise, handed on.
            Backend::Pool(pool) => unsafe { pool.push(slot, io) },
        }
    }

    /// Starts everything that was pushed: one system call at most, however many there are.
    pub fn submit(&mut self) -> io::Result<()> {
        match self {
            Backend::Uring(uring) => uring.submit(),
            Backend::Pool(pool) => pool.submit(),
        }
    }

    /// [`Self::event_fd`] was readable. Call before taking completions.
    pub fn acknowledge_event(&mut self) {
        match self {
            // A ring's descriptor is readable as long as it has completions: nothing to read off.
            Backend::Uring(_) => {}
            Backend::Pool(pool) => pool.acknowledge_event(),
        }
    }

    /// The next operation that is over: its slot, and the bytes moved or the error.
    pub fn next_completion(&mut self) -> Option<(u16, io::Result<u32>)> {
        match self {
            Backend::Uring(uring) => uring.next_completion(),
            Backend::Pool(pool) => pool.next_completion(),
        }
    }

    /// Waits until at least one operation that was submitted is over, if any is in flight.
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Backend::Uring(uring) => uring.wait(),
            Backend::Pool(pool) => {
                pool.wait();
                Ok(())
            }
        }
    }

    /// Cancels or waits for all that was pushed, and forgets its completions. Nothing touches the
    /// memory of any operation after this.
    pub fn drain(&mut self) {
        match self {
            Backend::Uring(uring) => uring.drain(),
            Backend::Pool(pool) => pool.drain(),
        }
    }
}
