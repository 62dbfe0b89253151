//! I/O by a few threads that block.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use libc::c_int;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Io;

const THREADS: usize = 4;
/// They do nothing but system calls.
const STACK_SIZE: usize = 128 << 10;

type Completion = (u16, io::Result<u32>);

/// Started at the disk's first use, so that a disk nobody uses costs no threads.
pub(in super::super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    name: String,
    /// Pushed and not yet submitted.
    pushed: Vec<(u16, Io)>,
    /// Completions taken from the threads, or made on the spot.
    taken: Vec<Completion>,
    reads_cached: bool,
}

struct Shared {
    file: Arc<File>,
    event: EventFd,
    work: Mutex<Work>,
    /// There are jobs, or the threads should stop.
    wake: Condvar,
    /// No thread is busy.
    idle: Condvar,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<(u16, Io)>,
    done: Vec<Completion>,
    busy: usize,
    stop: bool,
}

impl Pool {
    pub fn new(file: &Arc<File>, name: &str) -> io::Result<Self> {
        Ok(Pool {
            shared: Arc::new(Shared {
                file: Arc::clone(file),
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                work: Mutex::default(),
                wake: Condvar::new(),
                idle: Condvar::new(),
            }),
            threads: Vec::new(),
            name: name.to_owned(),
            pushed: Vec::new(),
            taken: Vec::new(),
            reads_cached: true,
        })
    }

    pub fn start(&mut self) -> io::Result<()> {
        while self.threads.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new()
                .name(format!("{}-io", self.name))
                .stack_size(STACK_SIZE)
                .spawn(move || shared.run())?;
            self.threads.push(thread);
        }
        Ok(())
    }

    pub fn event_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// # Safety
    /// As for [`super::Backend::push`].
    pub unsafe fn push(&mut self, slot: u16, io: Io) -> io::Result<()> {
        if self.reads_cached && matches!(io, Io::Read { .. }) {
            // What the page cache has is copied here and now: handing it to a thread costs several
            // times as much.
            // SAFETY: the caller's promise, handed on.
            let result = unsafe { io.run(&self.shared.file, libc::RWF_NOWAIT) };
            match result.as_ref().map_err(io::Error::raw_os_error) {
                Ok(_) => {
                    self.taken.push((slot, result));
                    return Ok(());
                }
                Err(Some(libc::EAGAIN)) => {}
                // Not with this file system, or a real error: a thread will find out.
                Err(_) => self.reads_cached = false,
            }
        }
        self.pushed.push((slot, io));
        Ok(())
    }

    pub fn submit(&mut self) -> io::Result<()> {
        let count = self.pushed.len();
        if count == 0 {
            return Ok(());
        }
        self.shared.lock().jobs.extend(self.pushed.drain(..));
        if count >= THREADS {
            self.shared.wake.notify_all();
        } else {
            (0..count).for_each(|_| self.shared.wake.notify_one());
        }
        Ok(())
    }

    pub fn acknowledge_event(&mut self) {
        // Nothing to read means that the completions were taken already.
        let _ = self.shared.event.read();
    }

    pub fn next_completion(&mut self) -> Option<Completion> {
        if self.taken.is_empty() {
            mem::swap(&mut self.taken, &mut self.shared.lock().done);
        }
        self.taken.pop()
    }

    pub fn wait(&mut self) {
        if self.taken.is_empty() {
            // All of it: who waits has nothing better to do.
            drop(self.shared.wait_for_idle(self.shared.lock()));
        }
    }

    pub fn drain(&mut self) {
        self.pushed.clear();
        let mut work = self.shared.lock();
        work.jobs.clear();
        let mut work = self.shared.wait_for_idle(work);
        work.done.clear();
        drop(work);
        self.taken.clear();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.drain();
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // Its only other end would be a panic, which has been reported by then.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_idle<'a>(&'a self, work: MutexGuard<'a, Work>) -> MutexGuard<'a, Work> {
        let mut work = work;
        while work.busy > 0 || !work.jobs.is_empty() {
            work = self.idle.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        work
    }

    fn run(&self) {
        let mut work = self.lock();
        while !work.stop {
            let Some((slot, io)) = work.jobs.pop_front() else {
                work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            work.busy += 1;
            drop(work);
            // SAFETY: whoever pushed the job keeps its memory alive until it is in `done`, or until
            // `drain` has seen `busy` at 0.
            let result = unsafe { io.run(&self.file, 0) };
            work = self.lock();
            work.busy -= 1;
            work.done.push((slot, result));
            // Who takes completions takes all, so only the first of them needs announcing.
            if work.done.len() == 1 {
                // Fails only when the counter is full, and then it is readable.
                let _ = self.event.write(1);
            }
            if work.busy == 0 {
                self.idle.notify_all();
            }
        }
    }
}

impl Io {
    /// Does the operation, blocking.
    ///
    /// # Safety
    /// The `iovec`s and the memory they name are valid.
    unsafe fn run(self, file: &File, read_flags: c_int) -> io::Result<u32> {
        let fd = file.as_raw_fd();
        let result = match self {
            Io::Read {
                iovecs,
                count,
                offset,
            } => {
                // SAFETY: the caller vouches for the `iovec`s.
                unsafe { libc::preadv2(fd, iovecs, int(count)?, int(offset)?, read_flags) }
            }
            Io::Write {
                iovecs,
                count,
                offset,
                durable,
            } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: the caller vouches for the `iovec`s.
                unsafe { libc::pwritev2(fd, iovecs, int(count)?, int(offset)?, flags) }
            }
            // SAFETY: takes no pointers.
            Io::Sync => unsafe { libc::fdatasync(fd) as isize },
            Io::Allocate { mode, offset, len } => {
                // SAFETY: takes no pointers.
                unsafe { libc::fallocate(fd, mode, int(offset)?, int(len)?) as isize }
            }
        };
        u32::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// A number for the kernel's signed types; one that is too large is as invalid here as there.
fn int<T, U: TryFrom<T>>(number: T) -> io::Result<U> {
    U::try_from(number).map_err(|_| io::ErrorKind::InvalidInput.into())
}
