//! `ps`.

use bulkhead_engine::record::{Config, Status};
use bulkhead_engine::volumes::{Source, VolumeMount};
use bulkhead_engine::{Engine, Entry};
use clap::Args;
use serde_json::{Value, json};

use crate::Outcome;
use crate::output::{Format, Table, print_rows, time};

/// List containers.
#[derive(Args)]
pub struct PsArgs {
    /// Also those that are not running
    #[arg(short, long)]
    all: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Only the newest, running or not
    #[arg(short, long)]
    latest: bool,
    /// Only so many, the newest, running or not
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Do not shorten IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// Only those with: id=, name=, status=, exited=, label=, ancestor=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    filter: Vec<Filter>,
    /// table, json, or a template such as '{{.ID}} {{.Names}}'
    #[arg(long, default_value = "table")]
    format: Format,
}

/// What a container must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Id(String),
    Name(String),
    Status(String),
    Exited(u8),
    Label(String, Option<String>),
    Ancestor(String),
}

/// Lists containers.
pub fn list(engine: &Engine, args: &PsArgs) -> Outcome {
    let mut entries = engine.list()?;
    let any_state = args.all
        || args.latest
        || args.last.is_some()
        || args
            .filter
            .iter()
            .any(|f| matches!(f, Filter::Status(_) | Filter::Exited(_)));
    entries
        .retain(|entry| (any_state || entry.state.status.is_up()) && passes(&args.filter, entry));
    if let Some(last) = args.last.or(args.latest.then_some(1)) {
        entries.truncate(last);
    }
    if args.quiet {
        for entry in &entries {
            println!("{}", shorten(&entry.config.id, 12, args.no_trunc));
        }
        return Ok(0);
    }
    let rows: Vec<Value> = entries.iter().map(|e| row(e, args.no_trunc)).collect();
    print_rows(&args.format, &rows, || {
        let columns = [
            ("CONTAINER ID", "ID"),
            ("IMAGE", "Image"),
            ("COMMAND", "Command"),
            ("CREATED", "RunningFor"),
            ("STATUS", "Status"),
            ("ISOLATION", "Isolation"),
            ("PORTS", "Ports"),
            ("NAMES", "Names"),
        ];
        Table::of(&columns, &rows)
    })?;
    Ok(0)
}

/// A container in Docker's words.
fn row(entry: &Entry, no_trunc: bool) -> Value {
    let (config, state) = (&entry.config, &entry.state);
    let labels: Vec<String> = config
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "ID": shorten(&config.id, 12, no_trunc),
        "Image": config.image.name,
        "Command": format!("\"{}\"", shorten(&config.command().join(" "), 20, no_trunc)),
        "CreatedAt": config.created.to_string(),
        "RunningFor": time::ago(config.created),
        "Status": status(entry),
        "State": state.status.name(),
        "Isolation": config.isolation.name(),
        "Ports": "",
        "Names": config.name,
        "Labels": labels.join(","),
        "Mounts": mounts(config).join(","),
        "Networks": "none",
        "Size": "0B",
    })
}

/// Names of volumes, and paths of this machine.
fn mounts(config: &Config) -> Vec<String> {
    let name = |mount: &VolumeMount| match &mount.source {
        Source::Path { path, .. } => path.display().to_string(),
        Source::Volume { name, .. } => name.clone(),
    };
    config.volumes.iter().map(name).collect()
}

/// `Up 3 minutes`, `Exited (0) 5 seconds ago`.
fn status(entry: &Entry) -> String {
    let state = &entry.state;
    let up = || state.started.map_or_else(String::new, time::since);
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", up()),
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Exited => {
            let when = state.finished.map_or_else(String::new, time::ago);
            format!("Exited ({}) {when}", state.exit_code)
        }
    }
}

fn shorten(text: &str, most: usize, no_trunc: bool) -> String {
    // What a program is called may hold anything, and is shown on a terminal.
    let text = bulkhead_engine::agent::printable(text);
    if no_trunc || text.chars().count() <= most {
        return text;
    }
    let is_id = most == 12;
    let mut short: String = text.chars().take(most - usize::from(!is_id)).collect();
    if !is_id {
        short.push('…');
    }
    short
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let wrong = || {
        format!("`{text}` is not a filter: give id=, name=, status=, exited=, label= or ancestor=")
    };
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let own = || value.to_owned();
    Ok(match key {
        "id" => Filter::Id(own()),
        "name" => Filter::Name(own()),
        "status" if ["created", "running", "paused", "exited"].contains(&value) => {
            Filter::Status(own())
        }
        "exited" => Filter::Exited(value.parse().map_err(|_| wrong())?),
        "label" => match value.split_once('=') {
            Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned())),
            None => Filter::Label(own(), None),
        },
        "ancestor" => Filter::Ancestor(own()),
        _ => return Err(wrong()),
    })
}

/// Whether a container is what the filters want: one of those with the same key, for every key.
fn passes(filters: &[Filter], entry: &Entry) -> bool {
    let config = &entry.config;
    let matches = |filter: &Filter| match filter {
        Filter::Id(start) => config.id.starts_with(start.as_str()),
        Filter::Name(part) => config.name.contains(part.as_str()),
        Filter::Status(status) => entry.state.status.name() == status,
        Filter::Exited(code) => {
            entry.state.status == Status::Exited && entry.state.exit_code == *code
        }
        Filter::Label(name, value) => config
            .labels
            .get(name)
            .is_some_and(|has| value.as_ref().is_none_or(|value| has == value)),
        Filter::Ancestor(image) => {
            let name = &config.image.name;
            name == image
                || name.split(':').next() == Some(image)
                || config.image.id.contains(image.as_str())
        }
    };
    filters.iter().all(|filter| {
        let same_key =
            |other: &&Filter| std::mem::discriminant(*other) == std::mem::discriminant(filter);
        match filter {
            // Each label is a wish of its own.
            Filter::Label(..) => matches(filter),
            _ => filters.iter().filter(same_key).any(matches),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_unknown_ones_refused() {
        assert_eq!(parse_filter("exited=3"), Ok(Filter::Exited(3)));
        let label = Filter::Label("a".into(), Some("b=c".into()));
        assert_eq!(parse_filter("label=a=b=c"), Ok(label));
        for wrong in ["x", "x=y", "status=bored", "exited=-1"] {
            assert!(parse_filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn long_commands_are_shortened_and_cannot_move_the_cursor() {
        assert_eq!(
            shorten("sh -c 'echo hello world'", 20, false),
            "sh -c 'echo hello w…"
        );
        assert_eq!(shorten("a\x1b[2Jb", 20, false), "a\u{fffd}[2Jb");
        assert_eq!(shorten("0123456789abcdef", 12, false), "0123456789ab");
        assert_eq!(shorten("0123456789abcdef", 12, true), "0123456789abcdef");
    }
}
