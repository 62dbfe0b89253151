//! `create` and `run`: containers from bundles.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use bulkhead_container::spec::Process;
use bulkhead_container::{Bundle, Container, Create, Error, Rootfs, Stdio};
use rustix::process::{getuid, set_child_subreaper};

use crate::arguments::Arguments;
use crate::bundle::Source;
use crate::cgroup;
use crate::clock;
use crate::descriptors::Descriptors;
use crate::failure::{Failure, Outcome, cannot, warn};
use crate::foreground::Foreground;
use crate::place::{Kept, Place};
use crate::systemd::Scope;
use crate::terminal;
use crate::{Globals, lifecycle};

/// What `create` and `run` are asked for.
struct Wanted<'a> {
    arguments: &'a Arguments,
    place: Place,
    source: Source,
    descriptors: Descriptors,
    /// The program is joined with this process's terminal.
    joins_terminal: bool,
}

pub fn create(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let wanted = Wanted::read(globals, arguments, id, false)?;
    let (container, _) = wanted.make(globals, true)?;
    wanted.tell(&container).inspect_err(|_| wanted.undo())?;
    Ok(0)
}

pub fn run(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let detach = arguments.has("detach");
    let wanted = Wanted::read(globals, arguments, id, !detach)?;
    let foreground = match detach {
        true => None,
        false => {
            if !arguments.has("no-subreaper") {
                // What the container leaves behind is ours to collect.
                set_child_subreaper(Some(rustix::process::getpid()))
                    .map_err(cannot("adopt the container's orphans"))?;
            }
            Some(Foreground::prepare()?)
        }
    };
    let (mut container, master) = wanted.make(globals, false)?;
    let started = wanted
        .tell(&container)
        .and_then(|()| container.start().map_err(program_failure));
    if let Err(failure) = started {
        let _ = container.delete();
        wanted.undo();
        return Err(failure);
    }
    let Some(foreground) = foreground else {
        return Ok(0);
    };
    let kill = |signal| drop(container.kill(signal));
    let code = foreground.stay(container.pidfd(), master, kill)?;
    if !arguments.has("keep") {
        container.delete()?;
        wanted.place.remove()?;
    }
    Ok(code)
}

/// `run` ends as a shell does whose command cannot be executed.
pub fn program_failure(error: Error) -> Failure {
    let code = match error.exit_code() {
        125 => 1,
        code => code,
    };
    Failure {
        code,
        ..Failure::from(error)
    }
}

impl<'a> Wanted<'a> {
    fn read(
        globals: &Globals,
        arguments: &'a Arguments,
        id: &str,
        in_foreground: bool,
    ) -> Outcome<Wanted<'a>> {
        // Nothing else is open yet.
        let descriptors = Descriptors::read(arguments)?;
        let place = Place::new(&globals.root, id)?;
        let bundle = Path::new(arguments.value("bundle").unwrap_or("."));
        let source = Source::read(bundle, arguments.value("config").map(Path::new))?;
        let wants_terminal = source
            .spec
            .process
            .as_ref()
            .is_some_and(|process| process.terminal);
        let has_socket = arguments.value("console-socket").is_some();
        let problem = match (wants_terminal, has_socket) {
            (true, false) if !in_foreground => {
                "process.terminal is true: --console-socket must say who takes the terminal"
            }
            (false, true) => "there is a --console-socket, but process.terminal is false",
            _ => "",
        };
        if !problem.is_empty() {
            return Err(problem.to_owned().into());
        }
        Ok(Wanted {
            arguments,
            place,
            source,
            descriptors,
            joins_terminal: wants_terminal && !has_socket,
        })
    }

    /// Makes the container, up to where it waits. `apart`: it waits for another process.
    fn make(&self, globals: &Globals, apart: bool) -> Outcome<(Container, Option<OwnedFd>)> {
        let locked = self.place.claim()?;
        let made = self.make_in_place(globals, apart);
        if made.is_err() {
            let _ = self.place.remove();
        }
        drop(locked);
        made
    }

    fn make_in_place(
        &self,
        globals: &Globals,
        apart: bool,
    ) -> Outcome<(Container, Option<OwnedFd>)> {
        let Source { spec, rootfs, .. } = &self.source;
        let mut spec = spec.clone();
        if let Some(process) = &mut spec.process {
            self.descriptors.tell(process);
        }
        let group = cgroup::of(globals, &spec, &self.place.id)?;
        let create = Create {
            id: &self.place.id,
            spec: &spec,
            rootfs: Rootfs::Directory(rootfs.clone()),
            cgroup: group.location,
            stdio: stdio(spec.process.as_ref()),
            init: false,
            borrows: false,
            dies_with_parent: false,
            bundle: Some(Bundle {
                path: self.source.bundle.clone(),
                warn,
            }),
            gate: apart.then(|| self.place.gate()),
            spare: None,
            preserved: self.descriptors.numbers.clone(),
        };
        let scope = group.held.as_ref().map(|held| held.scope.clone());
        let made = Container::create(create).map_err(Failure::from);
        // The container's first process is in there now, if it is anywhere.
        drop(group.held);
        let kept = made.and_then(|mut container| {
            let kept = self.keep(&mut container, scope.clone());
            kept.inspect_err(|_| drop(container.delete()))
                .map(|master| (container, master))
        });
        if let (Err(_), Some(scope)) = (&kept, scope) {
            let _ = scope.stop();
        }
        kept
    }

    /// Writes down what was made, and hands the terminal over.
    fn keep(&self, container: &mut Container, scope: Option<Scope>) -> Outcome<Option<OwnedFd>> {
        let kept = Kept {
            record: container.record()?,
            bundle: self.source.bundle.clone(),
            rootfs: self.source.rootfs.clone(),
            created: clock::now(),
            owner: getuid().as_raw(),
            scope,
        };
        self.place.keep(&kept, &self.source.text)?;
        let master = container.take_terminal();
        match (self.arguments.value("console-socket"), master) {
            (Some(socket), Some(master)) => {
                terminal::send(&master, Path::new(socket)).map(|()| None)
            }
            (_, master) => Ok(master.filter(|_| self.joins_terminal)),
        }
    }

    /// Tells whoever called which process it is.
    fn tell(&self, container: &Container) -> Outcome<()> {
        write_pid(self.arguments, container.pid().as_raw_pid())
    }

    /// Nothing is left of what was made.
    fn undo(&self) {
        let deleted = self.place.whole().and_then(|kept| {
            let (opened, _) = self.place.open(&kept, false)?;
            lifecycle::end(opened)
        });
        let _ = deleted.and_then(|()| self.place.remove());
    }
}

/// Standard input, output and error are ours, unless it wants a terminal.
pub fn stdio(process: Option<&Process>) -> Stdio {
    match process.filter(|process| process.terminal) {
        Some(process) => Stdio::Terminal(terminal::size(process)),
        None => Stdio::Inherit,
    }
}

/// Into the file that was asked for: all of it or nothing, since somebody may wait for it.
pub fn write_pid(arguments: &Arguments, pid: i32) -> Outcome<()> {
    let Some(file) = arguments.value("pid-file") else {
        return Ok(());
    };
    let file = Path::new(file);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = file.with_file_name(format!(".{name}"));
    fs::write(&new, pid.to_string())
        .and_then(|()| fs::rename(&new, file))
        .map_err(cannot(format_args!("write {}", file.display())))
}
