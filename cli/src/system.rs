//! `system df` and `system prune`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_engine::templates::Listed;
use bulkhead_engine::{Engine, Entry};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::Outcome;
use crate::image::{in_use, print_removed};
use crate::output::{Format, Table, print_rows, time};

/// What all containers and images take, and what of it nobody needs.
#[derive(Subcommand)]
pub enum Command {
    /// Show what images, containers, templates and snapshots take on the disk
    Df(DfArgs),
    /// Remove containers that are not running, with their checkpoints; templates but your own; images that nothing uses
    Prune(PruneArgs),
}

/// Show what images, containers, and templates and snapshots of virtual machines take on the disk.
#[derive(Args)]
pub struct DfArgs {
    /// table, json, or a template
    #[arg(long, default_value = "table")]
    format: Format,
}

/// Remove containers that are not running, with their checkpoints; templates of virtual machines that `run` has made;
/// and images that nothing uses.
#[derive(Args)]
pub struct PruneArgs {
    /// Also images that have a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Does it.
pub fn run(command: &Command, engine: &Engine) -> Outcome {
    engine.sweep()?;
    match command {
        Command::Df(args) => df(engine, args),
        Command::Prune(args) => prune(engine, args),
    }
}

fn df(engine: &Engine, args: &DfArgs) -> Outcome {
    let store = engine.store()?;
    let used: BTreeSet<_> = engine.images_in_use()?.into_iter().collect();
    let images = store.images()?;
    let all: BTreeSet<_> = images.iter().map(|image| image.manifest.digest).collect();
    let containers = engine.list()?;
    let idle: Vec<&Entry> = containers
        .iter()
        .filter(|entry| !entry.state.status.is_up())
        .collect();
    let size_of = |entries: &[&Entry]| -> u64 {
        entries
            .iter()
            .map(|entry| bytes_in(&entry.files.folder))
            .sum()
    };
    let every: Vec<&Entry> = containers.iter().collect();
    let row = |kind, total: usize, active: usize, size: u64, reclaimable: Option<u64>| {
        json!({
            "Type": kind,
            "TotalCount": total.to_string(),
            "Active": active.to_string(),
            "Size": time::decimal(size),
            "Reclaimable": reclaimable.map_or_else(|| "-".to_owned(), time::decimal),
        })
    };
    let templates = engine.templates().list()?;
    let own = engine.own_templates().list()?;
    let snapshots = engine.snapshots().list()?;
    let unused = all.difference(&used).count();
    let layers = bytes_in(&store.root().join("blobs"));
    let disks = bytes_in(&store.root().join("disks")) + bytes_in(&store.root().join("trees"));
    let rows: Vec<Value> = vec![
        row(
            "Images",
            all.len(),
            all.len() - unused,
            layers,
            (unused == all.len()).then_some(layers),
        ),
        row(
            "Disks",
            all.len(),
            all.len() - unused,
            disks,
            (unused == all.len()).then_some(disks),
        ),
        row(
            "Containers",
            containers.len(),
            containers.len() - idle.len(),
            size_of(&every),
            Some(size_of(&idle)),
        ),
        // A clone keeps what it has of a template, whatever becomes of that. Nothing but `template rm` removes the
        // user's own.
        row(
            "Templates",
            templates.len() + own.len(),
            0,
            bytes_of(&templates) + own.iter().map(|template| template.bytes).sum::<u64>(),
            Some(bytes_of(&templates)),
        ),
        // They are the user's own: nothing but `snapshot rm` removes them.
        row(
            "Snapshots",
            snapshots.len(),
            0,
            snapshots.iter().map(|snapshot| snapshot.bytes).sum(),
            None,
        ),
    ];
    print_rows(&args.format, &rows, || {
        let columns = [
            ("TYPE", "Type"),
            ("TOTAL", "TotalCount"),
            ("ACTIVE", "Active"),
            ("SIZE", "Size"),
            ("RECLAIMABLE", "Reclaimable"),
        ];
        Table::of(&columns, &rows)
    })?;
    Ok(0)
}

fn prune(engine: &Engine, args: &PruneArgs) -> Outcome {
    if !args.force && !confirmed(args.all)? {
        return Ok(0);
    }
    for entry in engine.list()? {
        if !entry.state.status.is_up() {
            engine.remove(&entry, false)?;
            println!("Deleted container: {}", entry.config.id);
        }
    }
    let templates = engine.templates().prune()?;
    for template in &templates {
        println!("Deleted template: {}", template.key);
    }
    let store = engine.store()?;
    let (removed, garbage) = store.prune(args.all, &|| in_use(engine))?;
    let bytes = garbage.bytes + engine.remove_dead_trees(&store)? + bytes_of(&templates);
    print_removed(&removed);
    println!("Total reclaimed space: {}", time::decimal(bytes));
    Ok(0)
}

fn confirmed(all: bool) -> Result<bool, Box<dyn std::error::Error>> {
    if !io::stdin().is_terminal() {
        return Err("there is nobody to ask whether to remove all that: say --force".into());
    }
    let images = if all {
        "all images"
    } else {
        "all images without a name"
    };
    print!(
        "Remove all containers that are not running, with their checkpoints, all templates of virtual \
         machines but your own, and {images} that no container uses? [y/N] "
    );
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn bytes_of(templates: &[Listed]) -> u64 {
    templates.iter().map(|template| template.bytes).sum()
}

/// What the files in a folder take on the disk. What goes meanwhile takes nothing.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
