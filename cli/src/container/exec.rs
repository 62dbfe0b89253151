//! `exec`.

use std::path::PathBuf;

use bulkhead_engine::spec::{Options, exec_process};
use bulkhead_engine::{Engine, Error};
use bulkhead_protocol::Exec;
use clap::Args;

use super::options::environment;
use super::stay::{check_terminal, enter_raw};
use super::streams::{self, Copy, End, Got, Signals, report, terminal_size};
use crate::Outcome;

/// Run a command in a container that is running.
#[derive(Args)]
pub struct ExecArgs {
    /// Leave it alone once it runs
    #[arg(short, long)]
    detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable of the environment; without a value, to what it is here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Name or ID
    container: String,
    /// What to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Executes a program in a container.
pub fn exec(engine: &Engine, args: &ExecArgs) -> Outcome {
    let stdin = args.interactive && !args.detach;
    check_terminal(args.tty, stdin)?;
    let entry = engine.running(&args.container)?;
    let of = entry.config.spec.process.clone().unwrap_or_default();
    let process = exec_process(
        &of,
        &Options {
            command: args.command.clone(),
            env: environment(&args.env, &args.env_file)?,
            workdir: args.workdir.clone(),
            user: args.user.clone(),
            terminal: args.tty,
            ..Options::default()
        },
    )?;
    let exec = Exec {
        process: &process,
        stdin,
        terminal: args.tty.then(terminal_size).flatten(),
    };
    let (agent, id) = (entry.agent(), entry.config.guest_id());
    if args.detach {
        agent.exec_detached(id, &exec)?;
        return Ok(0);
    }
    let connection = agent.exec(id, &exec)?;
    let exec_id = connection.exec_id.clone();
    // A signal before this ends this command, and the program is hung up.
    let signals = Signals::block()?;
    let raw = enter_raw(args.tty && stdin)?;
    if let (Some(exec_id), Some(size)) = (&exec_id, exec.terminal)
        && let Some(now) = terminal_size().filter(|now| *now != size)
    {
        let _ = agent.resize_exec(id, exec_id, now); // it may have ended
    }
    let what = Copy {
        stdin,
        // Nobody can come back to a program that is left alone.
        detach_keys: None,
        // As this end of its terminal goes, it is hung up.
        passes_signals: raw.is_none(),
    };
    let end = streams::copy(connection, what, &signals, |got| match (got, &exec_id) {
        (Got::Resize(size), Some(exec)) if args.tty => {
            let _ = agent.resize_exec(id, exec, size); // it may have ended
        }
        (Got::Resize(_), _) => {}
        (Got::Signal(signal), exec) => {
            // The program goes with the command that stands for it here.
            if let Some(exec) = exec {
                let _ = agent.kill_exec(id, exec, signal);
            }
        }
    })
    .map_err(|e| format!("cannot copy the program's streams: {e}"))?;
    drop(raw);
    match end {
        End::Exit(exit) => Ok(report(exit)),
        End::Detached | End::NobodyReads => Ok(0),
        End::Signal(signal) => Ok(128 + signal),
        End::Lost => Err(Error::Invalid(format!(
            "container {} ended before the program did",
            args.container
        ))
        .into()),
    }
}
