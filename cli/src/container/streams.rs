//! A program's streams and ours: what is typed goes in, what it writes comes out, signals are passed on.
//!
//! Two threads copy, one for each direction, and may block for as long as they like: this one has the
//! signals. What the input thread still waits for when the program has ended does not matter, as the
//! process ends then.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bulkhead_engine::agent::printable;
use bulkhead_engine::http::Upgraded;
use bulkhead_protocol::frame::{Decoder, HEADER_LENGTH, Header, Kind, Part};
use bulkhead_protocol::{Exit, TerminalSize};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::keys::{Finder, Keys};

/// How much is read at a time.
const BLOCK: usize = 64 << 10;

/// How the streams ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The program has ended.
    Exit(Exit),
    /// The user has typed the keys for it: the program goes on.
    Detached,
    /// This process got a signal that is not passed on.
    Signal(u8),
    /// Nobody reads what the program writes any more.
    NobodyReads,
    /// The connection ended before the program did.
    Lost,
}

/// Says why a program ended, if there is more to it than its exit code, which is returned.
pub fn report(exit: Exit) -> u8 {
    if let Some(error) = exit.error {
        eprintln!("bulkhead: {error}");
    }
    exit.code
}

/// A signal for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// The terminal has another size.
    Resize(TerminalSize),
    /// To be passed on.
    Signal(u8),
}

/// The signals of this process, from when they are blocked on.
pub struct Signals {
    set: SigSet,
    fd: SignalFd,
}

impl Signals {
    /// Blocks signals and has them read here. To be called while there is one thread.
    pub fn block() -> Result<Self, String> {
        Self::try_block().map_err(|e| format!("cannot watch signals: {e}"))
    }

    fn try_block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGALRM,
            Signal::SIGWINCH,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&set, flags)?;
        Ok(Signals { set, fd })
    }

    /// Lets signals do again what they do to processes.
    pub fn release(&self) -> io::Result<()> {
        Ok(self.set.thread_unblock()?)
    }

    /// The next signal that would have ended this process.
    pub fn ending(&self) -> Option<u8> {
        loop {
            match self.fd.read_signal().ok()?? {
                info if info.ssi_signo == Signal::SIGWINCH as u32 => {}
                info => return u8::try_from(info.ssi_signo).ok(),
            }
        }
    }

    fn next(&self) -> Option<Got> {
        loop {
            let info = self.fd.read_signal().ok()??;
            if info.ssi_signo != Signal::SIGWINCH as u32 {
                return Some(Got::Signal(u8::try_from(info.ssi_signo).ok()?));
            }
            if let Some(size) = terminal_size() {
                return Some(Got::Resize(size));
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The size of our terminal, if we have one.
pub fn terminal_size() -> Option<TerminalSize> {
    crate::terminal::window_size().map(|(columns, rows)| TerminalSize { rows, columns })
}

/// What to copy.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Whether our standard input goes to the program.
    pub stdin: bool,
    /// The keys that leave the program alone, if any do.
    pub detach_keys: Option<Keys>,
    /// Whether signals are passed on. If not, they are the end.
    pub passes_signals: bool,
}

/// Copies until the program has ended or the user has left.
pub fn copy(
    connection: Upgraded,
    what: Copy,
    signals: &Signals,
    mut on_signal: impl FnMut(Got),
) -> io::Result<End> {
    let (ended, theirs) = UnixStream::pair()?;
    let detached = Arc::new(AtomicBool::new(false));
    if what.stdin {
        let mut to_program = connection.stream.try_clone()?;
        let mut told = theirs.try_clone()?;
        let detached = Arc::clone(&detached);
        thread::spawn(move || {
            if let Ok(true) = send_input(&mut to_program, what.detach_keys.as_ref()) {
                detached.store(true, Ordering::Release);
                let _ = told.write_all(b"d"); // nobody waits if the program has ended meanwhile
            }
        });
    }
    let output = thread::spawn(move || {
        let end = receive_output(connection);
        drop(theirs.shutdown(std::net::Shutdown::Both));
        end
    });
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let over = !fds[1].revents().is_empty();
        while let Some(got) = signals.next() {
            match got {
                Got::Signal(signal) if !what.passes_signals && !over => {
                    return Ok(End::Signal(signal));
                }
                got => on_signal(got),
            }
        }
        if over {
            break;
        }
    }
    if detached.load(Ordering::Acquire) {
        return Ok(End::Detached);
    }
    output.join().unwrap_or(Ok(End::Lost))
}

/// Sends standard input to the program, up to its end. `true` if the user has left.
fn send_input(to_program: &mut UnixStream, detach_keys: Option<&Keys>) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut finder = detach_keys.map(Finder::new);
    let mut passed = Vec::new();
    let mut buffer = vec![0; HEADER_LENGTH + BLOCK];
    loop {
        let n = match rustix::io::read(&stdin, &mut buffer[HEADER_LENGTH..]) {
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            // Somebody else has made it non-blocking, such as a shell's job on the same terminal.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None)?;
                continue;
            }
            // The other end of a terminal that is gone, or a stream that is closed: its end.
            Err(_) => 0,
        };
        let frame = &mut buffer[..HEADER_LENGTH + n];
        let Some(finder) = finder.as_mut().filter(|_| n > 0) else {
            send(to_program, frame)?;
            if n == 0 {
                return Ok(false);
            }
            continue;
        };
        passed.clear();
        passed.resize(HEADER_LENGTH, 0);
        let has_left = finder.look(&frame[HEADER_LENGTH..], &mut passed);
        // An empty frame would be the end.
        if passed.len() > HEADER_LENGTH {
            send(to_program, &mut passed)?;
        }
        if has_left {
            return Ok(true);
        }
    }
}

/// Sends a frame of standard input, which has room for its header.
fn send(to_program: &mut UnixStream, frame: &mut [u8]) -> io::Result<()> {
    let header = Header {
        kind: Kind::Stdin,
        length: u32::try_from(frame.len() - HEADER_LENGTH).unwrap_or_default(),
    };
    frame[..HEADER_LENGTH].copy_from_slice(&header.encode());
    to_program.write_all(frame)
}

/// Writes what the program writes.
fn receive_output(mut connection: Upgraded) -> io::Result<End> {
    let mut decoder = Decoder::new();
    let mut buffer = std::mem::take(&mut connection.received);
    let (stdout, stderr) = (own(io::stdout())?, own(io::stderr())?);
    let mut why = None;
    loop {
        let mut rest = &buffer[..];
        while let Some(part) = decoder.next(&mut rest).map_err(io::Error::other)? {
            let result = match part {
                Part::Data(Kind::Stderr, bytes) => write_all(&stderr, bytes),
                Part::Data(_, bytes) => write_all(&stdout, bytes),
                Part::Message(Kind::Error, text) => {
                    why = Some(printable(&String::from_utf8_lossy(&text)));
                    Ok(())
                }
                Part::Message(Kind::Exit, text) => {
                    let mut exit: Exit = serde_json::from_slice(&text)?;
                    exit.error = exit.error.map(|text| printable(&text)).or(why);
                    return Ok(End::Exit(exit));
                }
                _ => Ok(()),
            };
            match result {
                Err(Errno::PIPE) => return Ok(End::NobodyReads),
                result => result?,
            }
        }
        buffer.resize(BLOCK, 0);
        match connection.stream.read(&mut buffer) {
            Ok(0) => return Ok(End::Lost),
            Ok(n) => buffer.truncate(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => buffer.clear(),
            Err(_) => return Ok(End::Lost),
        }
    }
}

/// The stream itself, without the buffer that the library has for it.
fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // Somebody else has made it non-blocking, such as a shell's job on the same terminal.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(fd, PollFlags::OUT)], None)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
