//! `bulkhead compare`: the same image both ways, measured and looked into.

use std::cell::RefCell;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_compare::{Options, Report, Setup, built_in, with_bench};
use bulkhead_engine::Engine;
use bulkhead_image::store::{Held, RemoveOptions};
use clap::{Args, value_parser};

use crate::Outcome;
use crate::boot::Format;
use crate::image::{Policy, in_use, obtain};
use crate::output::Table;
use crate::values::parse_bytes;

/// Run the same image both ways, measure what each costs, and show what each keeps apart.
#[derive(Args)]
#[command(after_help = "\
Without an image it is one with the measuring program alone, which needs no network. Any other image
gets that program in a layer more. What is printed was measured there and then.

Exit codes: 0 both kinds were measured, 1 only one of them, 125 neither.

Examples:
  bulkhead compare
  bulkhead compare --html report.html --prove-blast-radius
  bulkhead compare debian -- sh -c 'ls -R /usr | wc -l'")]
pub struct CompareArgs {
    /// Image to run; the measuring program alone if left out
    image: Option<String>,
    /// A command of the image to measure besides, from its start to its end
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// How often each kind is started to be measured
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long one measurement takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = value_parser!(u64).range(1..=60_000))]
    time: u64,
    /// Memory to fill with idle instances
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_bytes)]
    density_budget: u64,
    /// How many of them at most
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = value_parser!(u64).range(1..=10_000))]
    density_most: u64,
    /// How long to go on starting them, for each kind, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    density_time: u64,
    /// How long all of it should take, in seconds: on a slow host there are fewer rounds then
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    limit: u64,
    /// Bring down the kernel of a microVM, and see what goes on
    #[arg(long)]
    prove_blast_radius: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write a page with charts to a file as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Do not say what is being done
    #[arg(short, long)]
    quiet: bool,
}

/// Compares.
pub fn run(engine: &Engine, root: Option<&Path>, args: &CompareArgs) -> Outcome {
    // What was killed before is put in order before anything else.
    engine.sweep()?;
    let store = engine.store()?;
    let lease = store.lease()?;
    let found = args.image.as_ref().map(|name| {
        let (image, _) = obtain(&store, &lease, name, Policy::Missing, None)?;
        Ok::<_, bulkhead_image::Error>(image)
    });
    let found = found.transpose()?;
    let image = match &found {
        Some(image) => with_bench(&store, &lease, image)?,
        None => built_in(&store, &lease)?,
    };
    lease.hold(Held::Image(image.manifest.digest))?;
    let progress = crate::output::progress(args.quiet || !io::stderr().is_terminal());
    let disk = store.disk(&image, &*progress)?;
    let name = image.title();
    let setup = Setup {
        engine,
        root,
        image: &name,
        options: Vec::new(),
    };
    // The image with nothing but the measuring program has no other commands.
    let command = (!args.command.is_empty()).then(|| {
        let image = args.image.as_ref().unwrap_or(&name);
        (image.clone(), args.command.clone())
    });
    let options = Options {
        title: args
            .image
            .clone()
            .unwrap_or_else(|| "bulkhead's own".to_owned()),
        disk,
        command,
        rounds: args.rounds,
        time: Duration::from_millis(args.time),
        density_bytes: args.density_budget,
        density_most: usize::try_from(args.density_most)?,
        density_time: Duration::from_secs(args.density_time),
        limit: Duration::from_secs(args.limit),
        blast_radius: args.prove_blast_radius,
    };
    let report = bulkhead_compare::compare(&setup, &options, &say(args.quiet));
    drop(lease);
    if found.is_some() {
        // Made for this alone. What still holds it keeps it; `system prune` takes it then.
        let _ = store.remove(&name, RemoveOptions { force: true }, &|| in_use(engine));
    }
    let report = report?;
    print(&report, args)?;
    Ok(
        match (&report.errors.vm[..], &report.errors.container[..]) {
            ([], []) => 0,
            ([], _) | (_, []) => 1,
            _ => crate::FAILED,
        },
    )
}

/// Says what is being done: in one line on a terminal, else in a line each.
fn say(quiet: bool) -> impl Fn(&str) {
    let width = RefCell::new(0);
    move |text: &str| {
        if quiet {
            return;
        }
        let mut err = io::stderr().lock();
        let _ = if io::stderr().is_terminal() {
            let before = width.replace(text.chars().count());
            write!(err, "\r{text:before$}").and_then(|()| err.flush())
        } else {
            writeln!(err, "{text}")
        };
    }
}

fn print(report: &Report, args: &CompareArgs) -> Result<(), Box<dyn std::error::Error>> {
    if !args.quiet && io::stderr().is_terminal() {
        eprint!("\r\u{1b}[K");
    }
    if let Some(path) = &args.html {
        fs::write(path, report.to_html())
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    if args.format == Format::Json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
        return Ok(());
    }
    drop(out);
    let mut table = Table::new(&[]);
    for row in report.figure_rows() {
        table.row(row);
    }
    table.print()?;
    let mut out = io::stdout().lock();
    for lines in [report.evidence_lines(), report.remarks()] {
        writeln!(out)?;
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
    writeln!(out, "\nMeasured in {:.0} seconds.", report.seconds)?;
    Ok(())
}
