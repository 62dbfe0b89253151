//! One sandbox, from the start of its machine to its end.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_agent::containers::rootfs::LastResort;
use bulkhead_image::progress::Silent;
use bulkhead_image::{Digest, Store};
use bulkhead_protocol::frame::{Decoder, Kind, Part};
use bulkhead_protocol::{
    API_VERSION, CreateContainer, Exit, Lower, READY_PORT, Ready, Rootfs, Upper as GuestUpper,
};
use jiff::Timestamp;

use super::Task;
use super::events::{Event, Watch, watch_signals};
use super::machine::{HostAgent, Machine, Vmm};
use super::message::{Message, may_go, tell};
use crate::agent::{Agent, Attach, printable};
use crate::cgroup;
use crate::error::{Error, Failure, cannot};
use crate::http::Upgraded;
use crate::layout::Layout;
use crate::log::{Stream, Writer};
use crate::process::Process;
use crate::record::{Config, Files, Isolation, Processes, State, Status, Upper};
use crate::spec;
use crate::vm::{self, IMAGE_SERIAL, UPPER_SERIAL};
use crate::volumes::Attached;

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
    watch: Watch,
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
        let log = Writer::open(&files.log()).map_err(cannot("open the container's log"))?;
        let watch = Watch::new(watch_signals()?);
        let wanted = CreateContainer {
            id: config.id.clone(),
            spec: volumes.complete(&config.spec),
            volumes: volumes.volumes.clone(),
            rootfs: rootfs(config, files),
            stdin: config.stdin,
            terminal: task.terminal,
            init: config.init,
        };
        let agent = Agent::at(&files.api());
        let (machine, stream) = match config.isolation {
            Isolation::Vm => {
                let ready = listen_for_guest(files)?;
                let child = vm::spawn(config, files, &volumes)?;
                let pid = child.id();
                let mut machine = Machine::Vm(Vmm::watch(child)?);
                record_processes(files, pid)?;
                // The guest boots meanwhile.
                wait_ready(&watch, &mut machine, &ready, command, files)?;
                let attached = agent
                    .create(&wanted)
                    .and_then(|_| agent.attach(&config.id, Attach { stdin: false }));
                let stream = attached.map_err(|e| explain(e, &mut machine, files))?;
                (machine, stream)
            }
            Isolation::Container => {
                let is_rootless = config.tree.is_some();
                let group = cgroup::of_new(files, &config.id, is_rootless)?;
                if is_rootless && group.is_none() && has_limits(config) {
                    return Err(needs_group());
                }
                let tree = last_resort(config, layout);
                let (agent, pid, stream) = HostAgent::start(files, &wanted, group, tree)?;
                record_processes(files, pid)?;
                (Machine::Host(agent), Upgraded::from(stream))
            }
        };
        volumes.created();
        Ok(Sandbox {
            config,
            files,
            agent,
            watch,
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
                let why = self.machine.error(self.files, MACHINE_ENDED);
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
        self.machine.end();
    }

    /// Has disks that are used again unmounted, if there are any, and leaves nothing on the host.
    pub fn unmount(&self) {
        let is_on_host = self.config.isolation == Isolation::Container;
        let has_upper = matches!(self.config.upper, Upper::Disk { .. });
        if is_on_host || has_upper || !self.volumes.disks.is_empty() {
            let _ = self.agent.delete(&self.config.id);
        }
    }

    fn wait_for(&self, fd: impl AsFd) -> Result<Event, Error> {
        self.watch.wait(&self.machine, fd.as_fd(), None, None)
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
        self.machine.wait_last_moment();
        self.lost(MACHINE_ENDED)
    }

    /// The end of a container that is lost.
    fn lost(&mut self, why: &str) -> Exit {
        let why = self.machine.error(self.files, why);
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

/// Where the guest's agent says that it is there.
fn listen_for_guest(files: &Files) -> Result<UnixListener, Error> {
    let ready = files.sandbox.join(format!("vsock.sock_{READY_PORT}"));
    UnixListener::bind(&ready).map_err(cannot(format!("listen on {}", ready.display())))
}

/// Writes down this process, and the one that ends the container when it is killed.
fn record_processes(files: &Files, pid: u32) -> Result<(), Error> {
    let processes = Process::this().and_then(|monitor| {
        let vmm = Process::with_pid(i32::try_from(pid).unwrap_or_default())?;
        files.write_processes(&Processes { monitor, vmm })
    });
    processes.map_err(cannot("record the sandbox's processes"))
}

/// What the container's root is made of.
fn rootfs(config: &Config, files: &Files) -> Rootfs {
    let host_path = |path: &Path| path.to_string_lossy().into_owned();
    let (lower, disk) = match config.isolation {
        Isolation::Vm => {
            let serial = UPPER_SERIAL.to_owned();
            (
                Lower::Serial(IMAGE_SERIAL.to_owned()),
                GuestUpper::Disk { serial },
            )
        }
        Isolation::Container => (
            match &config.tree {
                Some(tree) => Lower::Directory(host_path(tree)),
                None => Lower::File(host_path(&config.disk)),
            },
            GuestUpper::File(host_path(&files.upper())),
        ),
    };
    Rootfs {
        lower,
        upper: match config.upper {
            Upper::Memory => GuestUpper::Tmpfs { size_bytes: None },
            Upper::Disk { .. } => disk,
        },
        files: spec::files(&config.spec),
    }
}

fn has_limits(config: &Config) -> bool {
    let linux = config.spec.linux.as_ref();
    linux.is_some_and(|linux| linux.resources.is_some())
}

fn needs_group() -> Error {
    Error::Invalid(
        "limits need a control group, and this user has none to give: where systemd runs, use `systemd-run --user --scope \
         bulkhead ...`; else have root give you a group of version 2, or leave out --memory, --cpus and --pids-limit"
            .to_owned(),
    )
}

/// The image as a folder, made when there is no other way.
fn last_resort(config: &Config, layout: &Layout) -> LastResort {
    let (images, manifest) = (layout.images(), config.image.manifest.clone());
    Box::new(move || {
        let manifest: Digest = manifest
            .parse()
            .map_err(|_| format!("{manifest} is no digest"))?;
        let tree =
            Store::open(&images).and_then(|store| store.tree(&store.image_of(&manifest)?, &Silent));
        tree.map_err(|e| e.to_string())
    })
}

/// Waits until the guest's agent says that it is there.
fn wait_ready(
    watch: &Watch,
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
    let why = match watch.wait(machine, listener.as_fd(), Some(command.as_fd()), until)? {
        Event::Readable => return read_ready(listener, limit),
        Event::MachineEnded => machine.error(files, "its machine ended while it booted"),
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
        Error::Host { .. } => not_started(&machine.error(files, &error.to_string())),
        error => error,
    }
}
