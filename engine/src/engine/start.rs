//! Starting containers.

use std::fs::{File, OpenOptions};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use bulkhead_protocol::TerminalSize;

use super::{Engine, Entry, New, make_folder};
use crate::error::{Error, cannot};
use crate::layout::short;
use crate::lock;
use crate::monitor::{self, Connection, Message};

/// How to start a container.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    /// Whether the caller will attach to the streams: the sandbox waits until it has taken all output.
    pub attached: bool,
    /// The size of the terminal, if there is one.
    pub terminal: Option<TerminalSize>,
}

/// A container on its way up, or up.
#[derive(Debug)]
pub struct Started {
    connection: Connection,
    monitor: Child,
}

impl Engine {
    /// Starts a container that has just been made.
    pub fn start_new(&self, new: New, start: Start) -> Result<(Entry, Started), Error> {
        let started = self.launch(&new.entry, new.lock, start)?;
        Ok((new.entry, started))
    }

    /// Starts a container that is there.
    pub fn start(&self, entry: &Entry, start: Start) -> Result<Started, Error> {
        let id = short(&entry.config.id);
        let failed = || format!("lock container {id}");
        let lock = match lock::try_take(&entry.files.lock()).map_err(cannot(failed()))? {
            Some(lock) => lock,
            // A sandbox that is ending is waited for.
            None => {
                let state = entry.files.read_state();
                let state = state.map_err(cannot(format!("read how container {id} is")))?;
                if state.finished.is_none() {
                    return Err(Error::WrongState {
                        id: id.to_owned(),
                        is: "running",
                        needs: "there is nothing to start",
                    });
                }
                lock::wait(&entry.files.lock()).map_err(cannot(failed()))?
            }
        };
        self.launch(entry, lock, start)
    }

    fn launch(&self, entry: &Entry, lock: File, start: Start) -> Result<Started, Error> {
        if !self.layout.has_room_for_sockets() {
            return Err(Error::Invalid(format!(
                "the path of {} is too long for sockets in it: choose a root with a shorter one",
                self.layout.root().display()
            )));
        }
        // Whoever finds the lock taken tells by this whether the container ends or begins.
        let id = short(&entry.config.id);
        let state = entry.files.read_state();
        let mut state = state.map_err(cannot(format!("read how container {id} is")))?;
        if state.finished.take().is_some() {
            let written = entry.files.write_state(&state);
            written.map_err(cannot(format!("record that container {id} starts")))?;
        }
        // From here on the sandbox is known to be up: whoever finds this folder and not the lock taken
        // knows what happened.
        make_folder(&entry.files.sandbox)?;
        let launch = || "start the container's monitor";
        let complaints = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(entry.files.complaints())
            .map_err(cannot(launch()))?;
        let (ours, theirs) = UnixStream::pair().map_err(cannot(launch()))?;
        // By this path the program is itself even if a new one was installed meanwhile.
        let mut command = Command::new("/proc/self/exe");
        if let Some(root) = &self.named_root {
            command.arg("--root").arg(root);
        }
        command.arg(monitor::COMMAND).arg(&entry.config.id);
        if start.attached {
            command.arg("--attached");
        }
        if let Some(size) = start.terminal {
            command.arg("--rows").arg(size.rows.to_string());
            command.arg("--columns").arg(size.columns.to_string());
        }
        let monitor = command
            .stdin(OwnedFd::from(theirs))
            .stdout(lock)
            .stderr(complaints)
            .spawn()
            .map_err(cannot(launch()))?;
        Ok(Started {
            connection: Connection::new(ours),
            monitor,
        })
    }
}

impl Started {
    /// Waits until the container is there and can be attached to, or it is clear that it will not be.
    /// `false` if `other`, such as the signals of this process, can be read before that.
    pub fn is_created_before(&self, other: BorrowedFd<'_>) -> Result<bool, Error> {
        let waited = self.connection.wait_or(other);
        waited.map_err(cannot("wait for the container's monitor"))
    }

    /// Gives up a container whose program does not run yet, and waits until its sandbox is gone.
    pub fn cancel(self) {
        let Started {
            connection,
            mut monitor,
        } = self;
        drop(connection);
        // It is our child; nobody else waits for it.
        let _ = monitor.wait();
    }

    /// Waits until the container is there and can be attached to.
    pub fn wait_created(&mut self) -> Result<(), Error> {
        self.expect(&Message::Created)
    }

    /// Has the program start, now that the caller is attached if it wants to be, and waits until it has.
    pub fn go(&mut self) -> Result<(), Error> {
        self.connection
            .go()
            .map_err(cannot("start the container"))?;
        self.expect(&Message::Started)
    }

    /// Waits until the program has ended and that is recorded.
    pub fn wait_exited(&mut self) -> Result<bulkhead_protocol::Exit, Error> {
        match self.next()? {
            Message::Exited(exit) => Ok(exit),
            other => Err(unexpected(&other)),
        }
    }

    /// Says that all output was taken. The sandbox ends then, and nobody need wait for that.
    pub fn done(&mut self) {
        self.connection.done();
    }

    fn expect(&mut self, expected: &Message) -> Result<(), Error> {
        let message = self.next()?;
        if message == *expected {
            return Ok(());
        }
        Err(unexpected(&message))
    }

    fn next(&mut self) -> Result<Message, Error> {
        let message = self.connection.receive();
        match message.map_err(cannot("read from the container's monitor"))? {
            Some(Message::Failed(failure)) => {
                // It has nothing more to do than to end, and then all is in order again.
                let _ = self.monitor.wait();
                Err(Error::Start(failure))
            }
            Some(message) => Ok(message),
            None => Err(Error::Invalid(
                "the container's monitor has ended; `bulkhead ps -a` says what became of the \
                 container"
                    .to_owned(),
            )),
        }
    }
}

fn unexpected(message: &Message) -> Error {
    Error::Invalid(format!(
        "the container's monitor says {message:?} where it should not"
    ))
}
