//! `run` and `create`.

use bulkhead_engine::record::{Config, Image, Machine};
use bulkhead_engine::{Engine, New, Start, spec};
use clap::Args;
use jiff::Timestamp;

use super::options::ContainerArgs;
use super::start::wait_created;
use super::stay::{StayArgs, check_terminal, stay};
use super::streams::{Signals, terminal_size};
use crate::Outcome;
use crate::image::obtain;

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
  bulkhead run --rm -v ./src:/src:ro -v cache:/var/cache debian make -C /src
  bulkhead run -d --name web --label tier=front nginx"
)]
pub struct RunArgs {
    /// Leave it alone once it runs, and print its ID
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    stay: StayArgs,
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

/// Makes a container and prints its ID.
pub fn create(engine: &Engine, args: &CreateArgs) -> Outcome {
    let (new, _) = make(engine, &args.container)?;
    println!("{}", new.entry.config.id);
    Ok(0)
}

/// Makes a container and runs it.
pub fn run(engine: &Engine, args: &RunArgs) -> Outcome {
    let attached = !args.detach;
    let stdin = attached && args.container.interactive;
    check_terminal(args.container.tty, stdin)?;
    let (new, signals) = make(engine, &args.container)?;
    let terminal = args.container.tty.then(terminal_size).flatten();
    let start = Start {
        attached,
        terminal,
        checkpoint: None,
    };
    let (entry, started) = engine.start_new(new, start)?;
    let mut started = wait_created(started, &signals)?;
    if attached {
        let streams = (stdin, terminal);
        return stay(engine, (&entry, started), &signals, streams, &args.stay);
    }
    started.go()?;
    println!("{}", entry.config.id);
    Ok(0)
}

/// Makes a container. From then on signals are kept, so that what was made does not stay behind without
/// its maker.
fn make(
    engine: &Engine,
    args: &ContainerArgs,
) -> Result<(New, Signals), Box<dyn std::error::Error>> {
    let options = args.to_options()?;
    let limits = args.limits();
    let machine = match &args.template {
        None => Machine::for_limits(limits.0, limits.1),
        // What is wrong with it is better known before an image is pulled.
        Some(name) => engine.own_templates().open(name)?.machine_for(limits)?,
    };
    let store = engine.store()?;
    let lease = store.lease()?;
    let (image, disk) = obtain(
        &store,
        &lease,
        &args.image,
        args.pull,
        args.platform.as_ref(),
    )?;
    let tree = engine.tree(&store, &image, args.isolation())?;
    let id = engine.new_id()?;
    let image_config = image.config.config().clone().unwrap_or_default();
    let labels = image_config.labels().clone().unwrap_or_default();
    let config = Config {
        spec: spec::build(&id, &image.config, &options)?,
        id,
        name: args.name.clone().unwrap_or_default(),
        guest_id: None,
        created: Timestamp::now(),
        image: Image {
            name: args.image.clone(),
            id: image.id.to_string(),
            manifest: image.manifest.digest.to_string(),
        },
        disk,
        tree,
        isolation: args.isolation(),
        upper: args.upper(),
        volumes: args.volumes()?,
        machine,
        cold: args.cold,
        template: args.template.clone(),
        stdin: args.interactive || args.tty,
        init: args.init,
        auto_remove: args.rm,
        stop_signal: args.stop_signal(image_config.stop_signal().as_deref())?,
        stop_timeout_s: args.stop_timeout,
        labels: args.labels(labels.into_iter().collect()),
    };
    let signals = Signals::block()?;
    Ok((engine.create(config)?, signals))
}
