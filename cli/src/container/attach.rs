//! `attach`.

use bulkhead_engine::Engine;
use bulkhead_engine::agent::Attach;
use clap::Args;

use super::stay::{StayArgs, check_terminal, enter_raw, pass_on};
use super::streams::{self, End, Signals, report, terminal_size};
use crate::Outcome;

/// How the agent ends a container that goes on from a checkpoint later.
const KILLED: u8 = 9;

/// Attach to the streams of a container that is running.
#[derive(Args)]
pub struct AttachArgs {
    /// Do not attach to its input
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    stay: StayArgs,
    /// Name or ID
    container: String,
}

/// Attaches to a container until it ends.
pub fn attach(engine: &Engine, args: &AttachArgs) -> Outcome {
    let entry = engine.running(&args.container)?;
    let stdin = entry.config.stdin && !args.no_stdin;
    check_terminal(entry.config.has_terminal(), stdin)?;
    let agent = entry.agent();
    let connection = agent.attach(
        entry.config.guest_id(),
        Attach {
            stdin,
            keeps: false,
        },
    )?;
    let signals = Signals::block()?;
    let raw = enter_raw(entry.config.has_terminal() && stdin)?;
    if let Some(size) = raw.as_ref().and_then(|_| terminal_size()) {
        // Its terminal may be as another was that was attached before.
        agent.resize(entry.config.guest_id(), size)?;
    }
    let what = args.stay.copy(stdin, raw.as_ref());
    let end = streams::copy(connection, what, &signals, pass_on(engine, &entry))
        .map_err(|e| format!("cannot copy the container's streams: {e}"))?;
    drop(raw);
    match end {
        End::Exit(exit)
            if exit.signal == Some(KILLED) && has_checkpoint(engine, &args.container) =>
        {
            Ok(0)
        }
        End::Exit(exit) => Ok(report(exit)),
        End::Detached | End::NobodyReads => Ok(0),
        End::Signal(signal) => Ok(128 + signal),
        End::Lost => Ok(engine.wait(&entry)?),
    }
}

/// Whether a container has ended with a checkpoint, which is no failure of its program.
fn has_checkpoint(engine: &Engine, container: &str) -> bool {
    let entry = engine.find(container);
    entry.is_ok_and(|entry| entry.state.checkpointed.is_some())
}
