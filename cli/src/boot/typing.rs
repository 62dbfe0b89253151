//! What is typed, on its way to the guest.

use std::io::{self, Write};
use std::process::ChildStdin;

use super::error::{SessionError, cannot};
use crate::terminal::{Escape, Typed};

/// Typed bytes kept for a guest that does not read them; what comes on top is lost.
const MAX_TYPED: usize = 64 << 10;

/// What is typed, on its way to the guest.
pub struct Typing {
    /// The VMM's standard input.
    pub pipe: ChildStdin,
    escape: Escape,
    /// What the guest has not taken yet.
    pub unsent: Vec<u8>,
    /// Nothing more will be typed.
    pub ended: bool,
}

impl Typing {
    /// Types into `pipe`.
    pub fn new(pipe: ChildStdin) -> Result<Self, SessionError> {
        // Our end of a pipe that nobody else has, so the flag is nobody else's either.
        rustix::io::ioctl_fionbio(&pipe, true).map_err(cannot("set up the console"))?;
        Ok(Typing {
            pipe,
            escape: Escape::default(),
            unsent: Vec::new(),
            ended: false,
        })
    }

    /// Takes what was typed. `true` if it ends in the wish to quit.
    pub fn take(&mut self, typed: &[u8]) -> bool {
        let (bytes, quit) = match self.escape.filter(typed) {
            Typed::Bytes(bytes) => (bytes, false),
            Typed::Quit(bytes) => (bytes, true),
        };
        let room = MAX_TYPED - self.unsent.len();
        self.unsent.extend(bytes.iter().take(room));
        self.send();
        quit
    }

    /// Sends what the guest has room for.
    pub fn send(&mut self) {
        match self.pipe.write(&self.unsent) {
            Ok(n) => {
                self.unsent.drain(..n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // The VMM is ending; its process says so in a moment.
            Err(_) => self.unsent.clear(),
        }
    }
}
