//! The command line: what runtimes of this specification have in common.

use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::signal::Signal;

/// What to do with which container.
pub struct Arguments {
    pub operation: Operation,
    /// The directory of all containers.
    pub root: PathBuf,
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub id: String,
}

pub enum Operation {
    Create,
    /// What `create` leaves behind.
    Keep,
    Start,
    State,
    /// With a signal's number.
    Kill(i32),
    Delete {
        force: bool,
    },
}

const USAGE: &str = "usage: oci-runtime [--root DIR] create [--bundle DIR] [--pid-file FILE] ID | start ID | state ID | \
     kill ID [SIGNAL] | delete [--force] ID";

impl Arguments {
    pub fn read(words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut words = words;
        let mut root = PathBuf::from("/run/bulkhead-oci-runtime");
        let mut bundle = PathBuf::from(".");
        let (mut pid_file, mut force) = (None, false);
        let mut plain = Vec::new();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--root" => root = value()?.into(),
                "--bundle" | "-b" => bundle = value()?.into(),
                "--pid-file" => pid_file = Some(value()?.into()),
                "--force" | "-f" => force = true,
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}\n{USAGE}"));
                }
                _ => plain.push(word),
            }
        }
        let mut plain = plain.into_iter();
        let operation = plain.next().ok_or(USAGE)?;
        let id = plain
            .next()
            .ok_or_else(|| format!("{operation} needs the ID of a container\n{USAGE}"))?;
        let operation = match operation.as_str() {
            "create" => Operation::Create,
            "keep" => Operation::Keep,
            "start" => Operation::Start,
            "state" => Operation::State,
            "kill" => Operation::Kill(signal(plain.next().as_deref().unwrap_or("TERM"))?),
            "delete" => Operation::Delete { force },
            other => return Err(format!("there is no operation {other}\n{USAGE}")),
        };
        match plain.next() {
            Some(word) => Err(format!("{word:?} is one too many\n{USAGE}")),
            None => Ok(Arguments {
                operation,
                root,
                bundle,
                pid_file,
                id,
            }),
        }
    }
}

/// By number, or by name with or without SIG.
fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number @ 1..=64) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    Signal::from_str(&format!("SIG{name}"))
        .map(|signal| signal as i32)
        .map_err(|_| format!("there is no signal {text}"))
}
