//! `run`, `create` and `start`.

use bulkhead_engine::agent::Attach;
use bulkhead_engine::record::{Config, Image, Machine};
use bulkhead_engine::{Engine, Entry, New, Start, Started, spec};
use clap::Args;
use jiff::Timestamp;

use super::options::ContainerArgs;
use super::streams::{self, Copy, End, Got, Signals, report, terminal_size};
use crate::Outcome;
use crate::image::obtain;
use crate::terminal::RawTerminal;

/// Exit code of a program whose reader has left, as a shell has it: 128 and SIGPIPE.
const NOBODY_READS: u8 = 128 + 13;
/// So many requests to end in a row mean it.
const INSISTENT: u32 = 3;

/// Make a container of an image and run it.
#[derive(Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Exit codes: the program's own; 125 if Bulkhead failed, 126 if the program cannot be executed,
127 if it is not there, 128 and the signal's number if a signal ended it.

Examples:
  bulkhead run --rm busybox echo hello
  bulkhead run -it --rm --memory 256M --cpus 2 debian bash
  bulkhead run -d --name web --label tier=front nginx"
)]
pub struct RunArgs {
    /// Leave it alone once it runs, and print its ID
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    container: ContainerArgs,
}

/// Make a container of an image.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
}

/// Start containers that are not running.
#[derive(Args)]
pub struct StartArgs {
    /// Attach to its output, and pass signals on to it
    #[arg(short, long)]
    attach: bool,
    /// Attach to its input as well
    #[arg(short, long)]
    interactive: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Makes a container and prints its ID.
pub fn create(engine: &Engine, args: &CreateArgs) -> Outcome {
    let new = make(engine, &args.container)?;
    println!("{}", new.entry.config.id);
    Ok(0)
}

/// Makes a container and runs it.
pub fn run(engine: &Engine, args: &RunArgs) -> Outcome {
    let attached = !args.detach;
    check_terminal(args.container.tty, attached && args.container.interactive)?;
    let new = make(engine, &args.container)?;
    let start = Start {
        attached,
        terminal: args.container.tty.then(terminal_size).flatten(),
    };
    let (entry, mut started) = engine.start_new(new, start)?;
    if attached {
        return stay(engine, &entry, started, args.container.interactive);
    }
    started.wait_started()?;
    println!("{}", entry.config.id);
    Ok(0)
}

/// Starts containers.
pub fn start(engine: &Engine, args: &StartArgs) -> Outcome {
    if args.attach || args.interactive {
        let [name] = &args.containers[..] else {
            return Err(
                "only one container can be attached to: start the others without -a".into(),
            );
        };
        let entry = engine.find(name)?;
        check_terminal(entry.config.has_terminal(), args.interactive)?;
        let start = Start {
            attached: true,
            terminal: terminal_size(),
        };
        let started = engine.start(&entry, start)?;
        return stay(engine, &entry, started, args.interactive);
    }
    super::control::each(&args.containers, |name| {
        let entry = engine.find(name)?;
        engine.start(&entry, Start::default())?.wait_started()?;
        println!("{name}");
        Ok(())
    })
}

/// A terminal of the container's is of no use without one of ours to type at.
pub fn check_terminal(container: bool, interactive: bool) -> Result<(), String> {
    if container && interactive && !rustix::termios::isatty(std::io::stdin()) {
        return Err("standard input is not a terminal: leave out -t".to_owned());
    }
    Ok(())
}

fn make(engine: &Engine, args: &ContainerArgs) -> Result<New, Box<dyn std::error::Error>> {
    let options = args.to_options()?;
    let store = engine.store()?;
    let lease = store.lease()?;
    let (image, disk) = obtain(
        &store,
        &lease,
        &args.image,
        args.pull,
        args.platform.as_ref(),
    )?;
    let id = engine.new_id()?;
    let image_config = image.config.config().clone().unwrap_or_default();
    let labels = image_config.labels().clone().unwrap_or_default();
    let (cpus, memory) = args.limits();
    let config = Config {
        spec: spec::build(&id, &image.config, &options)?,
        id,
        name: args.name.clone().unwrap_or_default(),
        created: Timestamp::now(),
        image: Image {
            name: args.image.clone(),
            id: image.id.to_string(),
            manifest: image.manifest.digest.to_string(),
        },
        disk,
        upper: args.upper(),
        machine: Machine::for_limits(cpus, memory),
        stdin: args.interactive || args.tty,
        init: args.init,
        auto_remove: args.rm,
        stop_signal: args.stop_signal(image_config.stop_signal().as_deref())?,
        stop_timeout_s: args.stop_timeout,
        labels: args.labels(labels.into_iter().collect()),
    };
    Ok(engine.create(config)?)
}

/// Stays with a container from its start to its end.
fn stay(engine: &Engine, entry: &Entry, mut started: Started, interactive: bool) -> Outcome {
    // Until here Ctrl-C ends this process, and the monitor, left alone, the container.
    started.wait_created()?;
    let signals = Signals::block().map_err(|e| format!("cannot watch signals: {e}"))?;
    let stdin = interactive;
    let connection = entry.agent().attach(&entry.config.id, Attach { stdin })?;
    started.go()?;
    let raw = enter_raw(entry.config.has_terminal() && interactive)?;
    let what = Copy {
        stdin,
        can_detach: raw.is_some(),
    };
    let end = streams::copy(connection, what, &signals, pass_on(engine, entry))
        .map_err(|e| format!("cannot copy the container's streams: {e}"))?;
    drop(raw);
    match end {
        End::Detached => return Ok(0),
        End::NobodyReads => {
            // As a program of ours would, it ends when nobody reads what it writes.
            engine.stop(entry, None).or_else(ended_meanwhile)?;
            return Ok(NOBODY_READS);
        }
        End::Exit(_) | End::Lost => started.done(),
    }
    Ok(report(started.wait_exited()?))
}

fn ended_meanwhile(error: bulkhead_engine::Error) -> Result<(), bulkhead_engine::Error> {
    match error {
        bulkhead_engine::Error::NoSuchContainer(_) => Ok(()),
        error => Err(error),
    }
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
                let _ = entry.agent().resize(&entry.config.id, size);
            }
            Got::Resize(_) => {}
            Got::Signal(signal) => {
                let _ = entry.agent().kill(&entry.config.id, signal);
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
