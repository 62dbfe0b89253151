//! `logs`.

use std::io::{self, Write};

use bulkhead_engine::Engine;
use bulkhead_engine::log::{Entry, Reader, Select, Stream};
use clap::Args;
use jiff::Timestamp;

use crate::Outcome;
use crate::values::parse_time;

/// Show what a container has written.
#[derive(Args)]
pub struct LogsArgs {
    /// Go on as it writes more
    #[arg(short, long)]
    follow: bool,
    /// Nothing from before: a time, or how long ago, like 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Nothing from after: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Only so many lines of what there is, the last ones, or all
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = parse_tail)]
    tail: Tail,
    /// Put the time in front of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Name or ID
    container: String,
}

/// How many lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(Option<usize>);

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" | "-1" => Ok(Tail(None)),
        text => match text.parse() {
            Ok(n) => Ok(Tail(Some(n))),
            Err(_) => Err(format!("`{text}` is neither a number of lines nor `all`")),
        },
    }
}

/// Shows a container's log.
pub fn logs(engine: &Engine, args: &LogsArgs) -> Outcome {
    let entry = engine.find(&args.container)?;
    let select = Select {
        since: args.since,
        until: args.until,
        tail: args.tail.0,
    };
    let mut reader = Reader::new(&entry.files.log(), select);
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    let mut print = |entry: &Entry<'_>| {
        let to: &mut dyn Write = match entry.stream {
            Stream::Stdout => &mut out,
            Stream::Stderr => &mut err,
        };
        if args.timestamps {
            write!(to, "{:.9} ", entry.time)?;
        }
        to.write_all(entry.log.as_bytes())
    };
    let result = if args.follow {
        engine.follow(&entry, &mut reader, &mut print)
    } else {
        reader.read_all(&mut print)
    };
    match result.and_then(|()| out.flush()) {
        // Nobody reads any more.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(e) => Err(format!("cannot show the log of {}: {e}", args.container).into()),
        Ok(()) => Ok(0),
    }
}
