//! `history`.

use bulkhead_engine::Engine;
use bulkhead_engine::agent::printable;
use bulkhead_image::inspect::{Step, history as steps};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Outcome;
use crate::output::{Format, Table, print_rows, time};

/// Characters of a command that are shown.
const SHORT: usize = 45;

/// Show how an image was made.
#[derive(Args)]
pub struct HistoryArgs {
    /// Do not shorten what was done
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a template
    #[arg(long, default_value = "table")]
    format: Format,
    /// Its name or ID
    image: String,
}

/// Shows an image's history, the newest step first.
pub fn history(engine: &Engine, args: &HistoryArgs) -> Outcome {
    let image = engine.store()?.find(&args.image)?;
    let rows: Vec<Value> = steps(&image)
        .iter()
        .map(|step| row(step, args.no_trunc))
        .collect();
    print_rows(&args.format, &rows, || {
        let columns = [
            ("IMAGE", "ID"),
            ("CREATED", "CreatedSince"),
            ("CREATED BY", "CreatedBy"),
            ("SIZE", "Size"),
            ("COMMENT", "Comment"),
        ];
        Table::of(&columns, &rows)
    })?;
    Ok(0)
}

/// A step in Docker's words.
fn row(step: &Step, no_trunc: bool) -> Value {
    let created: Option<Timestamp> = step.created.parse().ok();
    let mut by = printable(&step.created_by);
    let id = step.id.strip_prefix("sha256:").filter(|_| !no_trunc);
    if !no_trunc && by.chars().count() > SHORT {
        by = by.chars().take(SHORT - 1).chain(['…']).collect();
    }
    json!({
        "ID": id.map_or(&*step.id, bulkhead_engine::short_id),
        "CreatedAt": step.created,
        "CreatedSince": created.map_or_else(|| "N/A".to_owned(), time::ago),
        "CreatedBy": by,
        "Size": time::decimal(step.size),
        "Comment": printable(&step.comment),
    })
}
