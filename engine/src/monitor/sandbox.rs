//! One sandbox, from the start of its machine to its end.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bulkhead_protocol::frame::{Decoder, Kind, Part};
use bulkhead_protocol::{
    API_VERSION, CreateContainer, Exit, Lower, READY_PORT, Ready, Rootfs, Upper as GuestUpper,
};
use jiff::Timestamp;

use super::Task;
use super::events::{Event, Machine, watch_signals};
use super::message::{Message, may_go, tell};
use crate::agent::{Agent, Attach, printable};
use crate::error::{Error, Failure, cannot};
use crate::http::Upgraded;
use crate::layout::Layout;
use crate::log::{Stream, Writer};
use crate::process::Process;
use crate::record::{Config, Files, Processes, State, Status, Upper};
use crate::spec;
use crate::vm::{self, IMAGE_SERIAL, UPPER_SERIAL};
use crate::volumes::{Attached, staging};

/// How long a guest may take to boot. `BULKHEAD_BOOT_TIMEOUT` (seconds) replaces it.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Exit code of a program that was killed with its machine.
const KILLED: u8 = 128 + 9;

/// Why a sandbox ends before its time.
const MACHINE_ENDED: &str = "its machine ended";
const TOLD_TO_END: &str = "its monitor was told to end";
const COMMAND_ENDED: &str = "the command that started it has ended";

/// A sandbox that is up.
pub struct Sandbox<'a> {
    config: &'a Config,
    files: &'a Files,
    agent: Agent,
    machine: Machine,
    stream: Upgraded,
    log: Writer,
    // After the machine, which is what their servers wait for.
    volumes: Attached,
}

impl<'a> Sandbox<'a> {
    /// Starts the machine and makes the container in it, for as long as the command wants that.
    pub fn start(
        config: &'a Config,
        files: &'a Files,
        layout: &Layout,
        task: &Task,
        command: &UnixStream,
    ) -> Result<Self, Error> {
        let mut volumes = Attached::open(config, files, layout)?;
        let ready = files.sandbox.join(format!("vsock.sock_{READY_PORT}"));
        let ready =
            UnixListener::bind(&ready).map_err(cannot(format!("listen on {}", ready.display())))?;
        let signals = watch_signals()?;
        let child = vm::spawn(config, files, &volumes)?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let mut machine = Machine::watch(child, signals)?;
        let processes = Process::this().and_then(|monitor| {
            let vmm = Process::with_pid(pid)?;
            files.write_processes(&Processes { monitor, vmm })
        });
        processes.map_err(cannot("record the sandbox's processes"))?;
        // The guest boots meanwhile.
        let log = Writer::open(&files.log()).map_err(cannot("open the container's log"))?;
        wait_ready(&mut machine, &ready, command, files)?;

        let agent = Agent::at(&files.api());
        let created = agent.create(&CreateContainer {
            id: config.id.clone(),
            spec: &volumes.complete(&config.spec),
            volumes: volumes.volumes.clone(),
            rootfs: Rootfs {
                lower: Lower::Serial(IMAGE_SERIAL.to_owned()),
                upper: match config.upper {
                    Upper::Memory => GuestUpper::Tmpfs { size_bytes: None },
                    Upper::Disk { .. } => GuestUpper::Disk {
                        serial: UPPER_SERIAL.to_owned(),
                    },
                },
                files: spec::files(&config.spec),
            },
            stdin: config.stdin,
            terminal: task.terminal,
            init: config.init,
        });
        let attached = created.and_then(|_| agent.attach(&config.id, Attach { stdin: false }));
        let stream = attached.map_err(|e| explain(e, &mut machine, files))?;
        volumes.created();
        Ok(Sandbox {
            config,
            files,
            agent,
            machine,
            stream,
            log,
            volumes,
        })
    }

    /// Runs the container's program to its end, which is recorded.
    pub fn run(&mut self, state: &mut State, command: &UnixStream) -> Result<Exit, Error> {
        tell(command, &Message::Created);
        match self.wait_for(command)? {
            Event::Readable if may_go(command) => {}
            Event::Readable | Event::CommandEnded => return Err(not_started(COMMAND_ENDED)),
            Event::Stop => return Err(not_started(TOLD_TO_END)),
            Event::MachineEnded | Event::Nothing => {
                let why = machine_error(&mut self.machine, self.files, MACHINE_ENDED);
                return Err(not_started(&why));
            }
        }
        if let Err(e) = self.agent.start(&self.config.id) {
            return Err(self.why_not_started(e));
        }
        *state = State {
            status: Status::Running,
            started: Some(Timestamp::now()),
            starts: state.starts.saturating_add(1),
            ..State::default()
        };
        self.record(state)?;
        tell(command, &Message::Started);

        let exit = self.follow();
        // A log that cannot be written is no reason not to record the end.
        let _ = self.log.finish();
        state.status = Status::Exited;
        state.finished = Some(Timestamp::now());
        state.exit_code = exit.code;
        state.oom_killed = exit.oom_killed;
        state.error = exit.error.clone();
        self.record(state)?;
        Ok(exit)
    }

    /// Why the program does not run, with the exit code for that: the end of its streams has it.
    fn why_not_started(&mut self, error: Error) -> Error {
        match error {
            // It was tried, and failed: the container has ended, and says so.
            Error::Agent {
                status: 422 | 500,
                message,
            } => Error::Start(Failure {
                exit_code: self.follow().code,
                message,
            }),
            error => explain(error, &mut self.machine, self.files),
        }
    }

    /// Ends the machine; not before the command has taken what the container wrote, if it is attached.
    pub fn end(mut self, attached: bool, command: &UnixStream) {
        if attached {
            // It closes its end; it says nothing more.
            let _ = self.wait_for(command);
        }
        // Others may be attached, or wait for the end.
        self.agent.flush();
        self.unmount();
        let _ = self.machine.end();
    }

    /// Has disks that are used again unmounted, if there are any.
    pub fn unmount(&self) {
        let has_upper = matches!(self.config.upper, Upper::Disk { .. });
        if has_upper || !self.volumes.disks.is_empty() {
            let _ = self.agent.delete(&self.config.id);
        }
    }

    fn wait_for(&self, fd: impl AsFd) -> Result<Event, Error> {
        self.machine.wait(fd.as_fd(), None, None)
    }

    fn record(&self, state: &State) -> Result<(), Error> {
        self.files
            .write_state(state)
            .map_err(cannot("record the container's state"))
    }

    /// Takes the container's output until its program ends.
    fn follow(&mut self) -> Exit {
        let mut decoder = Decoder::new();
        let mut buffer = std::mem::take(&mut self.stream.received);
        let mut error = None;
        loop {
            let mut rest = &buffer[..];
            loop {
                match decoder.next(&mut rest) {
                    Ok(None) => break,
                    Ok(Some(Part::Data(kind, bytes))) => {
                        let stream = match kind {
                            Kind::Stderr => Stream::Stderr,
                            _ => Stream::Stdout,
                        };
                        // The container goes on even if its log cannot.
                        let _ = self.log.write(stream, bytes);
                    }
                    Ok(Some(Part::Message(Kind::Error, text))) => {
                        error = Some(printable(&String::from_utf8_lossy(&text)));
                    }
                    Ok(Some(Part::Message(Kind::Exit, text))) => {
                        return ended(&text, error);
                    }
                    Ok(Some(_)) => {}
                    Err(e) => return self.lost(&format!("the agent's stream is damaged: {e}")),
                }
            }
            buffer.resize(64 << 10, 0);
            match self.wait_for(&self.stream.stream) {
                Ok(Event::Readable) => {}
                Ok(Event::Stop) => return self.lost(TOLD_TO_END),
                Ok(_) => return self.lost_machine(),
                Err(e) => return self.lost(&e.to_string()),
            }
            match self.stream.stream.read(&mut buffer) {
                Ok(0) => return self.lost_machine(),
                Ok(n) => buffer.truncate(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => buffer.clear(),
                Err(_) => return self.lost_machine(),
            }
        }
    }

    /// The end of a container whose machine has ended, or is about to: its last words say more.
    fn lost_machine(&mut self) -> Exit {
        let _ = self.machine.last_status();
        self.lost(MACHINE_ENDED)
    }

    /// The end of a container that is lost.
    fn lost(&mut self, why: &str) -> Exit {
        let why = machine_error(&mut self.machine, self.files, why);
        Exit {
            code: KILLED,
            signal: Some(9),
            error: Some(why),
            ..Exit::default()
        }
    }
}

/// Records that a container could not be started.
pub fn record_failure(files: &Files, state: &mut State, failure: &Failure) {
    state.exit_code = failure.exit_code;
    state.error = Some(failure.message.clone());
    if state.status == Status::Exited {
        state.finished = Some(Timestamp::now());
    }
    // The command is told, whether or not this can be written.
    let _ = files.write_state(state);
}

fn ended(text: &[u8], error: Option<String>) -> Exit {
    let mut exit: Exit = serde_json::from_slice(text).unwrap_or_else(|_| Exit {
        code: KILLED,
        error: Some("the agent does not say how the program ended".to_owned()),
        ..Exit::default()
    });
    exit.error = exit.error.map(|text| printable(&text)).or(error);
    exit
}

/// Waits until the guest's agent says that it is there.
fn wait_ready(
    machine: &mut Machine,
    listener: &UnixListener,
    command: &UnixStream,
    files: &Files,
) -> Result<(), Error> {
    let limit = env::var("BULKHEAD_BOOT_TIMEOUT")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(BOOT_LIMIT, Duration::from_secs);
    let until = Some(Instant::now() + limit);
    let why = match machine.wait(listener.as_fd(), Some(command.as_fd()), until)? {
        Event::Readable => return read_ready(listener, limit),
        Event::MachineEnded => machine_error(machine, files, "its machine ended while it booted"),
        Event::Stop => TOLD_TO_END.to_owned(),
        Event::CommandEnded => COMMAND_ENDED.to_owned(),
        Event::Nothing => format!(
            "its guest has not booted in {} seconds: set BULKHEAD_BOOT_TIMEOUT to allow more",
            limit.as_secs()
        ),
    };
    Err(not_started(&why))
}

fn not_started(why: &str) -> Error {
    Error::Invalid(format!("cannot start the container: {why}"))
}

/// Reads the agent's line, which a hostile guest may never end.
fn read_ready(listener: &UnixListener, limit: Duration) -> Result<(), Error> {
    let line = listener.accept().and_then(|(stream, _)| {
        stream.set_read_timeout(Some(limit))?;
        let mut line = String::new();
        BufReader::new(stream.take(64 << 10)).read_line(&mut line)?;
        Ok(serde_json::from_str::<Ready<'static>>(&line)?)
    });
    let ready = line.map_err(cannot("read what the guest's agent reports"))?;
    if ready.api == API_VERSION {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the guest's agent speaks version {} of the API, not {API_VERSION}: its image \
         (BULKHEAD_AGENT_IMAGE) is of another Bulkhead",
        ready.api
    )))
}

/// An error that may well be the machine's end.
fn explain(error: Error, machine: &mut Machine, files: &Files) -> Error {
    match error {
        Error::Host { .. } => not_started(&machine_error(machine, files, &error.to_string())),
        error => error,
    }
}

/// Why a machine ended: its own last words if it had any, or `otherwise`.
fn machine_error(machine: &mut Machine, files: &Files, otherwise: &str) -> String {
    let Some(status) = machine.status() else {
        return otherwise.to_owned();
    };
    let said = fs::read_to_string(files.complaints()).unwrap_or_default();
    let last = |prefix| {
        said.lines()
            .rev()
            .find_map(|line| line.strip_prefix(prefix))
    };
    // A file server that could not start is why the machine could not.
    match last(staging::COMPLAINT).or_else(|| last("bulkhead-vmm: ")) {
        Some(words) if !status.success() => words.to_owned(),
        _ => format!("{otherwise} ({status})"),
    }
}
