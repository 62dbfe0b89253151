//! `bulkhead-runc`: a runtime as Podman, Docker and containerd start containers by (runtime-spec runtime.md#operations, and the
//! command line that runc made common), over the crate `container`.
//!
//! Each command is a process that ends with it. Between commands a container is its processes and a directory
//! (`place`); nothing of ours stays with it.

#![forbid(unsafe_code)]

mod arguments;
mod bundle;
mod cgroup;
mod clock;
mod create;
mod descriptors;
mod events;
mod exec;
mod failure;
mod features;
mod foreground;
mod lifecycle;
mod place;
mod protection;
mod show;
mod signals;
mod systemd;
mod template;
mod terminal;
mod update;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use arguments::Arguments;
use failure::{Failure, Log, Outcome};

/// What is said before the command.
#[derive(Debug)]
pub struct Globals {
    /// The directory of all containers.
    root: PathBuf,
    /// More is said of what is done.
    debug: bool,
    /// Control groups are asked of systemd.
    systemd: bool,
}

fn main() -> ExitCode {
    let mut log = Log::default();
    match run(&mut log) {
        Ok(code) => ExitCode::from(code),
        Err(Failure { message, code }) => {
            log.error(&message);
            ExitCode::from(code)
        }
    }
}

fn run(log: &mut Log) -> Outcome<u8> {
    let mut words = std::env::args().skip(1);
    let global = Arguments::read(&mut words, usage::GLOBAL, 1)?;
    log.file = global.value("log").map(PathBuf::from);
    log.json = match global.value("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(format!("--log-format is text or json, not {other:?}").into()),
    };
    log.check().inspect_err(|_| log.file = None)?;
    let manager = global.value("cgroup-manager");
    let globals = Globals {
        root: global.value("root").unwrap_or("/run/bulkhead-runc").into(),
        debug: global.has("debug"),
        systemd: global.has("systemd-cgroup") || manager == Some("systemd"),
    };
    let mut words = global.words.iter().cloned();
    let command = words.next();
    if global.has("version") || command.as_deref() == Some("version") {
        show::print(&usage::version())?;
        return Ok(0);
    }
    let Some(command) = command.filter(|name| name != "help" && !global.has("help")) else {
        show::print(usage::HELP)?;
        return Ok(0);
    };
    let known = usage::COMMANDS.iter().find(|known| known.name == command);
    let known = known.ok_or_else(|| {
        format!("there is no command {command:?}; bulkhead-runc --help lists them")
    })?;
    let arguments = Arguments::read(&mut words, known.options, known.words)?;
    if arguments.has("help") {
        show::print(usage::HELP)?;
        return Ok(0);
    }
    perform(&globals, &command, &arguments)
}

fn perform(globals: &Globals, command: &str, arguments: &Arguments) -> Outcome<u8> {
    match command {
        "list" => return show::list(globals, arguments),
        "features" => return features::print(),
        "spec" => return template::write(arguments),
        systemd::HOLD => return systemd::hold(),
        _ => {}
    }
    let id = arguments
        .words
        .first()
        .ok_or_else(|| format!("{command} needs the ID of a container"))?;
    match command {
        "create" => {
            protection::ensure()?;
            create::create(globals, arguments, id)
        }
        "run" => {
            protection::ensure()?;
            create::run(globals, arguments, id)
        }
        "exec" => {
            protection::ensure()?;
            exec::exec(globals, arguments, id)
        }
        "start" => {
            // Hooks may be run in the container.
            protection::ensure()?;
            lifecycle::start(globals, id)
        }
        "state" => show::state(globals, id),
        "kill" => lifecycle::kill(globals, arguments, id),
        "delete" => lifecycle::delete(globals, arguments, id),
        "pause" => lifecycle::freeze(globals, id, true),
        "resume" => lifecycle::freeze(globals, id, false),
        "ps" => show::processes(globals, arguments, id),
        "update" => update::update(globals, arguments, id),
        "events" => events::events(globals, arguments, id),
        other => Err(format!("there is no command {other:?}").into()),
    }
}
