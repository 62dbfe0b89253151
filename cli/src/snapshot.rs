//! `bulkhead snapshot`: moments of microVMs, kept under names.

use std::path::PathBuf;

use bulkhead_engine::snapshots::{Listed, Request, Snapshot};
use bulkhead_engine::{Engine, Error};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::Outcome;
use crate::boot::signals;
use crate::output::{Format, Table, print_rows, print_values, time};

/// Keep moments of microVMs of `bulkhead boot`, to go on from them with `bulkhead restore`.
#[derive(Subcommand)]
pub enum Command {
    /// Keep the moment that a VM is in: its memory, and the disks that it writes to
    Create(CreateArgs),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about snapshots, as JSON
    Inspect(InspectArgs),
    /// Remove snapshots; VMs that were restored from them go on
    Rm(RmArgs),
}

/// Keep the moment that a VM is in: its memory, and the disks that it writes to.
///
/// The VM stands still meanwhile, and then runs on. What it writes to must be files: block devices are refused.
#[derive(Args)]
#[command(after_help = "\
Examples:
  bulkhead boot --vsock /tmp/vm &
  bulkhead snapshot create /tmp/vm ready
  bulkhead restore ready")]
pub struct CreateArgs {
    /// Directory with the VM's sockets, as `bulkhead boot --vsock` has it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The snapshot's name
    #[arg(value_name = "NAME")]
    name: String,
    /// End the VM with that moment
    #[arg(long)]
    stop: bool,
}

/// How to list them.
#[derive(Args)]
pub struct LsArgs {
    /// table, json, or a template such as '{{.Name}}'
    #[arg(long, default_value = "table")]
    pub format: Format,
}

/// Which to show everything about.
#[derive(Args)]
pub struct InspectArgs {
    /// json, or a template such as '{{.created}}'
    #[arg(short, long)]
    pub format: Option<Format>,
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Which to remove.
#[derive(Args)]
pub struct RmArgs {
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Does it.
pub fn run(command: &Command, engine: &Engine) -> Outcome {
    match command {
        Command::Create(args) => create(engine, args),
        Command::Ls(args) => list(&engine.snapshots().list()?, args),
        Command::Inspect(args) => inspect(engine, args),
        Command::Rm(args) => remove_each(&args.names, |name| engine.snapshots().remove(name)),
    }
}

fn create(engine: &Engine, args: &CreateArgs) -> Outcome {
    // Killed in the middle, it would leave the VM paused.
    let signals = signals::block()?;
    let request = Request {
        directory: &args.directory,
        stop: args.stop,
        paused: false,
        is_interrupted: &|| signals::has_come(&signals),
    };
    engine.snapshots().create(&args.name, &request)?;
    println!("{}", args.name);
    Ok(0)
}

/// Prints a list of snapshots.
pub fn list(snapshots: &[Listed], args: &LsArgs) -> Outcome {
    let rows: Vec<Value> = snapshots.iter().map(row).collect();
    print_rows(&args.format, &rows, || Table::of(&COLUMNS, &rows))?;
    Ok(0)
}

/// The columns of a list of snapshots.
const COLUMNS: [(&str, &str); 5] = [
    ("NAME", "Name"),
    ("CREATED", "Created"),
    ("CPUS", "Cpus"),
    ("MEMORY", "Memory"),
    ("SIZE", "Size"),
];

/// A snapshot in a list. One that cannot be read is listed all the same: it can be removed.
pub fn row(snapshot: &Listed) -> Value {
    let record = snapshot.record.as_ref().ok();
    let word = |word: Option<String>| word.unwrap_or_else(|| "-".to_owned());
    json!({
        "Name": snapshot.name,
        "Created": word(record.map(|record| time::ago(record.created))),
        "CreatedAt": word(record.map(|record| record.created.to_string())),
        "Cpus": word(record.map(|record| record.cpus.to_string())),
        "Memory": word(record.map(|record| time::binary(record.memory_mib.saturating_mul(1 << 20)))),
        "Size": time::decimal(snapshot.bytes),
    })
}

fn inspect(engine: &Engine, args: &InspectArgs) -> Outcome {
    let mut found = Vec::new();
    for name in &args.names {
        found.push(describe(&engine.snapshots().open(name)?)?);
    }
    print_values(args.format.as_ref(), &found)?;
    Ok(0)
}

/// Everything about a snapshot.
pub fn describe(snapshot: &Snapshot) -> Result<Value, Error> {
    let state = snapshot.state()?;
    let mut value = json!(snapshot.record);
    value["name"] = json!(snapshot.name);
    value["folder"] = json!(snapshot.folder());
    value["config"] = json!(state.config);
    value["added"] = json!(state.added);
    Ok(value)
}

/// Has all of these removed that can be, and prints their names.
pub fn remove_each(names: &[String], remove: impl Fn(&str) -> Result<(), Error>) -> Outcome {
    let mut code = 0;
    for name in names {
        match remove(name) {
            Ok(()) => println!("{name}"),
            Err(e) if names.len() == 1 => return Err(e.into()),
            Err(e) => {
                eprintln!("bulkhead: {}", crate::with_causes(&e));
                code = 1;
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_when_it_cannot_be_read_is_listed_all_the_same() {
        let listed = Listed {
            name: "old".to_owned(),
            record: Err(bulkhead_engine::Error::Invalid("another format".to_owned())),
            bytes: 2_000_000,
        };
        let row = row(&listed);
        assert_eq!((&row["Name"], &row["Size"]), (&json!("old"), &json!("2MB")));
        assert_eq!(row["Created"], "-");
    }
}
