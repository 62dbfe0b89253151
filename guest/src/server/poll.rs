//! What the loop waits for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::slab::Key;

/// How many events are taken from the kernel at a time.
const BATCH: usize = 16;

/// Whom an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The socket that clients connect to.
    Listener,
    /// The descriptor that signals are read from.
    Signals,
    /// A client's socket, on which HTTP is spoken.
    Client(Key),
    /// A client's socket that carries frames.
    Stream(Key),
    /// A client's socket that carries events.
    Subscriber(Key),
    /// A program's standard input, which has room.
    Stdin(Key),
    /// A program's standard output.
    Stdout(Key),
    /// A program's standard error.
    Stderr(Key),
    /// A container's memory events.
    Oom(Key),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, key) = match self {
            Token::Listener => (0, None),
            Token::Signals => (1, None),
            Token::Client(key) => (2, Some(key)),
            Token::Stream(key) => (3, Some(key)),
            Token::Subscriber(key) => (4, Some(key)),
            Token::Stdin(key) => (5, Some(key)),
            Token::Stdout(key) => (6, Some(key)),
            Token::Stderr(key) => (7, Some(key)),
            Token::Oom(key) => (8, Some(key)),
        };
        let key = key.map_or(0, |k| u64::from(k.slot) << 32 | u64::from(k.generation));
        kind << 56 | key
    }

    fn decode(data: u64) -> Option<Self> {
        let key = Key {
            slot: (data >> 32 & 0xff_ffff) as u32,
            generation: data as u32,
        };
        Some(match data >> 56 {
            0 => Token::Listener,
            1 => Token::Signals,
            2 => Token::Client(key),
            3 => Token::Stream(key),
            4 => Token::Subscriber(key),
            5 => Token::Stdin(key),
            6 => Token::Stdout(key),
            7 => Token::Stderr(key),
            8 => Token::Oom(key),
            _ => return None,
        })
    }
}

/// An epoll.
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// Waits for nothing yet.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poll { epoll })
    }

    /// Begins to wait for `flags`. Closing the descriptor ends it.
    pub fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(token.encode());
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    /// Waits for something else of a descriptor, perhaps for somebody else.
    pub fn modify(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(token.encode());
        Ok(epoll::modify(&self.epoll, fd, data, flags)?)
    }

    /// Waits for nothing of a descriptor any more, not even for its end.
    pub fn remove(&self, fd: impl AsFd) {
        // Fails if it was not waited for, which is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits, at most `timeout`, and returns what has happened.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Events> {
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let timeout = timeout.map(timespec);
        let mut events = Events {
            events: [None; BATCH],
        };
        match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok((ready, _)) => {
                for (to, from) in events.events.iter_mut().zip(ready.iter()) {
                    *to = Token::decode(from.data.u64()).map(|token| (token, from.flags));
                }
                Ok(events)
            }
            Err(Errno::INTR) => Ok(events),
            Err(e) => Err(e.into()),
        }
    }
}

/// What [`Poll::wait`] returned.
pub struct Events {
    events: [Option<(Token, EventFlags)>; BATCH],
}

impl Events {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = (Token, EventFlags)> {
        self.events.iter().copied().flatten()
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_when_encoded_then_decoded_as_it_was() {
        let key = Key {
            slot: 0xab_cdef,
            generation: u32::MAX,
        };
        for token in [
            Token::Listener,
            Token::Signals,
            Token::Client(key),
            Token::Stream(key),
            Token::Subscriber(key),
            Token::Stdin(key),
            Token::Stdout(key),
            Token::Stderr(key),
            Token::Oom(key),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
