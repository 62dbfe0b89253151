//! `top`.

use bulkhead_engine::Engine;
use bulkhead_engine::agent::printable;
use clap::Args;
use serde_json::json;

use crate::Outcome;
use crate::output::{Format, Table, print_rows, time};

/// Show the processes of a container.
#[derive(Args)]
pub struct TopArgs {
    /// table, json, or a template
    #[arg(long, default_value = "table")]
    format: Format,
    /// Name or ID
    container: String,
}

/// Shows the processes of a container.
pub fn top(engine: &Engine, args: &TopArgs) -> Outcome {
    let entry = engine.find(&args.container)?;
    let processes = engine.processes(&entry)?.processes;
    let rows: Vec<_> = processes.iter().map(|process| json!(process)).collect();
    print_rows(&args.format, &rows, || {
        // As the container counts them; the parent of its first process is nobody it knows.
        let inside = |pid| {
            let found = processes.iter().find(|process| process.pid == pid);
            found.map_or(0, |process| process.container_pid)
        };
        let mut table = Table::new(&["PID", "PPID", "UID", "STATE", "TIME", "RSS", "COMMAND"]);
        for process in &processes {
            let seconds = process.cpu_ns / 1_000_000_000;
            table.row(vec![
                process.container_pid.to_string(),
                inside(process.parent_pid).to_string(),
                process.uid.to_string(),
                printable(&process.state),
                format!(
                    "{:02}:{:02}:{:02}",
                    seconds / 3600,
                    seconds / 60 % 60,
                    seconds % 60
                ),
                time::binary(process.resident_bytes),
                printable(&process.command.join(" ")),
            ]);
        }
        table
    })?;
    Ok(0)
}
