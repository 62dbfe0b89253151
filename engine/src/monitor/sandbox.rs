//! One sandbox, from the start of its machine to its end.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use bulkhead_agent::containers::rootfs::LastResort;
use bulkhead_image::progress::Silent;
use bulkhead_image::{Digest, Store};
use bulkhead_protocol::frame::{Decoder, Kind, Part};
use bulkhead_protocol::{CreateContainer, Exit, Lower, Rootfs, Upper as GuestUpper};
use jiff::Timestamp;

use super::Task;
use super::events::{Event, Watch, watch_signals};
use super::machine::{HostAgent, Machine};
use super::message::{Message, may_go, tell};
use super::starting::{Obstacle, Starting, record_processes};
use super::turn::Turn;
use crate::agent::{Agent, Attach, printable};
use crate::cgroup;
use crate::error::{Error, Failure, cannot};
use crate::http::Upgraded;
use crate::layout::Layout;
use crate::log::{Stream, Writer};
use crate::record::{Config, Files, Isolation, State, Status, Upper};
use crate::spec;
use crate::templates;
use crate::vm::{IMAGE_SERIAL, UPPER_SERIAL};
use crate::volumes::Attached;

/// Exit code of a program that was killed with its machine.
const KILLED: u8 = 128 + 9;

/// Why a sandbox ends before its time.
const MACHINE_ENDED: &str = "its machine ended";
/// Why it ends when its monitor gets a signal.
pub const TOLD_TO_END: &str = "its monitor was told to end";
/// Why it ends when nobody wants it any more.
pub const COMMAND_ENDED: &str = "the command that started it has ended";

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
    /// Until the program runs.
    turn: Option<Turn>,
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
        let up = match config.isolation {
            Isolation::Vm => {
                let starting = Starting {
                    config,
                    files,
                    layout,
                    watch: &watch,
                    command,
                };
                Some(machine(&starting, &mut volumes)?)
            }
            Isolation::Container => None,
        };
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
        let mut turn = None;
        let (machine, stream) = match up {
            Some((mut machine, its_turn)) => {
                turn = its_turn;
                let attached = agent
                    .create(&wanted)
                    .and_then(|_| agent.attach(&config.id, Attach { stdin: false }));
                let stream = attached.map_err(|e| explain(e, &mut machine, files))?;
                (machine, stream)
            }
            None => {
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
            turn,
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
        self.turn = None;
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
        let (machine, fd) = (Some(&self.machine), Some(fd.as_fd()));
        self.watch.wait(machine, fd, None, None)
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

/// The container's virtual machine: restored if that is wanted and can be done, else booted.
fn machine(
    starting: &Starting<'_>,
    volumes: &mut Attached,
) -> Result<(Machine, Option<Turn>), Error> {
    let turn = || starting.turn().map_err(Obstacle::into_error);
    if templates::is_wanted(starting.config) {
        // Before its turn: whoever makes the template has none, and must not have to wait for those who wait for it.
        let template = starting.template(volumes);
        let has_template = template.is_ok();
        let turn = turn()?;
        match template.and_then(|template| starting.restore(volumes, template)) {
            Ok(machine) => return Ok((machine, turn)),
            Err(Obstacle::Over(error)) => return Err(error),
            // For whoever wonders why it took long; the container is none the worse for it.
            Err(Obstacle::Failed(why)) => eprintln!("bulkhead: booting, not restoring: {why}"),
        }
        if has_template {
            // A file server serves one machine, and may have seen that one.
            volumes.reopen(starting.config, starting.files, starting.layout)?;
        }
        return Ok((starting.boot(volumes)?, turn));
    }
    let turn = turn()?;
    Ok((starting.boot(volumes)?, turn))
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

/// Why a container does not run.
pub fn not_started(why: &str) -> Error {
    Error::Invalid(format!("cannot start the container: {why}"))
}

/// An error that may well be the machine's end.
fn explain(error: Error, machine: &mut Machine, files: &Files) -> Error {
    match error {
        Error::Host { .. } => not_started(&machine.error(files, &error.to_string())),
        error => error,
    }
}
