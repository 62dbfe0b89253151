//! `stats`.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use bulkhead_engine::{Engine, Entry};
use bulkhead_protocol::Stats;
use clap::Args;
use serde_json::{Value, json};

use crate::Outcome;
use crate::output::{Format, Table, print_rows, time};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// What the table shows.
const COLUMNS: [(&str, &str); 8] = [
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
];

/// Show what containers use.
#[derive(Args)]
pub struct StatsArgs {
    /// Once, rather than again and again
    #[arg(long)]
    no_stream: bool,
    /// table, json, or a template such as '{{.Name}} {{.MemUsage}}'
    #[arg(long, default_value = "table")]
    format: Format,
    /// Names or IDs [default: all that are running]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Shows what containers use.
pub fn stats(engine: &Engine, args: &StatsArgs) -> Outcome {
    let mut before = look(engine, &args.containers)?;
    loop {
        thread::sleep(INTERVAL);
        let now = look(engine, &args.containers)?;
        let rows: Vec<Value> = now
            .iter()
            .map(|(entry, stats)| {
                let earlier = before.iter().find(|(e, _)| e.config.id == entry.config.id);
                row(entry, stats, earlier.map(|(_, stats)| stats))
            })
            .collect();
        if !args.no_stream && args.format == Format::Table && io::stdout().is_terminal() {
            // Over what was shown before.
            print!("\x1b[2J\x1b[H");
        }
        print_rows(&args.format, &rows, || Table::of(&COLUMNS, &rows))?;
        io::stdout().flush()?;
        if args.no_stream || (now.is_empty() && !args.containers.is_empty()) {
            return Ok(0);
        }
        before = now;
    }
}

fn look(
    engine: &Engine,
    names: &[String],
) -> Result<Vec<(Entry, Stats)>, Box<dyn std::error::Error>> {
    let entries = if names.is_empty() {
        let mut all = engine.list()?;
        all.retain(|entry| entry.state.status.is_up());
        all
    } else {
        let found = names.iter().map(|name| engine.find(name));
        found.collect::<Result<_, _>>()?
    };
    let mut looked = Vec::new();
    for entry in entries {
        match engine.stats(&entry) {
            Ok(stats) => looked.push((entry, stats)),
            // It has just ended.
            Err(_) if names.is_empty() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(looked)
}

/// What a container uses in Docker's words.
fn row(entry: &Entry, now: &Stats, before: Option<&Stats>) -> Value {
    let usage = |stats: &Stats| stats.cpu.unwrap_or_default().usage_ns;
    let cpu = before.map_or(0.0, |before| {
        let took = now.read_ns.saturating_sub(before.read_ns).max(1);
        100.0 * usage(now).saturating_sub(usage(before)) as f64 / took as f64
    });
    let memory = now.memory.unwrap_or_default();
    // What goes first when memory is wanted is not counted, as Docker does it.
    let used = memory
        .usage_bytes
        .saturating_sub(memory.inactive_file_bytes);
    let limit = memory
        .limit_bytes
        .unwrap_or(entry.config.machine.memory_mib << 20);
    let io = now.io.unwrap_or_default();
    json!({
        "ID": bulkhead_engine::short_id(&entry.config.id),
        "Name": entry.config.name,
        "CPUPerc": format!("{cpu:.2}%"),
        "MemUsage": format!("{} / {}", time::binary(used), time::binary(limit)),
        "MemPerc": format!("{:.2}%", 100.0 * used as f64 / limit.max(1) as f64),
        "NetIO": "0B / 0B",
        "BlockIO": format!("{} / {}", time::decimal(io.read_bytes), time::decimal(io.write_bytes)),
        "PIDs": now.pids.unwrap_or_default().current.to_string(),
    })
}
