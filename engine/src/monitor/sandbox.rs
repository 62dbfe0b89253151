//! One sandbox, from the start of its machine to its end.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use bulkhead_agent::containers::rootfs::LastResort;
use bulkhead_image::progress::Silent;
use bulkhead_image::{Digest, Store};
use bulkhead_protocol::{CreateContainer, Exit, Lower, Rootfs, Upper as GuestUpper};
use jiff::Timestamp;
use rustix::event::PollFlags;

use super::Task;
use super::checkpoint::{Checkpointed, Moment, forget_disk, put_disk_back};
use super::events::{Event, Watch, watch_signals};
use super::machine::{HostAgent, Machine};
use super::message::{Go, Message, may_go, tell};
use super::output::{Output, Over};
use super::request::{self, Asked};
use super::starting::{Obstacle, Starting, record_processes};
use super::turn::Turn;
use crate::agent::{Agent, Attach, clause};
use crate::cgroup;
use crate::error::{Error, Failure, cannot};
use crate::http::{Conversation, Upgraded};
use crate::layout::Layout;
use crate::log::Writer;
use crate::record::{Config, Files, Isolation, State, Status, Upper};
use crate::spec;
use crate::templates;
use crate::vm::{IMAGE_SERIAL, UPPER_SERIAL};
use crate::volumes::Attached;

/// Exit code of a program that was killed with its machine.
pub(super) const KILLED: u8 = 128 + 9;

/// Why a sandbox ends before its time.
const MACHINE_ENDED: &str = "its machine ended";
/// Why it ends when its monitor gets a signal.
pub const TOLD_TO_END: &str = "its monitor was told to end";
/// Why it ends when nobody wants it any more.
pub const COMMAND_ENDED: &str = "the command that started it has ended";

/// A sandbox that is up.
pub struct Sandbox<'a> {
    pub(super) config: &'a Config,
    pub(super) files: &'a Files,
    pub(super) agent: Agent,
    watch: Watch,
    machine: Machine,
    pub(super) output: Output,
    /// What it was, if it goes on from a checkpoint.
    moment: Option<Moment>,
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
        // A monitor that was killed may have left it.
        put_disk_back(files, config.upper)?;
        let mut volumes = Attached::open(config, files, layout)?;
        let log = Writer::open(&files.log()).map_err(cannot("open the container's log"))?;
        let watch = Watch::new(watch_signals()?);
        let mut moment = None;
        let up = match config.isolation {
            Isolation::Vm => {
                let starting = Starting {
                    config,
                    files,
                    layout,
                    watch: &watch,
                    command,
                };
                Some(match &task.checkpoint {
                    None => machine(&starting, &mut volumes)?,
                    Some(origin) => {
                        let turn = starting.turn().map_err(Obstacle::into_error)?;
                        let (machine, was) = starting.go_on(origin)?;
                        moment = Some(was);
                        Up {
                            machine,
                            turn,
                            talk: None,
                        }
                    }
                })
            }
            Isolation::Container => None,
        };
        let wanted = CreateContainer {
            id: config.guest_id().to_owned(),
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
            Some(up) => {
                let mut machine = up.machine;
                turn = up.turn;
                let attach = |()| agent.attach(config.guest_id(), Attach::KEEPER);
                let attached = match (moment, up.talk) {
                    (None, Some(talk)) => agent.create_in(talk, &wanted),
                    (None, None) => agent.create(&wanted).map(drop).and_then(attach),
                    (Some(_), _) => fit_terminal(&agent, config, task).and_then(attach),
                };
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
            output: Output::new(stream, log),
            moment,
            volumes,
            turn,
        })
    }

    /// Runs the container's program to its end, which is recorded.
    pub fn run(&mut self, state: &mut State, command: &UnixStream) -> Result<Exit, Error> {
        tell(command, &Message::Created);
        match self.wait_for(command)? {
            Event::Ready => match may_go(command) {
                Some(Go { output: None }) => {}
                Some(Go {
                    output: Some(output),
                }) => self.output.relay_to(output),
                None => return Err(not_started(COMMAND_ENDED)),
            },
            Event::CommandEnded => return Err(not_started(COMMAND_ENDED)),
            Event::Stop => return Err(not_started(TOLD_TO_END)),
            Event::MachineEnded | Event::Nothing | Event::Request => {
                let why = self.machine.error(self.files, MACHINE_ENDED);
                return Err(not_started(&why));
            }
        }
        match self.moment {
            None => self.start_program()?,
            Some(moment) => {
                let gone_on = self.go_on(moment);
                gone_on.map_err(|e| explain(e, &mut self.machine, self.files))?;
            }
        }
        self.machine.keep_working_set(self.files);
        if self.config.isolation == Isolation::Vm {
            // Whoever knows that it runs may ask.
            self.watch.requests = Some(request::listen(self.files)?);
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

        let End { exit, checkpoint } = self.follow();
        self.watch.requests = None;
        self.output.finish();
        state.status = Status::Exited;
        state.finished = Some(Timestamp::now());
        state.exit_code = exit.code;
        state.oom_killed = exit.oom_killed;
        state.error = exit.error.clone();
        state.checkpointed = checkpoint.as_ref().map(|kept| kept.name.clone());
        self.record(state)?;
        if let Some(kept) = checkpoint {
            // Its processes stand still; with their end whoever is attached hears of it.
            let _ = self.agent.delete(self.config.guest_id());
            kept.answer();
        }
        Ok(exit)
    }

    /// Lets the processes of a restored container go on, unless their user held them.
    fn go_on(&self, moment: Moment) -> Result<(), Error> {
        if moment.paused {
            let held = File::create(self.files.paused()).map(drop);
            held.map_err(cannot("record that the container is paused"))?;
        }
        // From here on that disk is the container's.
        forget_disk(self.files)?;
        match moment.paused {
            true => Ok(()),
            false => self.agent.resume(self.config.guest_id()),
        }
    }

    /// Has the program executed, and waits until it is.
    fn start_program(&mut self) -> Result<(), Error> {
        let asked = self.output.start();
        asked.map_err(|e| {
            explain(
                cannot("talk to the agent")(e),
                &mut self.machine,
                self.files,
            )
        })?;
        while !self.output.has_started() {
            match self.output.over() {
                None => {}
                // It was tried, and failed: the container has ended, and says so.
                Some(Over::Exit(exit)) => {
                    let message = exit.error.as_deref().unwrap_or("its program has ended");
                    return Err(Error::Start(Failure {
                        exit_code: exit.code,
                        message: clause(message.trim_end_matches('.')),
                    }));
                }
                Some(Over::Damaged(why)) => return Err(not_started(&why)),
                Some(Over::Closed) => return Err(self.not_started_as_it_ended()),
            }
            match self.wait_for_output()? {
                Event::Stop => return Err(not_started(TOLD_TO_END)),
                Event::Ready => {}
                _ => return Err(self.not_started_as_it_ended()),
            }
        }
        Ok(())
    }

    fn not_started_as_it_ended(&mut self) -> Error {
        self.machine.wait_last_moment();
        not_started(&self.machine.error(self.files, MACHINE_ENDED))
    }

    /// Ends the machine; not before the command has taken what the container wrote, if it is attached.
    pub fn end(mut self, attached: bool, command: &UnixStream) {
        while let Some(held) = self.output.held() {
            let room = Some((held, PollFlags::OUT));
            let waited = self
                .watch
                .wait_until(None, room, Some(command.as_fd()), None);
            match waited {
                Ok(Event::Ready) => self.output.relay(),
                _ => break,
            }
        }
        self.output.end_relay();
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
            let _ = self.agent.delete(self.config.guest_id());
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

    /// Takes the container's output until its program ends, or the container with a checkpoint.
    fn follow(&mut self) -> End {
        loop {
            match self.output.over() {
                None => {}
                Some(Over::Exit(exit)) => return exit.into(),
                Some(Over::Damaged(why)) => return self.lost(&why).into(),
                Some(Over::Closed) => return self.lost_machine().into(),
            }
            match self.wait_for_output() {
                Ok(Event::Ready) => {}
                Ok(Event::Request) => {
                    let asked = self.watch.requests.as_ref().and_then(Asked::accept);
                    let checkpoint = asked.and_then(|asked| self.checkpoint(asked));
                    if checkpoint.is_some() {
                        return End {
                            exit: Exit::default(),
                            checkpoint,
                        };
                    }
                }
                Ok(Event::Stop) => return self.lost(TOLD_TO_END).into(),
                Ok(_) => return self.lost_machine().into(),
                Err(e) => return self.lost(&e.to_string()).into(),
            }
        }
    }

    /// Waits for output and takes it; not before what was taken is sent on.
    fn wait_for_output(&mut self) -> Result<Event, Error> {
        let held = self.output.held();
        let next = held.map_or((self.output.as_fd(), PollFlags::IN), |fd| {
            (fd, PollFlags::OUT)
        });
        let machine = Some(&self.machine);
        let event = self.watch.wait_until(machine, Some(next), None, None)?;
        match (event, held.is_some()) {
            (Event::Ready, true) => self.output.relay(),
            (Event::Ready, false) => self.output.take(),
            _ => {}
        }
        Ok(event)
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

/// How a container has ended.
struct End {
    exit: Exit,
    /// If it has ended with a checkpoint.
    checkpoint: Option<Checkpointed>,
}

impl From<Exit> for End {
    fn from(exit: Exit) -> Self {
        End {
            exit,
            checkpoint: None,
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

/// A machine that is up.
struct Up {
    machine: Machine,
    turn: Option<Turn>,
    /// A conversation that has begun with its agent.
    talk: Option<Conversation>,
}

/// The container's virtual machine: restored if that is wanted and can be done, else booted.
fn machine(starting: &Starting<'_>, volumes: &mut Attached) -> Result<Up, Error> {
    let turn = || starting.turn().map_err(Obstacle::into_error);
    if let Some(own) = &starting.config.template {
        let turn = turn()?;
        let (machine, talk) = starting.restore_own(volumes, own)?;
        return Ok(Up {
            machine,
            turn,
            talk: Some(talk),
        });
    }
    if templates::is_wanted(starting.config) {
        // Before its turn: whoever makes the template has none, and must not have to wait for those who wait for it.
        let template = starting.template(volumes);
        let has_template = template.is_ok();
        let turn = turn()?;
        match template.and_then(|template| starting.restore(volumes, template)) {
            Ok((machine, talk)) => {
                return Ok(Up {
                    machine,
                    turn,
                    talk: Some(talk),
                });
            }
            Err(Obstacle::Over(error)) => return Err(error),
            // For whoever wonders why it took long; the container is none the worse for it.
            Err(Obstacle::Failed(why)) => eprintln!("bulkhead: booting, not restoring: {why}"),
        }
        if has_template {
            // A file server serves one machine, and may have seen that one.
            volumes.reopen(starting.config, starting.files, starting.layout)?;
        }
        return Ok(Up {
            machine: starting.boot(volumes)?,
            turn,
            talk: None,
        });
    }
    let turn = turn()?;
    Ok(Up {
        machine: starting.boot(volumes)?,
        turn,
        talk: None,
    })
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

/// Gives the terminal of a restored container the size of the user's.
fn fit_terminal(agent: &Agent, config: &Config, task: &Task) -> Result<(), Error> {
    match task.terminal {
        Some(size) => agent.resize(config.guest_id(), size),
        None => Ok(()),
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
