//! `checkpoint`: moments of containers in virtual machines, for `start --checkpoint`.

use bulkhead_engine::Engine;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::control::each;
use crate::Outcome;
use crate::output::{Format, Table, print_rows};
use crate::snapshot;

/// Keep moments of containers in virtual machines, to go on from them with `bulkhead start --checkpoint`.
#[derive(Subcommand)]
pub enum Command {
    /// Keep the moment that a container is in, and stop it
    Create(CreateArgs),
    /// List a container's checkpoints
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove checkpoints; containers that were started from them go on
    Rm(RmArgs),
}

/// Keep the moment that a container is in: its processes, its memory, its files.
///
/// It stands still meanwhile, and is stopped then unless it is to run on.
#[derive(Args)]
#[command(after_help = "\
Examples:
  bulkhead checkpoint create web ready
  bulkhead start --checkpoint ready web
  bulkhead start --checkpoint ready --copy web2 web")]
pub struct CreateArgs {
    /// Its name or ID
    container: String,
    /// The checkpoint's name
    name: String,
    /// Do not stop it
    #[arg(long)]
    leave_running: bool,
}

/// List a container's checkpoints.
#[derive(Args)]
pub struct LsArgs {
    /// Its name or ID
    container: String,
    /// table, json, or a template such as '{{.Name}}'
    #[arg(long, default_value = "table")]
    format: Format,
}

/// Remove checkpoints. Containers that were started from them go on.
#[derive(Args)]
pub struct RmArgs {
    /// The container's name or ID
    container: String,
    /// The checkpoints' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Does it.
pub fn run(engine: &Engine, command: &Command) -> Outcome {
    match command {
        Command::Create(args) => {
            let entry = engine.find(&args.container)?;
            engine.checkpoint(&entry, &args.name, args.leave_running)?;
            println!("{}", args.name);
            Ok(0)
        }
        Command::Ls(args) => list(engine, args),
        Command::Rm(args) => {
            let checkpoints = engine.checkpoints(&engine.find(&args.container)?);
            each(&args.names, |name| {
                checkpoints.remove(name)?;
                println!("{name}");
                Ok(())
            })
        }
    }
}

fn list(engine: &Engine, args: &LsArgs) -> Outcome {
    let checkpoints = engine.checkpoints(&engine.find(&args.container)?).list()?;
    let rows: Vec<Value> = checkpoints.iter().map(snapshot::row).collect();
    print_rows(&args.format, &rows, || {
        let columns = [("NAME", "Name"), ("CREATED", "Created"), ("SIZE", "Size")];
        Table::of(&columns, &rows)
    })?;
    Ok(0)
}
