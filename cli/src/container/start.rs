//! `start`, and what starting has in common with `run`.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use bulkhead_engine::{Engine, Entry, Start, Started};
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
    /// Go on from this checkpoint of it
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: Option<String>,
    /// Let a copy of it go on, under this name, and leave it as it is
    #[arg(long, value_name = "NAME", requires = "checkpoint")]
    copy: Option<String>,
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
            checkpoint: None,
        };
        let (entry, started) = begin(engine, entry, start, args, &signals)?;
        let streams = (args.interactive, terminal);
        return stay(engine, (&entry, started), &signals, streams, &args.stay);
    }
    if args.copy.is_some() && args.containers.len() > 1 {
        return Err("only one container can be copied to a name: start the others apart".into());
    }
    each(&args.containers, |name| {
        let entry = engine.find(name)?;
        let (_, mut started) = begin(engine, entry, Start::default(), args, &signals)?;
        started.go()?;
        println!("{}", args.copy.as_ref().map_or(name, |copy| copy.as_str()));
        Ok(())
    })
}

/// Starts a container, or a copy of it, up to where its program can be let go.
fn begin(
    engine: &Engine,
    entry: Entry,
    mut start: Start,
    args: &StartArgs,
    signals: &Signals,
) -> Result<(Entry, Started), Box<dyn Error>> {
    if let Some(checkpoint) = &args.checkpoint {
        start.checkpoint = Some(engine.checkpoint_of(&entry, checkpoint)?);
    }
    let Some(copy) = &args.copy else {
        let started = wait_created(engine.start(&entry, start)?, signals)?;
        return Ok((entry, started));
    };
    let new = engine.copy(&entry, copy)?;
    let entry = new.entry.clone();
    let started = engine
        .start_new(new, start)
        .map_err(Into::into)
        .and_then(|(entry, started)| Ok((entry, wait_created(started, signals)?)));
    // It was never anything but that moment. If it cannot be removed, the reason that is told is the other one.
    started.inspect_err(|_| _ = engine.remove(&entry, true))
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
