//! I/O by io_uring.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};

use super::Io;

/// Kernel threads the ring may have blocked in the file at a time. The kernel's own default grows
/// with the machine, and every VM has its own.
const MAX_WORKERS: u32 = 8;

/// Every operation that [`Uring::push`] may ask for.
const OPCODES: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// A ring of its own for each disk.
///
/// The event loop watches the ring's descriptor and not an eventfd: it is readable exactly while
/// there are completions, so what completes within `submit` and is taken right after it causes
/// neither a wake-up nor anything to read.
///
/// The file is not registered with the ring, though that would save a few nanoseconds a request: a
/// ring is torn down some time after its process is gone, a registered file stays open until then,
/// and so would the disk stay locked.
pub(in super::super) struct Uring {
    ring: IoUring,
    file: Arc<File>,
    in_flight: usize,
}

impl Uring {
    /// Fails if the kernel has no io_uring, or refuses it, or lacks an operation.
    pub fn new(file: &Arc<File>, depth: u16) -> io::Result<Self> {
        // The completion ring has twice as many entries as this, so it cannot overflow.
        let ring = IoUring::new(depth.into())?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        if !OPCODES.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Only a limit: kernels before 5.15 do not have it.
        let _ = submitter.register_iowq_max_workers(&mut [MAX_WORKERS, 0]);
        Ok(Uring {
            ring,
            file: Arc::clone(file),
            in_flight: 0,
        })
    }

    pub fn event_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// # Safety
    /// As for [`super::Backend::push`].
    pub unsafe fn push(&mut self, slot: u16, io: Io) -> io::Result<()> {
        // SAFETY: the caller vouches for the `iovec`s.
        let entry = unsafe { entry(Fd(self.file.as_raw_fd()), io) }.user_data(slot.into());
        // SAFETY: the entry's file is open as long as the ring, and the caller keeps what it points to alive until
        // it completes.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("more operations in flight than the ring is made for"))?;
        self.in_flight += 1;
        Ok(())
    }

    pub fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn next_completion(&mut self) -> Option<(u16, io::Result<u32>)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        let result = u32::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
        // What was put in by `push`.
        Some((entry.user_data() as u16, result))
    }

    pub fn wait(&mut self) -> io::Result<()> {
        while self.in_flight > 0 && self.ring.completion().is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn drain(&mut self) {
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                // Waiting on a ring that is ours and in order has no other way to fail. If it does,
                // whether the kernel still writes to the guest cannot be known, and going on would
                // be worse than stopping.
                Err(error) => {
                    log::error!("io_uring cannot be waited for: {error}");
                    std::process::abort();
                }
            }
            while self.next_completion().is_some() {}
        }
    }
}

/// Whether trying again helps: interrupted, or the kernel is short of something for now.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

/// # Safety
/// `iovecs` of a transfer points to at least `count` of them.
unsafe fn entry(file: Fd, io: Io) -> squeue::Entry {
    match io {
        Io::Read {
            iovecs,
            count: 1,
            offset,
        } => {
            // SAFETY: there is one, says the caller.
            let one = unsafe { *iovecs };
            opcode::Read::new(file, one.iov_base.cast(), clamp(one.iov_len))
                .offset(offset)
                .build()
        }
        Io::Read {
            iovecs,
            count,
            offset,
        } => opcode::Readv::new(file, iovecs, count)
            .offset(offset)
            .build(),
        Io::Write {
            iovecs,
            count: 1,
            offset,
            durable,
        } => {
            // SAFETY: there is one, says the caller.
            let one = unsafe { *iovecs };
            opcode::Write::new(file, one.iov_base.cast(), clamp(one.iov_len))
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build()
        }
        Io::Write {
            iovecs,
            count,
            offset,
            durable,
        } => opcode::Writev::new(file, iovecs, count)
            .offset(offset)
            .rw_flags(write_flags(durable))
            .build(),
        Io::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Io::Allocate { mode, offset, len } => opcode::Fallocate::new(file, len)
            .offset(offset)
            .mode(mode)
            .build(),
    }
}

/// A length for the kernel's 32 bits. What is cut off is a short transfer like any other.
fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}
