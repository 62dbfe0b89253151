//! Starting containers.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_container::{fork_apart, self_exe};
use bulkhead_protocol::TerminalSize;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Engine, Entry, New, make_folder};
use crate::error::{Error, cannot};
use crate::http::Upgraded;
use crate::layout::short;
use crate::lock;
use crate::monitor::{self, Connection, Message, Origin, Task};
use crate::record::Isolation;
use crate::rootless::{self, is_rootless};

/// How to start a container.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Whether the caller will attach to the streams: the sandbox waits until it has taken all output.
    pub attached: bool,
    /// The size of the terminal, if there is one.
    pub terminal: Option<TerminalSize>,
    /// The checkpoint that the container goes on from, if it is not to begin.
    pub checkpoint: Option<Origin>,
}

/// A container on its way up, or up.
#[derive(Debug)]
pub struct Started {
    connection: Connection,
    /// What has come already.
    received: Option<Message>,
    monitor: Pid,
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
        let renewed = self.renew_tree(entry)?;
        self.launch(renewed.as_ref().unwrap_or(entry), lock, start)
    }

    fn launch(&self, entry: &Entry, lock: File, start: Start) -> Result<Started, Error> {
        self.layout.check_room_for_sockets()?;
        let is_on_host = entry.config.isolation == Isolation::Container;
        if is_on_host && is_rootless(Isolation::Container) != entry.config.tree.is_some() {
            return Err(Error::Invalid(format!(
                "container {} is another user's, and can be started by that one alone",
                short(&entry.config.id)
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
        let task = Task {
            id: entry.config.id.clone(),
            attached: start.attached,
            terminal: start.terminal,
            checkpoint: start.checkpoint,
        };
        let forked = match entry.config.isolation {
            Isolation::Vm => None,
            // A program of the container can be this one (`#!/proc/self/exe`), and would write to it as soon as nobody
            // executes it any more: there the monitor is executed from where nobody can.
            Isolation::Container if is_exposed()? => None,
            // What it would have to find out again is there, and the container starts in milliseconds.
            Isolation::Container => {
                let stdio = [theirs.as_fd(), lock.as_fd(), complaints.as_fd()];
                let known = (entry.config.clone(), state);
                fork_apart(stdio, || monitor::run_apart(self, &task, known))
                    .map_err(cannot(launch()))?
            }
        };
        let monitor = match forked {
            Some(pid) => pid,
            None => {
                let mut program = PathBuf::from("/proc/self/exe");
                let copy = match entry.config.isolation {
                    Isolation::Vm => None,
                    // Whoever is not root may not copy mounts.
                    Isolation::Container if is_rootless(Isolation::Container) => {
                        Some(self_exe::sealed()?)
                    }
                    Isolation::Container => Some(self_exe::read_only()?),
                };
                if let Some(copy) = &copy {
                    program = format!("/proc/self/fd/{}", copy.as_raw_fd()).into();
                }
                let child = self
                    .command(&program, &task)
                    .stdin(OwnedFd::from(theirs))
                    .stdout(lock)
                    .stderr(complaints)
                    .spawn()
                    .map_err(cannot(launch()))?;
                Pid::from_child(&child)
            }
        };
        Ok(Started {
            connection: Connection::new(ours),
            received: None,
            monitor,
        })
    }

    /// The monitor as a command. By what `/proc/self` has for it the program is itself even if a new one was
    /// installed meanwhile.
    fn command(&self, program: &Path, task: &Task) -> Command {
        let mut command = Command::new(program);
        if let Some(root) = &self.named_root {
            command.arg("--root").arg(root);
        }
        command.arg(monitor::COMMAND).arg(&task.id);
        if task.attached {
            command.arg("--attached");
        }
        if let Some(size) = task.terminal {
            command.arg("--rows").arg(size.rows.to_string());
            command.arg("--columns").arg(size.columns.to_string());
        }
        if let Some(origin) = &task.checkpoint {
            command.arg("--checkpoint").arg(&origin.name);
            command.arg("--of").arg(&origin.container);
        }
        command
    }
}

impl Started {
    /// Waits until the container is there and can be attached to, or it is clear that it will not be.
    /// `false` if `other`, such as the signals of this process, can be read before that. What takes a while is told
    /// to `progress`, a line each.
    pub fn is_created_before(
        &mut self,
        other: BorrowedFd<'_>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<bool, Error> {
        loop {
            let waited = self.connection.wait_or(other);
            if !waited.map_err(cannot("wait for the container's monitor"))? {
                return Ok(false);
            }
            let message = self.connection.receive();
            match message.map_err(cannot("read from the container's monitor"))? {
                Some(Message::Progress(line)) => progress(&line),
                // The end of the monitor is found again by whoever reads on.
                message => {
                    self.received = message;
                    return Ok(true);
                }
            }
        }
    }

    /// Gives up a container whose program does not run yet, and waits until its sandbox is gone.
    pub fn cancel(self) {
        drop(self.connection);
        wait_end(self.monitor);
    }

    /// Waits until the container is there and can be attached to.
    pub fn wait_created(&mut self) -> Result<(), Error> {
        self.expect(&Message::Created)
    }

    /// Has the program start, now that the caller is attached if it wants to be, and waits until it has.
    pub fn go(&mut self) -> Result<(), Error> {
        self.go_with(None)
    }

    /// The same for a caller that is not attached and wants the output, which the monitor has anyway: a connection
    /// to the agent less, and nothing that the program writes leaves a virtual machine twice.
    pub fn go_with_output(&mut self) -> Result<Upgraded, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(cannot("start the container"))?;
        self.go_with(Some(theirs))?;
        Ok(Upgraded::from(ours))
    }

    fn go_with(&mut self, output: Option<UnixStream>) -> Result<(), Error> {
        self.connection
            .go(output)
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
        let message = match self.received.take() {
            Some(message) => Ok(Some(message)),
            None => self.connection.receive(),
        };
        match message.map_err(cannot("read from the container's monitor"))? {
            Some(Message::Progress(_)) => self.next(),
            Some(Message::Failed(failure)) => {
                // It has nothing more to do than to end, and then all is in order again.
                wait_end(self.monitor);
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

/// Whether a container could write to our program.
fn is_exposed() -> Result<bool, Error> {
    match is_rootless(Isolation::Container) {
        true => rootless::is_exposed(),
        false => Ok(self_exe::is_writable()?),
    }
}

/// Waits for the end of a child of ours; nobody else waits for it.
fn wait_end(child: Pid) {
    while let Err(Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
}

fn unexpected(message: &Message) -> Error {
    Error::Invalid(format!(
        "the container's monitor says {message:?} where it should not"
    ))
}
