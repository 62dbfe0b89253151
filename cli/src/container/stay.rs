//! Staying with a container: its streams are ours until it ends, or the user leaves it alone.

use bulkhead_engine::agent::Attach;
use bulkhead_engine::{Engine, Entry, Error, Started};
use bulkhead_protocol::TerminalSize;
use clap::{ArgAction, Args};

use super::keys::Keys;
use super::streams::{self, Copy, End, Got, Signals, report, terminal_size};
use crate::Outcome;
use crate::terminal::RawTerminal;

/// Exit code of a program whose reader has left, as a shell has it: 128 and SIGPIPE.
const NOBODY_READS: u8 = 128 + 13;
/// So many requests to end in a row mean it.
const INSISTENT: u32 = 3;

/// How to stay with a container.
#[derive(Debug, Clone, Args)]
pub struct StayArgs {
    /// Pass signals on to its program; while that has our terminal, they end this command only
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = ArgAction::Set
    )]
    pub sig_proxy: bool,
    /// Keys that leave it alone, typed at a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: Keys,
}

impl StayArgs {
    /// What to copy from and to a program that has our terminal, or has not.
    pub fn copy(&self, stdin: bool, terminal: Option<&RawTerminal>) -> Copy {
        Copy {
            stdin,
            detach_keys: terminal.map(|_| self.detach_keys.clone()),
            // Keys reach the program by themselves then; a signal is from somebody else, and for us.
            passes_signals: self.sig_proxy && terminal.is_none(),
        }
    }
}

/// Stays with a container that waits to be started, up to its end. `told` is how large it knows its
/// terminal to be.
pub fn stay(
    engine: &Engine,
    (entry, mut started): (&Entry, Started),
    signals: &Signals,
    (stdin, told): (bool, Option<TerminalSize>),
    args: &StayArgs,
) -> Outcome {
    let (agent, id) = (entry.agent(), entry.config.guest_id());
    let connection = if stdin {
        let keeps = false;
        let connection = agent.attach(id, Attach { stdin, keeps })?;
        started.go()?;
        connection
    } else {
        started.go_with_output()?
    };
    let raw = enter_raw(entry.config.has_terminal() && stdin)?;
    if let Some(size) = terminal_size().filter(|size| told.is_some() && told != Some(*size)) {
        // It has changed while the machine booted. A program that has ended does not mind.
        let _ = agent.resize(id, size);
    }
    let what = args.copy(stdin, raw.as_ref());
    let end = streams::copy(connection, what, signals, pass_on(engine, entry))
        .map_err(|e| format!("cannot copy the container's streams: {e}"))?;
    drop(raw);
    match end {
        End::Detached => return Ok(0),
        End::Signal(signal) => return Ok(128 + signal),
        End::NobodyReads => {
            // As a program of ours would, it ends when nobody reads what it writes.
            engine.stop(entry, None).or_else(ended_meanwhile)?;
            return Ok(NOBODY_READS);
        }
        End::Exit(_) | End::Lost => started.done(),
    }
    Ok(report(started.wait_exited()?))
}

fn ended_meanwhile(error: Error) -> Result<(), Error> {
    match error {
        Error::NoSuchContainer(_) => Ok(()),
        error => Err(error),
    }
}

/// A terminal of the container's is of no use without one of ours to type at.
pub fn check_terminal(container: bool, interactive: bool) -> Result<(), String> {
    if container && interactive && !rustix::termios::isatty(std::io::stdin()) {
        return Err("standard input is not a terminal: leave out -t".to_owned());
    }
    Ok(())
}

/// Makes our terminal raw, if it is to be the container's.
pub fn enter_raw(wanted: bool) -> Result<Option<RawTerminal>, String> {
    if !wanted {
        return Ok(None);
    }
    RawTerminal::enter().map_err(|e| format!("cannot set up the terminal: {e}"))
}

/// Passes signals on to a container; one that is asked to end again and again is killed.
pub fn pass_on<'a>(engine: &'a Engine, entry: &'a Entry) -> impl FnMut(Got) + 'a {
    const SIGINT: u8 = 2;
    const SIGTERM: u8 = 15;
    const SIGKILL: u8 = 9;
    let mut asked = 0;
    move |got| {
        // What cannot be passed on because the container has just ended need not be.
        match got {
            Got::Resize(size) if entry.config.has_terminal() => {
                let _ = entry.agent().resize(entry.config.guest_id(), size);
            }
            Got::Resize(_) => {}
            Got::Signal(signal) => {
                let _ = entry.agent().kill(entry.config.guest_id(), signal);
                if matches!(signal, SIGINT | SIGTERM) {
                    asked += 1;
                    if asked == INSISTENT {
                        let running = engine.find(&entry.config.id);
                        let _ = running.and_then(|entry| engine.kill(&entry, SIGKILL));
                    }
                }
            }
        }
    }
}
