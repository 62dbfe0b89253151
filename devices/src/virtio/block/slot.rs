//! A request on its way: what is left of it to do, whatever the kernel answers.

use std::io;

use libc::{c_int, iovec};
use vm_memory::GuestAddress;

use super::engine::Io;
use super::request::{Extent, Reply, Status};

const PUNCH: c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
const ALLOCATE: c_int = libc::FALLOC_FL_KEEP_SIZE;

/// How often in a row the kernel may say "again" before that counts as an error.
const MAX_RETRIES: u8 = 16;

/// What a request in flight is, as far as its end differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// How a request stands after one of its operations.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// [`Slot::next_io`] says how it goes on.
    More,
    Done(Status),
}

/// Room for one request in flight. Reused, with its vectors, from request to request.
#[derive(Debug)]
pub(super) struct Slot {
    pub reply: Reply,
    pub kind: Kind,
    /// Bytes of a transfer that are done.
    pub done: u32,
    /// Bytes of a transfer.
    pub len: u32,
    offset: u64,
    durable: bool,
    /// A transfer's pieces of guest memory; those before `first` are done.
    pub iovecs: Vec<iovec>,
    first: usize,
    /// What the other kinds do, one after the other; those before `next_step` are done.
    steps: Vec<Io>,
    next_step: usize,
    /// The file system refused one way to zero a range and the other is being tried.
    second_way: bool,
    retries: u8,
}

// SAFETY: the pointers in `iovecs` and `steps` are into guest memory and into the slot's own vector.
// Both stay where they are whichever thread holds the slot.
unsafe impl Send for Slot {}

impl Slot {
    pub fn new() -> Self {
        Slot {
            reply: Reply {
                head: 0,
                status: GuestAddress(0),
                room: 0,
            },
            kind: Kind::Flush,
            done: 0,
            len: 0,
            offset: 0,
            durable: false,
            iovecs: Vec::new(),
            first: 0,
            steps: Vec::new(),
            next_step: 0,
            second_way: false,
            retries: 0,
        }
    }

    /// Takes a new request in.
    pub fn begin(&mut self, kind: Kind, reply: Reply) {
        self.reply = reply;
        self.kind = kind;
        self.done = 0;
        self.len = 0;
        self.offset = 0;
        self.durable = false;
        self.iovecs.clear();
        self.first = 0;
        self.steps.clear();
        self.next_step = 0;
        self.second_way = false;
        self.retries = 0;
    }

    /// Makes it a transfer of `len` bytes, more than 0, between `iovecs` and the disk at `offset`.
    pub fn transfer(&mut self, offset: u64, len: u32, durable: bool) {
        self.offset = offset;
        self.len = len;
        self.durable = durable;
    }

    /// Makes it a flush.
    pub fn sync(&mut self) {
        self.steps.push(Io::Sync);
    }

    /// Makes it a discard or write-zeroes.
    pub fn deallocate(&mut self, extents: &[Extent], durable: bool) {
        for extent in extents {
            self.steps.push(Io::Allocate {
                mode: if extent.unmap || self.kind == Kind::Discard {
                    PUNCH
                } else {
                    ZERO
                },
                offset: extent.offset,
                len: extent.len,
            });
        }
        if durable {
            self.steps.push(Io::Sync);
        }
    }

    /// The operation to do next, `None` if nothing is left.
    pub fn next_io(&self) -> Option<Io> {
        let rest = &self.iovecs[self.first..];
        let offset = self.offset + u64::from(self.done);
        match self.kind {
            Kind::Read | Kind::Write if self.done == self.len => None,
            Kind::Read => Some(Io::Read {
                iovecs: rest.as_ptr(),
                count: rest.len() as u32,
                offset,
            }),
            Kind::Write => Some(Io::Write {
                iovecs: rest.as_ptr(),
                count: rest.len() as u32,
                offset,
                durable: self.durable,
            }),
            Kind::Flush | Kind::Discard | Kind::WriteZeroes => {
                self.steps.get(self.next_step).copied()
            }
        }
    }

    /// Takes in the result of the operation that [`Self::next_io`] named.
    pub fn advance(&mut self, result: io::Result<u32>) -> Progress {
        let again = match result {
            Ok(n) => {
                self.retries = 0;
                match self.kind {
                    Kind::Read | Kind::Write => self.moved(n),
                    _ => {
                        self.next_step += 1;
                        true
                    }
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {
                    self.retries += 1;
                    self.retries < MAX_RETRIES
                }
                Some(libc::EOPNOTSUPP) => self.other_way(),
                _ => false,
            },
        };
        if !again {
            Progress::Done(Status::IoError)
        } else if self.next_io().is_some() {
            Progress::More
        } else {
            Progress::Done(Status::Ok)
        }
    }

    /// `n` more bytes are done. `false` if the file ended early: somebody cut it off.
    fn moved(&mut self, n: u32) -> bool {
        // The kernel does not do more than it was asked to.
        let n = n.min(self.len - self.done);
        self.done += n;
        let mut left = n as usize;
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            if left < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(left).cast();
                iovec.iov_len -= left;
                break;
            }
            left -= iovec.iov_len;
            self.first += 1;
        }
        n > 0
    }

    /// The file system (or block device) cannot do the current step: finds what has the same effect.
    /// `false` if there is nothing.
    fn other_way(&mut self) -> bool {
        let Some(Io::Allocate { mode, .. }) = self.steps.get(self.next_step).copied() else {
            return false;
        };
        if self.kind == Kind::Discard {
            // A discard is a hint.
            self.next_step = self.steps.len();
            return true;
        }
        if mode == ALLOCATE {
            // The zeroes are there; only the space for them is not set aside.
            self.next_step += 1;
            return true;
        }
        if self.second_way {
            return false;
        }
        self.second_way = true;
        // All that is left, so that each later step does not find out for itself.
        let rest = self.steps.split_off(self.next_step);
        for step in rest {
            match step {
                Io::Allocate { offset, len, .. } if mode == PUNCH => {
                    self.steps.push(allocate(ZERO, offset, len));
                }
                Io::Allocate { offset, len, .. } => {
                    self.steps.push(allocate(PUNCH, offset, len));
                    self.steps.push(allocate(ALLOCATE, offset, len));
                }
                other => self.steps.push(other),
            }
        }
        true
    }
}

fn allocate(mode: c_int, offset: u64, len: u64) -> Io {
    Io::Allocate { mode, offset, len }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(kind: Kind, lens: &[usize]) -> Slot {
        let mut slot = Slot::new();
        slot.begin(kind, slot.reply);
        for len in lens {
            slot.iovecs.push(iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: *len,
            });
        }
        slot.transfer(1000, lens.iter().sum::<usize>() as u32, false);
        slot
    }

    fn error(code: c_int) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(code))
    }

    fn modes(slot: &Slot) -> Vec<c_int> {
        let steps = slot.steps.iter().map(|step| match step {
            Io::Allocate { mode, .. } => *mode,
            _ => -1,
        });
        steps.collect()
    }

    #[test]
    fn transfer_when_short_goes_on_where_it_stopped() {
        let mut s = slot(Kind::Read, &[100, 200, 300]);
        for (n, at, count, len) in [(50, 1050, 3, 50), (50, 1100, 2, 200), (250, 1350, 1, 250)] {
            assert_eq!(s.advance(Ok(n)), Progress::More);
            let Some(Io::Read {
                offset, count: c, ..
            }) = s.next_io()
            else {
                panic!("not a read");
            };
            assert_eq!((offset, c), (at, count));
            assert_eq!(s.iovecs[s.first].iov_len, len);
        }
        assert_eq!(s.advance(Ok(250)), Progress::Done(Status::Ok));
    }

    #[test]
    fn transfer_when_the_file_ends_is_an_error() {
        let mut s = slot(Kind::Read, &[512]);
        assert_eq!(s.advance(Ok(100)), Progress::More);
        assert_eq!(s.advance(Ok(0)), Progress::Done(Status::IoError));
        assert_eq!(s.done, 100);
    }

    #[test]
    fn interruptions_are_retried_but_not_for_ever() {
        let mut s = slot(Kind::Write, &[512]);
        for _ in 1..MAX_RETRIES {
            assert_eq!(s.advance(error(libc::EINTR)), Progress::More);
        }
        assert_eq!(
            s.advance(error(libc::EAGAIN)),
            Progress::Done(Status::IoError)
        );
    }

    #[test]
    fn zeroes_when_zero_range_is_not_supported_are_punched_and_allocated() {
        let mut s = slot(Kind::WriteZeroes, &[]);
        let extent = Extent {
            offset: 0,
            len: 512,
            unmap: false,
        };
        s.deallocate(&[extent, extent], true);
        assert_eq!(s.advance(Ok(0)), Progress::More);
        assert_eq!(s.advance(error(libc::EOPNOTSUPP)), Progress::More);
        assert_eq!(modes(&s), [ZERO, PUNCH, ALLOCATE, -1]);
        assert_eq!(s.advance(Ok(0)), Progress::More);
        assert_eq!(s.advance(error(libc::EOPNOTSUPP)), Progress::More);
        assert_eq!(s.advance(Ok(0)), Progress::Done(Status::Ok));
    }

    #[test]
    fn zeroes_when_no_way_is_supported_are_an_error() {
        let mut s = slot(Kind::WriteZeroes, &[]);
        s.deallocate(
            &[Extent {
                offset: 0,
                len: 512,
                unmap: true,
            }],
            false,
        );
        assert_eq!(s.advance(error(libc::EOPNOTSUPP)), Progress::More);
        assert_eq!(modes(&s), [ZERO]);
        assert_eq!(
            s.advance(error(libc::EOPNOTSUPP)),
            Progress::Done(Status::IoError)
        );
    }

    #[test]
    fn discard_when_not_supported_is_done() {
        let mut s = slot(Kind::Discard, &[]);
        let extent = Extent {
            offset: 0,
            len: 512,
            unmap: false,
        };
        s.deallocate(&[extent, extent], false);
        assert_eq!(
            s.advance(error(libc::EOPNOTSUPP)),
            Progress::Done(Status::Ok)
        );
    }
}
