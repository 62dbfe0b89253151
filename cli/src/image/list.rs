//! `images`.

use bulkhead_engine::Engine;
use bulkhead_image::{Image, Reference};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Outcome;
use crate::output::{Format, Table, print_rows, time};

/// List images.
#[derive(Args)]
pub struct ImagesArgs {
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Accepted for Docker's sake: there are no hidden images
    #[arg(short, long)]
    all: bool,
    /// table, json, or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, default_value = "table")]
    format: Format,
    /// Only those of this repository, or with this name
    name: Option<String>,
}

/// Lists images.
pub fn list(engine: &Engine, args: &ImagesArgs) -> Outcome {
    let mut images = engine.store()?.images()?;
    if let Some(name) = &args.name {
        let wanted: Reference = name.parse()?;
        let any_tag = !name.contains([':', '@']);
        images.retain(|image| {
            image.name.as_ref().is_some_and(|has| {
                *has == wanted || any_tag && has.repository() == wanted.repository()
            })
        });
    }
    images.sort_by_key(|image| std::cmp::Reverse(created(image)));
    if args.quiet {
        for image in &images {
            println!("{}", id(image, args.no_trunc));
        }
        return Ok(0);
    }
    let rows: Vec<Value> = images
        .iter()
        .map(|image| row(image, args.no_trunc))
        .collect();
    print_rows(&args.format, &rows, || {
        let mut columns = vec![
            ("REPOSITORY", "Repository"),
            ("TAG", "Tag"),
            ("IMAGE ID", "ID"),
            ("CREATED", "CreatedSince"),
            ("SIZE", "Size"),
        ];
        if args.digests {
            columns.insert(2, ("DIGEST", "Digest"));
        }
        Table::of(&columns, &rows)
    })?;
    Ok(0)
}

/// An image in Docker's words.
fn row(image: &Image, no_trunc: bool) -> Value {
    let none = || "<none>".to_owned();
    let name = image.name.as_ref();
    let created = created(image);
    json!({
        "ID": id(image, no_trunc),
        "Repository": name.map_or_else(none, Reference::familiar_repository),
        "Tag": name.and_then(|name| name.tag().map(str::to_owned)).unwrap_or_else(none),
        "Digest": image.manifest.digest.to_string(),
        "CreatedAt": created.map(|time| time.to_string()),
        "CreatedSince": created.map_or_else(|| "N/A".to_owned(), time::ago),
        "Size": time::decimal(image.size),
    })
}

/// When an image was made, if it says so.
pub fn created(image: &Image) -> Option<Timestamp> {
    image.config.created().as_ref()?.parse().ok()
}

fn id(image: &Image, no_trunc: bool) -> String {
    if no_trunc {
        image.id.to_string()
    } else {
        image.id.short()
    }
}
