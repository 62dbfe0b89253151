//! The operations of the runtime specification (runtime.md#operations) as a command, over the crate `container`: what tests
//! of OCI runtimes drive. It is for tests alone.
//!
//! `create` leaves a process behind, the container's keeper, which is the parent of the container's processes; the other
//! operations ask it through a socket.

#![forbid(unsafe_code)]

mod arguments;
mod keeper;
mod place;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use arguments::{Arguments, Operation};
use bulkhead_container::State;
use keeper::Request;
use place::Place;

fn main() -> ExitCode {
    match Arguments::read(std::env::args().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("oci-runtime: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    let place = Place::new(&arguments.root, &arguments.id)?;
    match arguments.operation {
        Operation::Create => create(&arguments, &place),
        Operation::Keep => keeper::keep(&place, &arguments.bundle),
        Operation::Start => place.ask(&Request::Start).map(drop),
        Operation::State => {
            let state = place.ask(&Request::State)?;
            let text = serde_json::to_string_pretty(&state).map_err(|e| e.to_string())?;
            writeln!(std::io::stdout(), "{text}").map_err(|e| format!("standard output: {e}"))
        }
        Operation::Kill(signal) => place.ask(&Request::Kill(signal)).map(drop),
        Operation::Delete { force } => place.ask(&Request::Delete { force }).map(drop),
    }
}

fn create(arguments: &Arguments, place: &Place) -> Result<(), String> {
    place.claim()?;
    let made = start_keeper(arguments);
    let state = made.inspect_err(|_| place.remove())?;
    match (&arguments.pid_file, state.pid) {
        (Some(file), Some(pid)) => std::fs::write(file, pid.to_string())
            .map_err(|e| format!("cannot write {}: {e}", file.display())),
        _ => Ok(()),
    }
}

fn start_keeper(arguments: &Arguments) -> Result<State, String> {
    let failed = |e: std::io::Error| format!("cannot start the keeper: {e}");
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("keep").arg("--root").arg(&arguments.root);
    command
        .arg("--bundle")
        .arg(&arguments.bundle)
        .arg(&arguments.id);
    // It outlives this process, and whoever interrupts that does not mean it.
    command.stdin(OwnedFd::from(theirs)).process_group(0);
    command.spawn().map_err(failed)?;
    // The command holds the other end.
    drop(command);
    keeper::read_reply(ours)
}
