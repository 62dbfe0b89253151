//! What is done to containers by name: `stop`, `kill`, `restart`, `rm`, `pause`, `unpause`, `rename`, `wait`.

use std::time::Duration;

use bulkhead_engine::{Engine, Entry, Error, Start};
use clap::Args;

use super::start::{Interrupted, wait_created};
use super::streams::Signals;
use crate::Outcome;
use crate::values::parse_signal;

/// Containers by name.
#[derive(Args)]
pub struct NamesArgs {
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Ask containers to end, and make them if they do not.
#[derive(Args)]
pub struct StopArgs {
    /// Seconds they get; -1 for any time [default: what was said when they were made, or 10]
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    time: Option<i64>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Stop containers and start them again.
#[derive(Args)]
pub struct RestartArgs {
    #[command(flatten)]
    stop: StopArgs,
}

/// Send a signal to containers.
#[derive(Args)]
pub struct KillArgs {
    /// Which, by name or number
    #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
    signal: u8,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Remove containers.
#[derive(Args)]
pub struct RmArgs {
    /// Even if they are running, without asking them to end
    #[arg(short, long)]
    force: bool,
    /// Volumes of their own as well; there are none yet
    #[arg(short, long)]
    volumes: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Give a container another name.
#[derive(Args)]
pub struct RenameArgs {
    /// Its name or ID
    container: String,
    /// Its name from now on
    name: String,
}

/// Stops containers.
pub fn stop(engine: &Engine, args: &StopArgs) -> Outcome {
    each(&args.containers, |name| {
        let entry = engine.find(name)?;
        engine.stop(&entry, args.limit(&entry))?;
        println!("{name}");
        Ok(())
    })
}

/// Stops containers and starts them again.
pub fn restart(engine: &Engine, args: &RestartArgs) -> Outcome {
    let mut signals = None;
    each(&args.stop.containers, |name| {
        let entry = engine.find(name)?;
        engine.stop(&entry, args.stop.limit(&entry))?;
        // Only now, as to stop can take any time.
        let signals = match &mut signals {
            Some(signals) => signals,
            none => none.insert(Signals::block()?),
        };
        let started = engine.start(&entry, Start::default())?;
        wait_created(started, signals)?.go()?;
        println!("{name}");
        Ok(())
    })
}

/// Sends a signal to containers.
pub fn kill(engine: &Engine, args: &KillArgs) -> Outcome {
    each(&args.containers, |name| {
        engine.kill(&engine.find(name)?, args.signal)?;
        println!("{name}");
        Ok(())
    })
}

/// Removes containers.
pub fn remove(engine: &Engine, args: &RmArgs) -> Outcome {
    each(&args.containers, |name| {
        match engine.find(name) {
            // With --force what is gone is as it was to be.
            Err(Error::NoSuchContainer(_)) if args.force => return Ok(()),
            entry => engine.remove(&entry?, args.force)?,
        }
        println!("{name}");
        Ok(())
    })
}

/// Holds containers.
pub fn pause(engine: &Engine, args: &NamesArgs) -> Outcome {
    each(&args.containers, |name| {
        engine.pause(&engine.find(name)?)?;
        println!("{name}");
        Ok(())
    })
}

/// Lets containers go on.
pub fn unpause(engine: &Engine, args: &NamesArgs) -> Outcome {
    each(&args.containers, |name| {
        engine.unpause(&engine.find(name)?)?;
        println!("{name}");
        Ok(())
    })
}

/// Waits for the end of containers.
pub fn wait(engine: &Engine, args: &NamesArgs) -> Outcome {
    each(&args.containers, |name| {
        println!("{}", engine.wait(&engine.find(name)?)?);
        Ok(())
    })
}

/// Renames a container.
pub fn rename(engine: &Engine, args: &RenameArgs) -> Outcome {
    engine.rename(&args.container, &args.name)?;
    Ok(0)
}

impl StopArgs {
    fn limit(&self, entry: &Entry) -> Option<Duration> {
        match self.time {
            None => Some(Duration::from_secs(entry.config.stop_timeout_s)),
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        }
    }
}

/// Does something for each name. What fails is said, and does not keep the others from being done.
pub fn each(
    names: &[String],
    mut act: impl FnMut(&str) -> Result<(), Box<dyn std::error::Error>>,
) -> Outcome {
    let mut code = 0;
    for name in names {
        if let Err(e) = act(name) {
            if names.len() == 1 || e.is::<Interrupted>() {
                return Err(e);
            }
            eprintln!("bulkhead: {e}");
            code = 1;
        }
    }
    Ok(code)
}
