//! What happens to containers, whoever asked for it.

use std::io;

use bulkhead_container::spec::{Process, Spec};
use bulkhead_container::{Container, Create, Spare, Stdio, TerminalSize};
use bulkhead_protocol as api;
use bulkhead_protocol::{CreateContainer, Event, EventKind, Exit};
use rustix::process::{Pid, Signal, kill_process};

use super::cgroups::SPARE;
use super::oom;
use super::rootfs::Root;
use super::volumes::Mounted;
use super::{Entry, ExecEntry, MAX_CONTAINERS, MAX_EXECS, Phase, disks, is_id, stdio};
use crate::guest::Guest;
use crate::http::Response;
use crate::server::slab::Key;
use crate::streams::program::{Ends, Program};
use crate::{clock, kmsg};

/// What an exec came to.
pub struct Executed {
    /// Its number.
    pub number: u64,
    /// Its streams.
    pub program: Key,
}

impl Guest {
    /// Makes a container. Its program waits for the start.
    pub fn create(&mut self, wanted: &CreateContainer<Spec>) -> Result<Key, Response> {
        let id = &wanted.id;
        if !is_id(id) {
            let message = "id: 1 to 128 of A-Za-z0-9_.-, the first a letter or a digit.";
            return Err(Response::unprocessable(message));
        }
        if self.shutdown().is_some() {
            return Err(Response::conflict("The guest is shutting down."));
        }
        if self.containers.find(id).is_some() {
            let message = format!("There is a container {id} already.");
            return Err(Response::conflict(&message));
        }
        if self.containers.entries.len() >= MAX_CONTAINERS {
            let message = format!("There are {MAX_CONTAINERS} containers already.");
            return Err(Response::unavailable(&message));
        }
        let mut spare = self.spare.take();
        let cgroup = match &spare {
            Some(spare) => spare.cgroup(),
            None => {
                let cgroup = self.containers.cgroups.of_container(id);
                cgroup.map_err(|e| cannot("set the control groups up", &e))?
            }
        };
        let process = wanted.spec.process.as_ref();
        let is_terminal = process.is_some_and(|p| p.terminal);
        let volumes = Mounted::mount(&wanted.volumes)?;
        let mut make = |rootfs| {
            let (stdio, ends) = streams(is_terminal, wanted.stdin, wanted.terminal, process)?;
            let create = Create {
                id,
                spec: &wanted.spec,
                rootfs,
                cgroup: cgroup.clone(),
                stdio,
                init: wanted.init,
                borrows: self.owns_machine,
                dies_with_parent: !self.owns_machine,
                bundle: None,
                gate: None,
                spare: spare.take(),
                preserved: Vec::new(),
            };
            Ok((Container::create(create), ends))
        };
        let mut root = Root::find(&wanted.rootfs, self.owns_machine)?;
        let (mut made, mut ends) = make(root.rootfs.clone())?;
        while let Err(error) = &made
            && root.replace(error, self.last_resort.as_ref())?
        {
            (made, ends) = make(root.rootfs.clone())?;
        }
        let mut container = made.map_err(|e| refusal(&e))?;
        drop((volumes, root));
        if self.owns_machine {
            // Most often the machine ends when the container has, and nobody needs to unmount anything.
            container.hold_mounts();
        }
        let ends = match container.take_terminal() {
            Some(master) => stdio::terminal(master).map_err(|e| cannot("use the terminal", &e))?,
            None => ends,
        };
        let key = self.register(id, container, ends)?;
        if let Some(entry) = self.containers.entries.get_mut(key) {
            entry.oom = oom::watch(&entry.container, &self.poll, key);
        }
        self.tell_of(key, EventKind::Created);
        Ok(key)
    }

    /// Makes the first process of a container that will probably be like this. One that was made before is ended.
    pub fn make_spare(&mut self, spec: &Spec) -> Result<(), Response> {
        if self.shutdown().is_some() {
            return Err(Response::conflict("The guest is shutting down."));
        }
        self.spare = None;
        let cgroup = self.containers.cgroups.of_container(SPARE);
        let cgroup = cgroup.map_err(|e| cannot("set the control groups up", &e))?;
        let Some(cgroup) = cgroup else {
            return Err(Response::conflict("There are no control groups here."));
        };
        // The next container's image will be in one of them.
        disks::look();
        self.spare = Some(Spare::new(spec, &cgroup).map_err(|e| refusal(&e))?);
        Ok(())
    }

    fn register(&mut self, id: &str, container: Container, ends: Ends) -> Result<Key, Response> {
        let program = Program::new(ends, false);
        let made = self.programs.insert_with(|_| Ok::<_, ()>(program));
        let program = made.and_then(Result::ok).ok_or_else(full)?;
        let pid = container.pid();
        let key = self.containers.insert(|order| Entry {
            id: id.to_owned(),
            container,
            program,
            pid: Some(pid),
            phase: Phase::Created,
            paused: false,
            created_ns: clock::unix_ns(),
            started_ns: None,
            finished_ns: None,
            failure: None,
            oom: None,
            waiting: Vec::new(),
            deleting: Vec::new(),
            order,
        });
        key.ok_or_else(full)
    }

    /// Starts a container's program.
    pub fn start(&mut self, key: Key) -> Result<(), Response> {
        let Some(entry) = self.containers.get_mut(key) else {
            return Err(full());
        };
        if entry.phase != Phase::Created {
            let message = format!("Container {} was started already.", entry.id);
            return Err(Response::conflict(&message));
        }
        if let Err(e) = entry.container.start() {
            entry.failure = Some((e.exit_code(), sentence(&e)));
            return Err(refusal(&e));
        }
        entry.phase = Phase::Running;
        entry.started_ns = Some(clock::unix_ns());
        self.tell_of(key, EventKind::Started);
        Ok(())
    }

    /// Executes a program in a running container; with streams for a client, or without.
    pub fn execute(
        &mut self,
        key: Key,
        wanted: &api::Exec<Process>,
        with_streams: bool,
    ) -> Result<Executed, Response> {
        if self.containers.running_execs() >= MAX_EXECS {
            let message = format!("There are {MAX_EXECS} programs in containers already.");
            return Err(Response::unavailable(&message));
        }
        let Some(entry) = self.containers.get_mut(key) else {
            return Err(full());
        };
        if entry.phase != Phase::Running || entry.paused || entry.pid.is_none() {
            let state = if entry.paused {
                "paused"
            } else {
                "not running"
            };
            let message = format!("Container {} is {state}.", entry.id);
            return Err(Response::conflict(&message));
        }
        let process = &wanted.process;
        let (stdio, ends) = if with_streams {
            streams(
                process.terminal,
                wanted.stdin,
                wanted.terminal,
                Some(process),
            )?
        } else if process.terminal {
            let message = "process.terminal: a program without streams has no terminal.";
            return Err(Response::unprocessable(message));
        } else {
            (Stdio::Null, Ends::default())
        };
        let (pid, ends, exit) = match entry.container.exec(process, stdio) {
            Ok(mut exec) => {
                let ends = match exec.take_terminal() {
                    Some(master) => stdio::terminal(master),
                    None => Ok(ends),
                };
                let ends = ends.map_err(|e| cannot("use the terminal", &e))?;
                (Some(exec.pid()), ends, None)
            }
            // The client has asked for a program's streams and end, and gets them.
            Err(e) if with_streams && e.exit_code() != 125 => {
                let exit = Exit {
                    code: e.exit_code(),
                    error: Some(sentence(&e)),
                    ..Exit::default()
                };
                (None, Ends::default(), Some(exit))
            }
            Err(e) => return Err(refusal(&e)),
        };
        let container_id = entry.id.clone();
        let mut program = Program::new(ends, true);
        program.exit = exit.clone();
        let made = self.programs.insert_with(|_| Ok::<_, ()>(program));
        let program = made.and_then(Result::ok).ok_or_else(full)?;
        let started = exit.is_none();
        let number = self.containers.insert_exec(ExecEntry {
            container_id,
            program,
            pid,
            exit,
            waiting: Vec::new(),
        });
        if started {
            self.tell_of_exec(number, EventKind::ExecStarted);
        }
        Ok(Executed { number, program })
    }

    /// A process that nobody else waits for has ended.
    pub fn child_ended(&mut self, pid: Pid, status: i32) {
        let Some(end) = bulkhead_container::Exit::from_wait_status(status) else {
            return;
        };
        let exit = Exit {
            code: end.code,
            signal: end.signal,
            ..Exit::default()
        };
        if let Some(key) = self.containers.container_of(pid) {
            self.container_ended(key, exit);
        } else if let Some(number) = self.containers.exec_of(pid) {
            self.exec_ended(number, exit);
        }
    }

    fn container_ended(&mut self, key: Key, mut exit: Exit) {
        let Some(entry) = self.containers.get_mut(key) else {
            return;
        };
        if let Some(watch) = &mut entry.oom {
            watch.ran_out();
            exit.oom_killed = watch.kills() > 0;
        }
        if let Some((code, error)) = entry.failure.take() {
            exit = Exit {
                code,
                error: Some(error),
                ..Exit::default()
            };
        }
        entry.pid = None;
        entry.paused = false;
        entry.phase = Phase::Stopped(exit.clone());
        entry.finished_ns = Some(clock::unix_ns());
        let answer = Response::json(200, &exit);
        let program = entry.program;
        for client in entry.waiting.split_off(0) {
            self.answers.push((client, copy_of(&answer)));
        }
        self.program_ended(program, exit);
        self.tell_of(key, EventKind::Exited);
        let deleting = self
            .containers
            .get(key)
            .is_some_and(|e| !e.deleting.is_empty());
        if deleting {
            self.delete(key);
        }
    }

    fn exec_ended(&mut self, number: u64, mut exit: Exit) {
        let Some(entry) = self.containers.execs.get_mut(&number) else {
            return;
        };
        let (program, id) = (entry.program, entry.container_id.clone());
        if let Some(key) = self.containers.find(&id)
            && let Some(watch) = self.containers.get_mut(key).and_then(|e| e.oom.as_mut())
            // Only then can it have been the reason.
            && exit.signal == Some(9)
        {
            exit.oom_killed = watch.ran_out() || watch.kills() > 0;
        }
        let Some(entry) = self.containers.execs.get_mut(&number) else {
            return;
        };
        entry.pid = None;
        entry.exit = Some(exit.clone());
        let answer = Response::json(200, &exit);
        for client in entry.waiting.split_off(0) {
            self.answers.push((client, copy_of(&answer)));
        }
        self.program_ended(program, exit);
        self.tell_of_exec(number, EventKind::ExecExited);
    }

    /// Deletes a container that has ended.
    pub fn delete(&mut self, key: Key) {
        let Some(entry) = self.containers.get_mut(key) else {
            return;
        };
        let clients = entry.deleting.split_off(0);
        let response = match entry.container.delete() {
            Ok(()) => {
                let program = entry.program;
                self.tell_of(key, EventKind::Deleted);
                self.containers.remove(key);
                self.containers.cgroups.make_spare();
                if let Some(program) = self.programs.remove(program) {
                    for stream in program.attached {
                        self.drop_stream(stream);
                    }
                }
                Response::done()
            }
            Err(e) => refusal(&e),
        };
        for client in clients {
            self.answers.push((client, copy_of(&response)));
        }
    }

    /// Makes sure that every container hears of the guest's end: what is stopped cannot, and what was
    /// never started has nothing to put in order.
    pub fn wake_containers(&mut self) {
        self.spare = None;
        for key in self.containers.keys() {
            let Some(entry) = self.containers.get_mut(key) else {
                continue;
            };
            let result = if entry.paused {
                entry.paused = false;
                entry.container.resume()
            } else if entry.phase == Phase::Created {
                entry.container.kill(libc::SIGKILL)
            } else {
                continue;
            };
            if let Err(e) = result {
                kmsg::error(format_args!("container {}: {e}", entry.id));
            }
        }
    }

    /// Sends a signal to the first process of every container; with that, SIGKILL ends the others.
    pub fn signal_containers(&mut self, signal: i32) {
        for key in self.containers.keys() {
            if let Some(entry) = self.containers.get(key)
                && entry.pid.is_some()
                && let Err(e) = entry.container.kill(signal)
            {
                kmsg::error(format_args!("container {}: {e}", entry.id));
            }
        }
    }

    /// Tells whoever listens what has happened to a container.
    pub fn tell_of(&mut self, key: Key, event: EventKind) {
        if self.subscribers.is_empty() {
            return;
        }
        let Some(entry) = self.containers.get(key) else {
            return;
        };
        let exit = match &entry.phase {
            Phase::Stopped(exit) if event == EventKind::Exited => Some(exit.clone()),
            _ => None,
        };
        let event = Event {
            event,
            time_ns: clock::unix_ns(),
            container_id: Some(entry.id.clone()),
            exec_id: None,
            exit,
        };
        self.publish(&event);
    }

    fn tell_of_exec(&mut self, number: u64, event: EventKind) {
        if self.subscribers.is_empty() {
            return;
        }
        if let Some(entry) = self.containers.execs.get(&number) {
            let event = Event {
                event,
                time_ns: clock::unix_ns(),
                container_id: Some(entry.container_id.clone()),
                exec_id: Some(number.to_string()),
                exit: entry.exit.clone(),
            };
            self.publish(&event);
        }
    }
}

/// Sends a signal to one of the agent's own children, which has not been reaped.
pub fn signal(pid: Pid, signal: u8) -> io::Result<()> {
    // SAFETY: any number can be tried: the kernel refuses those that are no signals.
    let signal = unsafe { Signal::from_raw_unchecked(signal.into()) };
    Ok(kill_process(pid, signal)?)
}

/// A program's streams: its ends, and ours but for a terminal's.
fn streams(
    is_terminal: bool,
    stdin: bool,
    size: Option<api::TerminalSize>,
    process: Option<&Process>,
) -> Result<(Stdio, Ends), Response> {
    if !is_terminal {
        return stdio::pipes(stdin).map_err(|e| cannot("make pipes", &e));
    }
    let console = process.and_then(|p| p.console_size);
    let size = match (size, console) {
        (Some(size), _) => TerminalSize {
            rows: size.rows,
            columns: size.columns,
        },
        (None, Some(size)) => TerminalSize {
            rows: size.height,
            columns: size.width,
        },
        (None, None) => TerminalSize::default(),
    };
    Ok((Stdio::Terminal(size), Ends::default()))
}

/// The response for what the container crate refuses.
pub fn refusal(error: &bulkhead_container::Error) -> Response {
    use bulkhead_container::Error;
    let message = sentence(error);
    match error {
        Error::Invalid { .. } | Error::NotFound { .. } | Error::NotExecutable { .. } => {
            Response::unprocessable(&message)
        }
        Error::Ended { .. } | Error::Started { .. } | Error::NoCgroup { .. } => {
            Response::conflict(&message)
        }
        _ => Response::internal(&message),
    }
}

/// An error as the API has them: with a capital letter, and a full stop.
fn sentence(error: &bulkhead_container::Error) -> String {
    let text = error.to_string();
    // A field of the configuration keeps its name.
    if matches!(error, bulkhead_container::Error::Invalid { .. }) {
        return text + ".";
    }
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}

fn cannot(what: &str, error: &io::Error) -> Response {
    Response::internal(&format!("Cannot {what}: {error}."))
}

fn full() -> Response {
    Response::unavailable("The agent has no room for another program.")
}

fn copy_of(response: &Response) -> Response {
    Response {
        body: response.body.clone(),
        ..*response
    }
}
