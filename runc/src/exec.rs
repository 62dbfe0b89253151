//! `exec`: a further program in a container that runs.

use std::fs;

use bulkhead_container::spec::{Capabilities, Process};
use bulkhead_container::{ExecOptions, Opened};
use std::path::Path;

use crate::Globals;
use crate::arguments::Arguments;
use crate::create::{program_failure, stdio, write_pid};
use crate::descriptors::Descriptors;
use crate::failure::{Outcome, cannot};
use crate::foreground::Foreground;
use crate::lifecycle::refuse;
use crate::place::{Place, Status};
use crate::terminal;

pub fn exec(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    // Nothing else is open yet.
    let descriptors = Descriptors::read(arguments)?;
    let place = Place::new(&globals.root, id)?;
    let kept = place.whole()?;
    let (opened, spec) = place.open(&kept, true)?;
    let status = place.status(&kept, &opened);
    let container = match opened {
        Opened::Alive(container) if status == Status::Running || status == Status::Paused => {
            container
        }
        _ => {
            return Err(refuse(
                id,
                "execute in",
                "container not running: it is",
                status,
            ));
        }
    };
    let mut process = process(arguments, spec.process)?;
    descriptors.tell(&mut process);
    let socket = arguments.value("console-socket").map(Path::new);
    let detach = arguments.has("detach");
    if process.terminal && detach && socket.is_none() {
        let problem = "a terminal is wanted: --console-socket must say who takes it";
        return Err(problem.to_owned().into());
    }
    if globals.debug
        && let Some(list) = process
            .exec_cpu_affinity
            .as_ref()
            .and_then(|a| a.initial.as_deref())
    {
        eprintln!(
            "bulkhead-runc: debug: CPU affinity: {:#x}",
            processors(list)
        );
    }
    let foreground = match detach {
        true => None,
        false => Some(Foreground::prepare()?),
    };
    let stdio = stdio(Some(&process));
    let group = arguments.value("cgroup").map(group).transpose()?;
    let options = ExecOptions {
        preserved: &descriptors.numbers,
        group: group.filter(|path| *path != Path::new("/")),
        even_paused: arguments.has("ignore-paused"),
    };
    let executed = container.exec_with(&process, stdio, &options);
    let mut executed = executed.map_err(program_failure)?;
    let mut master = executed.take_terminal();
    let told = write_pid(arguments, executed.pid().as_raw_pid()).and_then(|()| {
        match (socket, master.take()) {
            (Some(socket), Some(taken)) => terminal::send(&taken, socket),
            (_, taken) => {
                master = taken;
                Ok(())
            }
        }
    });
    if let Err(failure) = told {
        let _ = executed.kill(9);
        return Err(failure);
    }
    match foreground {
        None => Ok(0),
        Some(foreground) => {
            let kill = |signal| drop(executed.kill(signal));
            foreground.stay(executed.pidfd(), master, kill)
        }
    }
}

/// A control group below the container's own; `/` is that.
fn group(path: &str) -> Result<&Path, String> {
    if path.contains(':') {
        return Err(format!(
            "--cgroup {path}: it is the same for all controllers here"
        ));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("--cgroup {path}: `..` components are not allowed"));
    }
    Ok(Path::new(path))
}

/// A list like `0-3,8` as a mask of the first 64.
fn processors(list: &str) -> u64 {
    let bits = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().unwrap_or(u32::MAX);
        (number(first)..=number(last).min(63)).fold(0, |bits, n| bits | 1 << n)
    };
    list.split(',').fold(0, |all, part| all | bits(part))
}

/// What is to be executed: as a file says, or as the container's own program with changes.
fn process(arguments: &Arguments, own: Option<Process>) -> Outcome<Process> {
    if let Some(file) = arguments.value("process") {
        let failed = || format!("read {file}");
        let text = fs::read(file).map_err(cannot(failed()))?;
        let mut process: Process = serde_json::from_slice(&text).map_err(cannot(failed()))?;
        process.terminal |= arguments.has("tty");
        return Ok(process);
    }
    let args: Vec<String> = arguments.words.iter().skip(1).cloned().collect();
    if args.is_empty() {
        return Err("exec needs a program, or --process".to_owned().into());
    }
    let mut process = own.unwrap_or_default();
    process.args = args;
    process.terminal = arguments.has("tty");
    process.console_size = None;
    if let Some(cwd) = arguments.value("cwd") {
        process.cwd = cwd.into();
    }
    if process.cwd.is_empty() {
        process.cwd = "/".into();
    }
    for variable in arguments.all("env") {
        let name = variable.split('=').next().unwrap_or_default();
        let is_it = |other: &String| other.split('=').next() == Some(name);
        process.env.retain(|other| !is_it(other));
        process.env.push(variable.to_owned());
    }
    process.no_new_privileges |= arguments.has("no-new-privs");
    if let Some(user) = arguments.value("user") {
        set_user(&mut process, user)?;
    }
    for group in arguments.all("additional-gids").flat_map(|l| l.split(',')) {
        let number = group
            .parse()
            .map_err(|_| format!("--additional-gids are numbers, not {group:?}"))?;
        process.user.additional_gids.push(number);
    }
    let added: Vec<&str> = arguments.all("cap").flat_map(|l| l.split(',')).collect();
    if !added.is_empty() {
        add_capabilities(&mut process, &added);
    }
    Ok(process)
}

fn set_user(process: &mut Process, user: &str) -> Result<(), String> {
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| format!("--user is UID or UID:GID, not {user:?}"))
    };
    let (uid, gid) = match user.split_once(':') {
        Some((uid, gid)) => (number(uid)?, Some(number(gid)?)),
        None => (number(user)?, None),
    };
    process.user.username = None;
    process.user.uid = uid;
    if let Some(gid) = gid {
        process.user.gid = gid;
    }
    Ok(())
}

/// What a program is given it may use, and what it executes, too.
fn add_capabilities(process: &mut Process, names: &[&str]) {
    let sets = process
        .capabilities
        .get_or_insert_with(Capabilities::default);
    for name in names {
        let name = name.to_ascii_uppercase();
        let name = match name.starts_with("CAP_") {
            true => name,
            false => format!("CAP_{name}"),
        };
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            if !set.contains(&name) {
                set.push(name.clone());
            }
        }
    }
}
