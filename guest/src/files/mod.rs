//! Files in and out of containers, as tar archives.
//!
//! A copy has a thread and a connection of its own, so that a slow disk, a slow client or a large tree
//! holds up nobody else. Paths are the container's: they are resolved by the kernel inside its root
//! ([`root`]), so that no link of a hostile image leads out of it. [`tar`] is the format, [`take`] and
//! [`put`] are the two directions.

pub mod body;
pub mod put;
pub mod root;
pub mod take;
pub mod tar;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::connection::Stream;
use crate::guest::Guest;
use crate::http::{BodyDecoder, Head, Query, Response};
use crate::kmsg;
use crate::server::socket::Socket;
use body::Body;
use root::Root;

/// The most copies at a time.
const MAX_COPIES: usize = 8;
/// How long a client may leave a copy waiting.
const PATIENCE: Duration = Duration::from_secs(120);
/// A thread's stack, bytes: a header, a path and some names.
const STACK: usize = 256 << 10;
/// How many bytes a client that was refused may still send before it is cut off.
const MAX_DRAIN: u64 = 256 << 10;

/// A copy to be made.
#[derive(Debug)]
pub struct Copy {
    root: Root,
    path: Vec<u8>,
    direction: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Take,
    Put,
}

/// Why a copy failed, and whose fault it is.
#[derive(Debug)]
pub enum Failure {
    /// The path is not there, or is not what it should be.
    NotFound(String),
    /// The archive is none, or has in it what cannot be put into a container.
    Archive(String),
    /// Something else.
    Failed(String),
    /// There is nobody to tell.
    ClientGone,
}

impl Failure {
    fn response(&self) -> Option<Response> {
        Some(match self {
            Failure::NotFound(message) => Response::not_found(message),
            Failure::Archive(message) => Response::unprocessable(message),
            Failure::Failed(message) => Response::internal(message),
            Failure::ClientGone => return None,
        })
    }
}

/// The copies under way.
#[derive(Debug, Default)]
pub struct Copies {
    /// Each has a share in it, so that their number is that of the shares.
    under_way: Arc<()>,
}

impl Copies {
    fn len(&self) -> usize {
        Arc::strong_count(&self.under_way) - 1
    }

    /// Starts a copy on a connection that has had a request's head, and of whose body `input` has come.
    pub fn start(&self, copy: Copy, socket: Socket, input: Vec<u8>, head: &Head) {
        let share = Arc::clone(&self.under_way);
        let decoder = BodyDecoder::new(head.framing);
        let wants_continue = head.wants_continue;
        let thread = std::thread::Builder::new().stack_size(STACK);
        let started = thread.spawn(move || {
            let _share = share;
            // An error here is the client's leaving.
            let _ = copy.run(socket, input, decoder, wants_continue);
        });
        if let Err(e) = started {
            kmsg::error(format_args!("cannot start a copy: {e}"));
        }
    }
}

impl Copy {
    fn run(
        self,
        mut socket: Socket,
        input: Vec<u8>,
        decoder: BodyDecoder,
        wants_continue: bool,
    ) -> io::Result<()> {
        fcntl_setfl(socket.as_fd(), OFlags::empty())?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(socket.as_fd(), timeout, Some(PATIENCE))?;
        }
        if wants_continue {
            io::Write::write_all(&mut socket, b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Body::new(&mut socket, input, decoder);
        let response = match self.direction {
            Direction::Put => match put::put(&self.root, &self.path, &mut body) {
                Ok(()) => Some(Response::done()),
                Err(failure) => failure.response(),
            },
            Direction::Take => match take::take(&self.root, &self.path, body.socket()) {
                // The archive was the answer.
                Ok(()) => None,
                Err(failure) => failure.response(),
            },
        };
        if let Some(response) = response {
            let mut bytes = Vec::new();
            response.write_to(&mut bytes, true, false);
            io::Write::write_all(body.socket(), &bytes)?;
        }
        // What closes a connection with something unread resets it, and the answer may be lost.
        body.socket().shutdown_write()?;
        body.drain(MAX_DRAIN)
    }
}

impl Guest {
    /// Prepares to take files out of a container.
    pub fn get_files(&mut self, id: &str, query: &str) -> Result<Copy, Response> {
        self.copy(id, query, Direction::Take)
    }

    /// Prepares to put files into a container.
    pub fn put_files(&mut self, id: &str, query: &str) -> Result<Copy, Response> {
        self.copy(id, query, Direction::Put)
    }

    fn copy(&mut self, id: &str, query: &str, direction: Direction) -> Result<Copy, Response> {
        let entry = self.entry(self.named(id)?)?;
        let path = Query(query)
            .get("path")
            .filter(|path| path.starts_with(b"/"));
        let Some(path) = path else {
            let message = "The query's path is an absolute path in the container.";
            return Err(Response::bad_request(message));
        };
        let Some(pid) = entry.pid else {
            let message = format!("Container {id} has ended, and its files with it.");
            return Err(Response::conflict(&message));
        };
        if self.copies.len() >= MAX_COPIES {
            let message = format!("There are {MAX_COPIES} copies under way already.");
            return Err(Response::unavailable(&message));
        }
        let root = Root::of(pid).map_err(|e| {
            let message = format!("Cannot open the root of container {id}: {e}.");
            Response::internal(&message)
        })?;
        Ok(Copy {
            root,
            path,
            direction,
        })
    }
}

/// Opens a file again that is known only by its place, now that it is known what it is.
fn reopen(place: impl AsFd, flags: OFlags) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}
