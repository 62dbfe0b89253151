//! The control socket: HTTP/1.1 and JSON on a Unix socket, served by the event loop.

pub mod api;
pub mod http;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::event_loop::watch;
use api::VmHandle;
use http::{Parsed, Reply, parse};

/// Connections served at a time; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16;
/// Reply bytes that may wait for a client that does not read them.
const MAX_UNSENT: usize = 1 << 20;

/// Token of the listener; connections have their descriptor's number, which is never negative.
const LISTENER: u32 = u32::MAX;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process serves it.
    #[error("the control socket {0} is in use by another process: give each VM its own")]
    Taken(PathBuf),
    /// The host refused.
    #[error("cannot listen on the control socket {path}: {source}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// The server and its connections.
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    vm: VmHandle,
    connections: HashMap<u32, Connection>,
    accepting: bool,
}

impl ControlServer {
    /// Listens at `path`, in the place of a socket that a dead process left behind.
    pub fn bind(path: &Path, vm: VmHandle) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Listen {
            path: path.to_owned(),
            source,
        };
        if UnixStream::connect(path).is_ok() {
            return Err(ControlError::Taken(path.to_owned()));
        }
        // Only a socket is ever removed: a mistyped path must not cost anybody a file.
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(ControlServer {
            listener,
            path: path.to_owned(),
            vm,
            connections: HashMap::new(),
            accepting: true,
        })
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        while self.connections.len() < MAX_CONNECTIONS {
            // Whatever is wrong with one client, the next event tries again.
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let token = stream.as_raw_fd() as u32;
            let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            watch(ops, "control", Events::with_data(&stream, token, events));
            self.connections.insert(token, Connection::new(stream));
        }
        // Full: stop looking at the listener, or its level would keep the loop spinning.
        self.set_accepting(false, ops);
    }

    fn set_accepting(&mut self, accepting: bool, ops: &mut EventOps<'_>) {
        if self.accepting == accepting {
            return;
        }
        self.accepting = accepting;
        let events = Events::with_data(&self.listener, LISTENER, EventSet::IN);
        if accepting {
            watch(ops, "control", events);
        } else if let Err(e) = ops.remove(events) {
            log::error!("control: {e}");
        }
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = Events::with_data(&self.listener, LISTENER, EventSet::IN);
        watch(ops, "control", events);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let token = events.data();
        if token == LISTENER {
            return self.accept(ops);
        }
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.serve(&self.vm).is_err() {
            if let Err(e) = ops.remove(Events::empty(&connection.stream)) {
                log::error!("control: {e}");
            }
            self.connections.remove(&token);
            self.set_accepting(true, ops);
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // It may have been replaced or removed by others; either way it is no longer ours to mend.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The connection is over: closed by either side.
struct Closed;

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// Close once `unsent` is sent.
    closing: bool,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Connection {
            stream,
            received: Vec::new(),
            unsent: Vec::new(),
            closing: false,
        }
    }

    /// Reads, answers and writes as much as there is.
    fn serve(&mut self, vm: &VmHandle) -> Result<(), Closed> {
        let mut buffer = [0; 4096];
        loop {
            self.answer(vm);
            self.flush()?;
            if self.closing {
                return if self.unsent.is_empty() {
                    Err(Closed)
                } else {
                    Ok(())
                };
            }
            // A client that does not read its replies is not read from either.
            if self.unsent.len() > MAX_UNSENT {
                return Ok(());
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Closed),
                Ok(n) => self.received.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
    }

    /// Answers every whole request received.
    fn answer(&mut self, vm: &VmHandle) {
        let mut used = 0;
        while !self.closing && self.unsent.len() <= MAX_UNSENT {
            let rest = &self.received[used..];
            let (reply, keep) = match parse(rest) {
                Parsed::Partial => break,
                Parsed::Bad(status, message) => (Reply::error(status, message), false),
                Parsed::Request(request, len) => {
                    used += len;
                    (vm.handle(&request), request.keep_alive)
                }
            };
            self.unsent.extend(reply.to_bytes(keep));
            self.closing = !keep;
        }
        self.received.drain(..used);
    }

    fn flush(&mut self) -> Result<(), Closed> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => {
                    self.unsent.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}
