//! `start`, and what starting has in common with `run`.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use bulkhead_engine::{Engine, Start, Started};
use clap::Args;

use super::control::each;
use super::stay::{StayArgs, check_terminal, stay};
use super::streams::{Signals, terminal_size};
use crate::Outcome;
use crate::output::progress;

/// Start containers that are not running.
#[derive(Args)]
pub struct StartArgs {
    /// Attach to its output, and pass signals on to it
    #[arg(short, long)]
    attach: bool,
    /// Attach to its input as well
    #[arg(short, long)]
    interactive: bool,
    #[command(flatten)]
    stay: StayArgs,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// A signal came before there was a program to pass it on to.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by signal {0}: the container was not started")]
pub struct Interrupted(u8);

impl Interrupted {
    /// As a shell has it.
    pub fn exit_code(&self) -> u8 {
        128 + self.0
    }
}

/// Starts containers.
pub fn start(engine: &Engine, args: &StartArgs) -> Outcome {
    let signals = Signals::block()?;
    if args.attach || args.interactive {
        let [name] = &args.containers[..] else {
            return Err(
                "only one container can be attached to: start the others without -a".into(),
            );
        };
        let entry = engine.find(name)?;
        check_terminal(entry.config.has_terminal(), args.interactive)?;
        let terminal = terminal_size().filter(|_| entry.config.has_terminal());
        let start = Start {
            attached: true,
            terminal,
        };
        let started = wait_created(engine.start(&entry, start)?, &signals)?;
        let streams = (args.interactive, terminal);
        return stay(engine, (&entry, started), &signals, streams, &args.stay);
    }
    each(&args.containers, |name| {
        let entry = engine.find(name)?;
        let started = engine.start(&entry, Start::default())?;
        wait_created(started, &signals)?.go()?;
        println!("{name}");
        Ok(())
    })
}

/// Waits until a container's program can be started. A signal before that ends the sandbox, and with it
/// this command.
pub fn wait_created(mut started: Started, signals: &Signals) -> Result<Started, Box<dyn Error>> {
    // A person should see that it takes a while; a script's standard error is the program's.
    let progress = progress(!io::stderr().is_terminal());
    let mut tell = |line: &str| progress.message(line);
    while !started.is_created_before(signals.as_fd(), &mut tell)? {
        if let Some(signal) = signals.ending() {
            // Another one need not wait for the sandbox's end, which comes all the same.
            signals.release()?;
            started.cancel();
            return Err(Interrupted(signal).into());
        }
    }
    started.wait_created()?;
    Ok(started)
}
