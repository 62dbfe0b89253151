//! A program's streams and ours: what is typed goes in, what it writes comes out, signals are passed on.
//!
//! Two threads copy, one for each direction, and may block for as long as they like: this one has the
//! signals. What the input thread still waits for when the program has ended does not matter, as the
//! process ends then.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
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

/// How much is read at a time.
const BLOCK: usize = 64 << 10;

/// How the streams ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The program has ended.
    Exit(Exit),
    /// The user has typed the keys for it: the program goes on.
    Detached,
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
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks signals and has them read here. To be called while there is one thread.
    pub fn block() -> io::Result<Self> {
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
        Ok(Signals(SignalFd::with_flags(&set, flags)?))
    }

    fn next(&self) -> Option<Got> {
        let info = self.0.read_signal().ok()??;
        if info.ssi_signo != Signal::SIGWINCH as u32 {
            return Some(Got::Signal(u8::try_from(info.ssi_signo).ok()?));
        }
        terminal_size().map(Got::Resize)
    }
}

/// The size of our terminal, if we have one.
pub fn terminal_size() -> Option<TerminalSize> {
    crate::terminal::window_size().map(|(columns, rows)| TerminalSize { rows, columns })
}

/// What to copy.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    /// Whether our standard input goes to the program.
    pub stdin: bool,
    /// Whether Ctrl-P Ctrl-Q leaves the program alone.
    pub can_detach: bool,
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
            if let Ok(true) = send_input(&mut to_program, what.can_detach) {
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
            PollFd::new(&signals.0, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let over = !fds[1].revents().is_empty();
        while let Some(signal) = signals.next() {
            on_signal(signal);
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
fn send_input(to_program: &mut UnixStream, can_detach: bool) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut keys = DetachKeys::default();
    let mut buffer = vec![0; HEADER_LENGTH + BLOCK];
    loop {
        let n = match rustix::io::read(&stdin, &mut buffer[HEADER_LENGTH..]) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => continue,
            // The other end of a terminal that is gone, or a stream that is closed: its end.
            Err(_) => 0,
        };
        if can_detach && keys.typed(&buffer[HEADER_LENGTH..HEADER_LENGTH + n]) {
            return Ok(true);
        }
        let header = Header {
            kind: Kind::Stdin,
            length: u32::try_from(n).unwrap_or_default(),
        };
        buffer[..HEADER_LENGTH].copy_from_slice(&header.encode());
        to_program.write_all(&buffer[..HEADER_LENGTH + n])?;
        if n == 0 {
            return Ok(false);
        }
    }
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
                Err(rustix::io::Errno::PIPE) => return Ok(End::NobodyReads),
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

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            // Somebody else has made it non-blocking, such as a shell's job on the same terminal.
            Err(rustix::io::Errno::AGAIN) => {
                poll(&mut [PollFd::new(fd, PollFlags::OUT)], None)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Finds Ctrl-P Ctrl-Q in what is typed.
#[derive(Debug, Default)]
struct DetachKeys {
    pending: bool,
}

impl DetachKeys {
    fn typed(&mut self, bytes: &[u8]) -> bool {
        const CTRL_P: u8 = 0x10;
        const CTRL_Q: u8 = 0x11;
        for &byte in bytes {
            if self.pending && byte == CTRL_Q {
                return true;
            }
            self.pending = byte == CTRL_P;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_when_typed_one_after_the_other_are_found() {
        let mut keys = DetachKeys::default();
        assert!(!keys.typed(b"ls\x10"));
        assert!(keys.typed(b"\x11"));
        let mut keys = DetachKeys::default();
        assert!(!keys.typed(b"\x10a\x11\x10\x10a"));
        assert!(keys.typed(b"\x10\x11"));
    }
}
