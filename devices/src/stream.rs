//! A byte stream of the host (a terminal, a pipe, a socket, a file), used without waiting for it.
//!
//! Non-blocking is a flag of the open file description, and the description of a terminal or pipe
//! that we were started with belongs to the shell and its other children too: with `O_NONBLOCK` set
//! there, the next program in that terminal fails with `EAGAIN`. So the flag of a descriptor we are
//! given is never touched. What is done instead depends on what it is:
//! - a terminal or a pipe is opened a second time through `/proc/self/fd`, which gives a description
//!   of our own;
//! - a socket is told not to wait call by call (`MSG_DONTWAIT`);
//! - a file, or a device like `/dev/null`, never makes one wait, and cannot be watched either;
//! - for the rest (the master side of a pseudoterminal, which opened again would be another one; a
//!   terminal of another user) the descriptor is polled before each call, and no more is written at
//!   a time than a writable one is sure to take. The call could still wait if somebody else took the
//!   room in between, and then only until the next reader comes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use libc::iovec;

/// What a polled pipe takes for sure when it is writable (`PIPE_BUF` of pipe(7)).
const PIPE_CHUNK: usize = 4096;
/// What a polled terminal takes for sure when it is writable: it has no such promise as a pipe's.
const TERMINAL_CHUNK: usize = 1;

/// Which way a [`Stream`] flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It is read.
    Input,
    /// It is written.
    Output,
}

/// One direction of a byte stream. Calls that would wait return [`io::ErrorKind::WouldBlock`].
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    direction: Direction,
    mode: Mode,
    watchable: bool,
    terminal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The description is ours alone and has `O_NONBLOCK`.
    Own,
    /// `MSG_DONTWAIT` on each call.
    Socket,
    /// Never makes one wait.
    AlwaysReady,
    /// Polled before each call; so much is written at a time.
    Polled { chunk: usize },
}

impl Stream {
    /// Takes `fd` for reading or for writing.
    pub fn new(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        let watchable = is_watchable(file.as_raw_fd())?;
        // SAFETY: takes no pointers.
        let terminal = unsafe { libc::isatty(file.as_raw_fd()) } == 1;

        let (file, mode) = if kind.is_socket() {
            (file, Mode::Socket)
        } else if !watchable {
            (file, Mode::AlwaysReady)
        } else {
            let chunk = if kind.is_fifo() {
                PIPE_CHUNK
            } else {
                TERMINAL_CHUNK
            };
            let own = if kind.is_fifo() || terminal && !is_pty_master(file.as_raw_fd()) {
                reopen(&file, direction)
            } else {
                None
            };
            match own {
                Some(own) => (own, Mode::Own),
                None => (file, Mode::Polled { chunk }),
            }
        };
        Ok(Stream {
            fd: file.into(),
            direction,
            mode,
            watchable,
            terminal,
        })
    }

    /// The descriptor to watch for edges, unless it is of a kind that cannot be watched and is
    /// always ready.
    pub fn watch_fd(&self) -> Option<RawFd> {
        self.watchable.then(|| self.fd.as_raw_fd())
    }

    /// Reads what is there now. 0 is the end of the stream.
    pub fn read(&self, data: &mut [u8]) -> io::Result<usize> {
        let iov = iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: data.len(),
        };
        // SAFETY: the one iovec is `data`, borrowed mutably for the call.
        unsafe { self.readv(&[iov]) }
    }

    /// Writes what can be written now.
    pub fn write(&self, data: &[u8]) -> io::Result<usize> {
        let iov = iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        // SAFETY: the one iovec is `data`, borrowed for the call, which only reads it.
        unsafe { self.writev(&[iov]) }
    }

    /// Reads what is there now into `iovecs`, at most `IOV_MAX` of them. 0 is the end of the stream.
    ///
    /// # Safety
    /// Each of `iovecs` is memory that may be written until this returns.
    pub unsafe fn readv(&self, iovecs: &[iovec]) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        if matches!(self.mode, Mode::Polled { .. }) {
            self.poll()?;
        }
        let n = if self.mode == Mode::Socket {
            let mut message = message(iovecs);
            // SAFETY: `message` points to nothing but `iovecs`, good by this function's contract.
            unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) }
        } else {
            // SAFETY: `iovecs` is good by this function's contract.
            unsafe { libc::readv(fd, iovecs.as_ptr(), count(iovecs)) }
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        if n == 0 && self.terminal {
            // An end-of-file character typed, or VMIN at 0: a terminal goes on after that. One that
            // was hung up says so with an error, or with no more edges.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    }

    /// Writes what can be written now from `iovecs`, at most `IOV_MAX` of them.
    ///
    /// # Safety
    /// Each of `iovecs` is memory that may be read until this returns.
    pub unsafe fn writev(&self, iovecs: &[iovec]) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        let n = match self.mode {
            Mode::Socket => {
                let message = message(iovecs);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: `message` points to nothing but `iovecs`, good by this function's contract.
                unsafe { libc::sendmsg(fd, &message, flags) }
            }
            Mode::Polled { chunk } => {
                self.poll()?;
                let Some(first) = iovecs.iter().find(|iov| iov.iov_len > 0) else {
                    return Ok(0);
                };
                // SAFETY: no more than the first iovec, good by this function's contract.
                unsafe { libc::write(fd, first.iov_base, first.iov_len.min(chunk)) }
            }
            Mode::Own | Mode::AlwaysReady => {
                // SAFETY: `iovecs` is good by this function's contract.
                unsafe { libc::writev(fd, iovecs.as_ptr(), count(iovecs)) }
            }
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Waits, at most `milliseconds` (0: not at all), until the stream can be used.
    pub fn wait(&self, milliseconds: i32) -> io::Result<()> {
        let events = match self.direction {
            Direction::Input => libc::POLLIN,
            Direction::Output => libc::POLLOUT,
        };
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: one valid pollfd, borrowed for the call.
        match unsafe { libc::poll(&mut poll, 1, milliseconds) } {
            1 => Ok(()),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn poll(&self) -> io::Result<()> {
        self.wait(0)
    }
}

fn message(iovecs: &[iovec]) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    // Of another type in each C library; there are at most IOV_MAX.
    message.msg_iovlen = iovecs.len() as _;
    message
}

fn count(iovecs: &[iovec]) -> libc::c_int {
    // The kernel refuses more than IOV_MAX anyway.
    libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX)
}

/// Whether epoll takes `fd`: it refuses files and devices that are always ready.
fn is_watchable(fd: RawFd) -> io::Result<bool> {
    // SAFETY: takes no pointers.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: `event` is valid and borrowed for the call.
    let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) } == 0;
    let error = io::Error::last_os_error();
    // SAFETY: `epoll` was opened above and nobody else has it.
    unsafe { libc::close(epoll) };
    match error.raw_os_error() {
        _ if added => Ok(true),
        Some(libc::EPERM) => Ok(false),
        _ => Err(error),
    }
}

fn is_pty_master(fd: RawFd) -> bool {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, borrowed for the call.
    unsafe { libc::ioctl(fd, libc::TIOCGPTN, &mut number) == 0 }
}

/// Opens what `file` is once more, or `None` if the host does not let us.
fn reopen(file: &File, direction: Direction) -> Option<File> {
    let own = OpenOptions::new()
        .read(direction == Direction::Input)
        .write(direction == Direction::Output)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()?;
    // Whatever is mounted at /proc, it has to be the same thing.
    let (ours, theirs) = (own.metadata().ok()?, file.metadata().ok()?);
    let same =
        ours.dev() == theirs.dev() && ours.ino() == theirs.ino() && ours.rdev() == theirs.rdev();
    same.then_some(own)
}

/// A pseudoterminal: its master side and its slave side.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) fn pty() -> (OwnedFd, OwnedFd) {
    use std::os::fd::FromRawFd;
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: two valid ints; the other pointers may be null (openpty(3)).
    let result = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: both were just opened and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{PipeReader, PipeWriter, Read, Write};
    use std::os::unix::net::UnixStream;

    fn pipe() -> (PipeReader, PipeWriter) {
        io::pipe().unwrap()
    }

    fn is_nonblocking(fd: &impl AsRawFd) -> bool {
        // SAFETY: takes no pointers.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK != 0 }
    }

    fn fill(stream: &Stream) -> usize {
        let mut sum = 0;
        loop {
            match stream.write(&[b'x'; 1 << 16]) {
                Ok(n) => sum += n,
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    return sum;
                }
            }
        }
    }

    #[test]
    fn pipe_when_empty_or_full_does_not_wait_and_keeps_its_flags() {
        let (reader, writer) = pipe();
        let (r, w) = (reader.try_clone().unwrap(), writer.try_clone().unwrap());
        let input = Stream::new(reader.into(), Direction::Input).unwrap();
        let output = Stream::new(writer.into(), Direction::Output).unwrap();
        assert_eq!(input.mode, Mode::Own);
        let mut data = [0; 10];
        let error = input.read(&mut data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(fill(&output) >= PIPE_CHUNK);
        assert_eq!(input.read(&mut data).unwrap(), 10);
        assert!(!is_nonblocking(&r) && !is_nonblocking(&w));
    }

    #[test]
    fn pipe_when_its_writers_are_gone_ends() {
        let (reader, writer) = pipe();
        let input = Stream::new(reader.into(), Direction::Input).unwrap();
        drop(writer);
        assert_eq!(input.read(&mut [0; 10]).unwrap(), 0);
    }

    #[test]
    fn pipe_when_it_must_be_polled_does_not_wait_either() {
        let (mut reader, writer) = pipe();
        let mut output =
            Stream::new(writer.try_clone().unwrap().into(), Direction::Output).unwrap();
        output.fd = writer.into();
        output.mode = Mode::Polled { chunk: PIPE_CHUNK };
        assert!(!is_nonblocking(&output.fd));
        let written = fill(&output);
        assert_eq!(written % PIPE_CHUNK, 0);
        reader.read_exact(&mut vec![0; PIPE_CHUNK]).unwrap();
        assert_eq!(fill(&output), PIPE_CHUNK);
    }

    #[test]
    fn socket_when_full_does_not_wait_and_when_closed_is_an_error_not_a_signal() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let output = Stream::new(ours.try_clone().unwrap().into(), Direction::Output).unwrap();
        let input = Stream::new(ours.into(), Direction::Input).unwrap();
        assert_eq!(input.mode, Mode::Socket);
        assert!(input.read(&mut [0; 4]).is_err());
        theirs.write_all(b"hi").unwrap();
        assert_eq!(input.read(&mut [0; 4]).unwrap(), 2);
        assert!(fill(&output) > 0);
        drop(theirs);
        let error = output.write(b"x").unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn devices_and_files_are_always_ready_and_not_watched() {
        let null = File::open("/dev/null").unwrap();
        let input = Stream::new(null.into(), Direction::Input).unwrap();
        assert_eq!((input.mode, input.watch_fd()), (Mode::AlwaysReady, None));
        assert_eq!(input.read(&mut [0; 4]).unwrap(), 0);
        let file = File::open("/proc/self/exe").unwrap();
        let input = Stream::new(file.into(), Direction::Input).unwrap();
        assert_eq!(input.mode, Mode::AlwaysReady);
        let mut magic = [0; 4];
        assert_eq!(input.read(&mut magic).unwrap(), 4);
        assert_eq!(&magic, b"\x7fELF");
    }

    #[test]
    fn terminal_gets_a_description_of_its_own_and_its_master_is_polled() {
        let (master, slave) = pty();
        let shared = slave.try_clone().unwrap();
        let output = Stream::new(slave.try_clone().unwrap(), Direction::Output).unwrap();
        let input = Stream::new(slave, Direction::Input).unwrap();
        assert_eq!((output.mode, input.mode), (Mode::Own, Mode::Own));
        assert!(!is_nonblocking(&shared));
        assert!(fill(&output) > 0);

        let chunk = TERMINAL_CHUNK;
        let theirs = Stream::new(master.try_clone().unwrap(), Direction::Input).unwrap();
        assert_eq!(theirs.mode, Mode::Polled { chunk });
        assert!(theirs.read(&mut [0; 1 << 16]).unwrap() > 0);
        let keyboard = Stream::new(master, Direction::Output).unwrap();
        for byte in b"ls\n" {
            assert_eq!(keyboard.write(&[*byte]).unwrap(), 1);
        }
        let mut line = [0; 16];
        assert_eq!(input.read(&mut line).unwrap(), 3);
        assert_eq!(&line[..3], b"ls\n");
        // An end-of-file character does not end it.
        keyboard.write(&[4]).unwrap();
        let error = input.read(&mut line).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
