//! `attach`.

use bulkhead_engine::Engine;
use bulkhead_engine::agent::Attach;
use clap::Args;

use super::run::{check_terminal, enter_raw, pass_on};
use super::streams::{self, Copy, End, Got, Signals, report, terminal_size};
use crate::Outcome;

/// Attach to the streams of a container that is running. Ctrl-P Ctrl-Q leaves it again.
#[derive(Args)]
pub struct AttachArgs {
    /// Do not attach to its input
    #[arg(long)]
    no_stdin: bool,
    /// Do not pass signals on to it
    #[arg(long)]
    no_sig_proxy: bool,
    /// Name or ID
    container: String,
}

/// Attaches to a container until it ends.
pub fn attach(engine: &Engine, args: &AttachArgs) -> Outcome {
    let entry = engine.running(&args.container)?;
    let stdin = entry.config.stdin && !args.no_stdin;
    check_terminal(entry.config.has_terminal(), stdin)?;
    let signals = Signals::block().map_err(|e| format!("cannot watch signals: {e}"))?;
    let agent = entry.agent();
    let connection = agent.attach(&entry.config.id, Attach { stdin })?;
    let raw = enter_raw(entry.config.has_terminal() && stdin)?;
    if let Some(size) = raw.as_ref().and_then(|_| terminal_size()) {
        // Its terminal may be as another was that was attached before.
        agent.resize(&entry.config.id, size)?;
    }
    let what = Copy {
        stdin,
        can_detach: raw.is_some(),
    };
    let mut pass_on = pass_on(engine, &entry);
    let end = streams::copy(connection, what, &signals, |got| match got {
        Got::Signal(signal) if args.no_sig_proxy => {
            // It ends this process, as it would have.
            std::process::exit(128 + i32::from(signal));
        }
        got => pass_on(got),
    })
    .map_err(|e| format!("cannot copy the container's streams: {e}"))?;
    drop(raw);
    match end {
        End::Exit(exit) => Ok(report(exit)),
        End::Detached | End::NobodyReads => Ok(0),
        End::Lost => Ok(engine.wait(&entry)?),
    }
}
