//! The monitor of a sandbox: a process of its own that starts the virtual machine, or is the container's agent
//! itself where there is none, and stays with it,
//! keeps the container's log, and records how it ends. What conmon is to Podman.
//!
//! It is this program started again with a hidden command. Its standard input is a socket to the
//! command that started it; its standard output is the container's lock, held for as long as the
//! sandbox is up: whoever gets that lock knows that there is no monitor any more.

mod checkpoint;
mod events;
pub(crate) mod machine;
mod message;
mod output;
mod own;
mod request;
mod sandbox;
pub(crate) mod starting;
mod turn;
mod warm;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bulkhead_protocol::TerminalSize;

pub use checkpoint::Origin;
pub use message::{Connection, Message};
pub use request::{Request, ask};

use crate::engine::{Engine, discard};
use crate::error::{Error, Failure, cannot};
use crate::record::{Config, Files, State};
use crate::rootless::{enter_namespace, is_rootless};
use message::tell;
use sandbox::Sandbox;

/// The name of the hidden command.
pub const COMMAND: &str = "monitor";

/// What the hidden command is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The container.
    pub id: String,
    /// Whether the sandbox waits until the command that started this has taken all output.
    pub attached: bool,
    /// The size of the terminal.
    pub terminal: Option<TerminalSize>,
    /// The checkpoint that the container goes on from, if it is not to begin.
    pub checkpoint: Option<Origin>,
}

/// Is the monitor, until the sandbox has ended.
pub fn run(engine: &Engine, task: &Task) -> Result<(), Error> {
    let files = engine.files(&task.id);
    let config = files
        .read_config()
        .map_err(cannot(format!("read what container {} is", task.id)))?;
    let state = files
        .read_state()
        .map_err(cannot(format!("read how container {} is", task.id)))?;
    stay(engine, task, &files, (config, state))
}

/// Is the monitor, in a process that was forked from the command and knows what container it is for. Its
/// exit code.
pub fn run_apart(engine: &Engine, task: &Task, known: (Config, State)) -> i32 {
    // Whoever lists processes shall see which is which.
    let _ = rustix::thread::set_name(c"monitor");
    let files = engine.files(&task.id);
    match stay(engine, task, &files, known) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("bulkhead: {e}");
            125
        }
    }
}

fn stay(engine: &Engine, task: &Task, files: &Files, known: (Config, State)) -> Result<(), Error> {
    // Away from the terminal and the shell's jobs. It fails only for who is away already.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    let command = UnixStream::from(take_stdin().map_err(cannot("take over from the command"))?);
    let result = watch(engine, task, files, &command, known);
    // Only now may another start it: nothing of this sandbox is left.
    let _ = std::fs::remove_dir_all(&files.sandbox);
    result
}

fn watch(
    engine: &Engine,
    task: &Task,
    files: &Files,
    command: &UnixStream,
    (config, mut state): (Config, State),
) -> Result<(), Error> {
    // While this process has one thread.
    let entered = match is_rootless(config.isolation) {
        true => enter_namespace(),
        false => Ok(()),
    };
    let started =
        entered.and_then(|()| Sandbox::start(&config, files, engine.layout(), task, command));
    let ended = started.and_then(|mut sandbox| {
        let exit = sandbox.run(&mut state, command);
        let exit = exit.inspect_err(|_| sandbox.unmount())?;
        Ok((sandbox, exit))
    });
    match ended {
        Ok((sandbox, exit)) => {
            if config.auto_remove {
                discard(engine.layout(), files, &config)?;
            }
            tell(command, &Message::Exited(exit));
            sandbox.end(task.attached, command);
            Ok(())
        }
        Err(e) => {
            // If this fails, the next start does it.
            let _ = checkpoint::put_disk_back(files, config.upper);
            let failure = Failure {
                exit_code: e.exit_code(),
                message: e.to_string(),
            };
            sandbox::record_failure(files, &mut state, &failure);
            if config.auto_remove || config.is_stillborn(&state) {
                discard(engine.layout(), files, &config)?;
            }
            tell(command, &Message::Failed(failure));
            Err(e)
        }
    }
}

/// Standard input as a descriptor of our own.
fn take_stdin() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}
