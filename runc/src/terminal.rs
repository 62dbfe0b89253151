//! Terminals: handed to whoever listens at a console socket, or joined with our own.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bulkhead_container::TerminalSize;
use bulkhead_container::spec::Process;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::failure::{Outcome, cannot};

/// Hands a terminal's master over.
pub fn send(master: &OwnedFd, socket: &Path) -> Outcome<()> {
    let failed = || format!("send the terminal to {}", socket.display());
    let stream = UnixStream::connect(socket).map_err(cannot(failed()))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let masters = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&masters));
    // The text is for people.
    let name = [IoSlice::new(b"/dev/ptmx")];
    sendmsg(&stream, &name, &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(cannot(failed()))
}

/// The size a new terminal begins with: the configuration's, or that of our own.
pub fn size(process: &Process) -> TerminalSize {
    match process.console_size {
        Some(size) => TerminalSize {
            rows: size.height,
            columns: size.width,
        },
        None => {
            tcgetwinsize(std::io::stdin()).map_or(TerminalSize::default(), |size| TerminalSize {
                rows: size.ws_row,
                columns: size.ws_col,
            })
        }
    }
}

/// Our terminal and the container's, joined as long as this is there.
pub struct Joined {
    master: OwnedFd,
    /// Ours, as it was.
    before: Option<Termios>,
    /// What was typed and is not taken yet.
    typed: Vec<u8>,
    is_open: bool,
    ends: bool,
}

impl Joined {
    pub fn new(master: OwnedFd) -> Outcome<Joined> {
        let failed = || cannot("use the terminal");
        let stdin = std::io::stdin();
        let mut before = None;
        if isatty(&stdin) {
            let found = tcgetattr(&stdin).map_err(failed())?;
            let mut raw = found.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(failed())?;
            before = Some(found);
        }
        let flags = fcntl_getfl(&master).map_err(failed())?;
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).map_err(failed())?;
        Ok(Joined {
            master,
            before,
            typed: Vec::new(),
            is_open: true,
            ends: false,
        })
    }

    /// Our terminal's size is the container's.
    pub fn resize(&self) {
        if let Ok(size) = tcgetwinsize(std::io::stdin()) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Whether there is room for what is typed next.
    pub fn wants_input(&self) -> bool {
        self.is_open && !self.ends && self.typed.is_empty()
    }

    /// Whether something typed waits.
    pub fn has_input(&self) -> bool {
        self.is_open && !self.typed.is_empty()
    }

    /// Whether the container may still write.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes what was typed.
    pub fn take_input(&mut self) {
        let mut buffer = [0; 4096];
        match read(std::io::stdin(), &mut buffer) {
            Ok(0) => {
                // Control-D is how a terminal says that there is no more.
                self.ends = true;
                self.typed.push(4);
            }
            Ok(length) => self.typed.extend(buffer.iter().take(length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.ends = true,
        }
        self.give_input();
    }

    /// Gives the container what was typed, as much as it takes.
    pub fn give_input(&mut self) {
        match write(&self.master, &self.typed) {
            Ok(length) => drop(self.typed.drain(..length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.typed.clear(),
        }
    }

    /// Shows what the container writes. Returns false when there is nothing for now.
    pub fn show(&mut self) -> bool {
        let mut buffer = [0; 16384];
        match read(&self.master, &mut buffer) {
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // The last one who had the other side open closed it.
            Ok(0) | Err(_) => {
                self.is_open = false;
                false
            }
            Ok(length) => {
                let mut left = buffer.get(..length).unwrap_or_default();
                while !left.is_empty() {
                    match write(std::io::stdout(), left) {
                        Ok(written) => left = left.get(written..).unwrap_or_default(),
                        Err(Errno::INTR) => {}
                        Err(_) => break,
                    }
                }
                true
            }
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
