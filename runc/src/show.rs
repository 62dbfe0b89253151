//! What is said of containers: `state`, `list`, `ps`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use bulkhead_container::{Opened, spec};
use serde::Serialize;

use crate::Globals;
use crate::arguments::Arguments;
use crate::failure::{Outcome, cannot};
use crate::place::{Place, Status};

/// What is said of one. More than the specification asks for, as others read what runc says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: &'static str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    status: &'static str,
    bundle: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Shown {
    fn read(place: &Place) -> Outcome<Shown> {
        let mut shown = Shown {
            oci_version: spec::VERSION,
            id: place.id.clone(),
            pid: None,
            status: Status::Creating.name(),
            bundle: PathBuf::new(),
            rootfs: None,
            created: None,
            annotations: BTreeMap::new(),
            owner: String::new(),
        };
        let Some(kept) = place.kept()? else {
            return Ok(shown);
        };
        let (opened, spec) = place.open(&kept, false)?;
        shown.status = place.status(&kept, &opened).name();
        shown.pid = match &opened {
            Opened::Alive(_) => Some(kept.record.pid),
            Opened::Ended(_) => None,
        };
        shown.bundle = kept.bundle;
        shown.rootfs = Some(kept.rootfs);
        shown.created = Some(kept.created);
        shown.annotations = spec.annotations;
        shown.owner = match kept.owner {
            0 => "root".into(),
            number => number.to_string(),
        };
        Ok(shown)
    }
}

/// Writes to standard output.
pub fn print(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(cannot("write to standard output"))
}

/// As JSON, for people and programs.
pub fn print_json(value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value).map_err(cannot("write JSON"))?;
    print(&(text + "\n"))
}

pub fn state(globals: &Globals, id: &str) -> Outcome<u8> {
    let place = Place::new(&globals.root, id)?;
    // Whoever asks until there is one would take a part for the whole.
    place.whole()?;
    print_json(&Shown::read(&place)?)?;
    Ok(0)
}

pub fn list(globals: &Globals, arguments: &Arguments) -> Outcome<u8> {
    let mut all = Vec::new();
    for place in Place::all(&globals.root)? {
        match Shown::read(&place) {
            Ok(shown) => all.push(shown),
            // It went while we looked.
            Err(_) if !place.exists() => {}
            Err(failure) => return Err(failure),
        }
    }
    if arguments.has("quiet") {
        let lines: String = all.iter().map(|shown| format!("{}\n", shown.id)).collect();
        print(&lines)?;
        return Ok(0);
    }
    match arguments.value("format").unwrap_or("table") {
        "json" => {
            let text = serde_json::to_string(&all).map_err(cannot("write JSON"))?;
            print(&(text + "\n"))?;
        }
        "table" => print(&table(&all))?,
        other => return Err(format!("--format is table or json, not {other:?}").into()),
    }
    Ok(0)
}

fn table(all: &[Shown]) -> String {
    let heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |shown: &Shown| {
        [
            shown.id.clone(),
            shown.pid.unwrap_or(0).to_string(),
            shown.status.to_owned(),
            shown.bundle.display().to_string(),
            shown.created.clone().unwrap_or_default(),
            shown.owner.clone(),
        ]
    };
    let rows: Vec<[String; 6]> = [heads].into_iter().chain(all.iter().map(row)).collect();
    let mut text = String::new();
    for row in &rows {
        for (n, cell) in row.iter().enumerate() {
            let widths = rows.iter().filter_map(|row| row.get(n)).map(String::len);
            let width = widths.max().unwrap_or(0);
            let _ = match n + 1 == row.len() {
                true => writeln!(text, "{cell}"),
                false => write!(text, "{cell:width$}   "),
            };
        }
    }
    text
}

/// The processes of a container: their numbers, or what ps(1) says of them.
pub fn processes(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let place = Place::new(&globals.root, id)?;
    let kept = place.whole()?;
    let (opened, _) = place.open(&kept, false)?;
    let mut pids = match opened {
        Opened::Alive(container) => container.processes()?,
        Opened::Ended(_) => Vec::new(),
    };
    pids.sort_unstable();
    match arguments.value("format").unwrap_or("table") {
        "json" => {
            let text = serde_json::to_string(&pids).map_err(cannot("write JSON"))?;
            print(&(text + "\n"))?;
        }
        "table" => print(&ask_ps(&pids, arguments)?)?,
        other => return Err(format!("--format is table or json, not {other:?}").into()),
    }
    Ok(0)
}

fn ask_ps(pids: &[u32], arguments: &Arguments) -> Outcome<String> {
    let mut options: Vec<&str> = arguments.words.iter().skip(1).map(String::as_str).collect();
    if options.is_empty() {
        options.push("-ef");
    }
    let output = std::process::Command::new("ps").args(options).output();
    let output = output.map_err(cannot("run ps"))?;
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("ps failed: {}", problem.trim()).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or("ps shows no PID with these options".to_owned())?;
    let is_ours = |line: &&str| {
        let number = line.split_whitespace().nth(column);
        number
            .and_then(|number| number.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    };
    let chosen = [head].into_iter().chain(lines.filter(is_ours));
    Ok(chosen.map(|line| format!("{line}\n")).collect())
}
