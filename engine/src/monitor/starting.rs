//! A sandbox on its way up: what may happen before its machine is there, and how one boots.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use bulkhead_protocol::{API_VERSION, READY_PORT, Ready};

use super::events::{Event, Watch};
use super::machine::{Machine, Vmm};
use super::message::{Message, tell};
use super::sandbox::{COMMAND_ENDED, TOLD_TO_END, not_started};
use crate::error::{Error, cannot};
use crate::layout::Layout;
use crate::process::Process;
use crate::record::{Config, Files, Processes};
use crate::vm::{self, Launch, Sockets};
use crate::volumes::Attached;

/// How long a guest may take to boot. `BULKHEAD_BOOT_TIMEOUT` (seconds) replaces it.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// Why there is no machine.
#[derive(Debug)]
pub enum Obstacle {
    /// Nobody wants it any more, or this process cannot go on.
    Over(Error),
    /// It went wrong. Another way may go well.
    Failed(String),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Obstacle::Failed(error.to_string())
    }
}

impl Obstacle {
    /// As why the container was not started.
    pub fn into_error(self) -> Error {
        match self {
            Obstacle::Over(error) => error,
            Obstacle::Failed(why) => not_started(&why),
        }
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There is something to read.
    Readable,
    /// The machine has ended.
    MachineEnded,
    /// The time is up.
    Nothing,
}

/// A sandbox on its way up.
pub struct Starting<'a> {
    /// The container.
    pub config: &'a Config,
    /// Its files.
    pub files: &'a Files,
    /// Where things are.
    pub layout: &'a Layout,
    /// What to wait for all the time.
    pub watch: &'a Watch,
    /// The command that wants the container.
    pub command: &'a UnixStream,
}

impl Starting<'_> {
    /// Waits until `fd` can be read, or the machine has ended, for as long as the command wants the container.
    pub fn wait(
        &self,
        machine: Option<&Machine>,
        fd: Option<BorrowedFd<'_>>,
        until: Instant,
    ) -> Result<Waited, Obstacle> {
        let command = Some(self.command.as_fd());
        let event = self.watch.wait(machine, fd, command, Some(until));
        match event.map_err(Obstacle::Over)? {
            Event::Ready => Ok(Waited::Readable),
            Event::MachineEnded => Ok(Waited::MachineEnded),
            // Nobody is listened to yet.
            Event::Nothing | Event::Request => Ok(Waited::Nothing),
            Event::Stop => Err(Obstacle::Over(not_started(TOLD_TO_END))),
            Event::CommandEnded => Err(Obstacle::Over(not_started(COMMAND_ENDED))),
        }
    }

    /// Tells the user of something that takes a while.
    pub fn progress(&self, line: &str) {
        tell(self.command, &Message::Progress(line.to_owned()));
    }

    /// Watches a VMM that has just been started, and writes down that it is this sandbox's.
    pub fn watch_vmm(&self, child: Child) -> Result<Machine, Error> {
        let pid = child.id();
        let machine = Machine::Vm(Vmm::watch(child)?);
        record_processes(self.files, pid)?;
        Ok(machine)
    }

    /// Boots the container's machine, up to the agent's word.
    pub fn boot(&self, volumes: &Attached) -> Result<Machine, Error> {
        let ready = listen_for_guest(&Sockets::of(self.files))?;
        let document = vm::describe(self.config, self.files, volumes)?;
        let launch = Launch {
            restore: None,
            console: &self.files.console(),
            complaints: &self.files.complaints(),
        };
        let mut machine = self.watch_vmm(launch.start(&document)?)?;
        // The guest boots meanwhile.
        self.wait_ready(&mut machine, &ready)
            .map_err(Obstacle::into_error)?;
        Ok(machine)
    }

    /// Waits until the guest's agent says that it is there.
    pub fn wait_ready(
        &self,
        machine: &mut Machine,
        listener: &UnixListener,
    ) -> Result<(), Obstacle> {
        let limit = boot_limit();
        let until = Instant::now() + limit;
        let why = match self.wait(Some(machine), Some(listener.as_fd()), until)? {
            Waited::Readable => return read_ready(listener, limit),
            Waited::MachineEnded => machine.error(self.files, "its machine ended while it booted"),
            Waited::Nothing => format!(
                "its guest has not booted in {} seconds: set BULKHEAD_BOOT_TIMEOUT to allow more",
                limit.as_secs()
            ),
        };
        Err(Obstacle::Failed(why))
    }
}

/// How long a guest may take to boot.
pub fn boot_limit() -> Duration {
    env::var("BULKHEAD_BOOT_TIMEOUT")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(BOOT_LIMIT, Duration::from_secs)
}

/// Where the guest's agent says that it is there.
pub fn listen_for_guest(sockets: &Sockets) -> Result<UnixListener, Error> {
    let ready = sockets.of_port(READY_PORT);
    UnixListener::bind(&ready).map_err(cannot(format!("listen on {}", ready.display())))
}

/// Writes down this process, and the one that ends the container when it is killed.
pub fn record_processes(files: &Files, pid: u32) -> Result<(), Error> {
    let processes = Process::this().and_then(|monitor| {
        let vmm = Process::with_pid(i32::try_from(pid).unwrap_or_default())?;
        files.write_processes(&Processes { monitor, vmm })
    });
    processes.map_err(cannot("record the sandbox's processes"))
}

/// Reads the agent's line, which a hostile guest may never end.
pub fn read_ready(listener: &UnixListener, limit: Duration) -> Result<(), Obstacle> {
    let line = listener.accept().and_then(|(stream, _)| {
        stream.set_read_timeout(Some(limit))?;
        let mut line = String::new();
        BufReader::new(stream.take(64 << 10)).read_line(&mut line)?;
        Ok(serde_json::from_str::<Ready<'static>>(&line)?)
    });
    let ready = line.map_err(cannot("read what the guest's agent reports"));
    let ready = ready.map_err(Obstacle::Over)?;
    if ready.api == API_VERSION {
        return Ok(());
    }
    Err(Obstacle::Over(Error::Invalid(format!(
        "the guest's agent speaks version {} of the API, not {API_VERSION}: its image \
         (BULKHEAD_AGENT_IMAGE) is of another Bulkhead",
        ready.api
    ))))
}

/// Removes the sockets that a machine has left in a sandbox's folder, so that another can have them.
pub fn remove_sockets(sockets: &Sockets) {
    let all: [&Path; 3] = [&sockets.vsock, &sockets.api, &sockets.control];
    for path in all {
        // Most often there is none.
        let _ = std::fs::remove_file(path);
    }
}
