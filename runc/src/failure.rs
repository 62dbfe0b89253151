//! What went wrong, for whoever called: a sentence on standard error, a line of the log, an exit code.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use bulkhead_container::Error;
use serde_json::json;

use crate::clock;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    /// Of this process.
    pub code: u8,
}

/// What a command comes to.
pub type Outcome<T> = Result<T, Failure>;

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure { message, code: 1 }
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Failure {
        message.to_owned().into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = match &error {
            // Podman and containerd know a missing program by these words.
            Error::NotFound { program } => {
                format!("{error}: exec: {program:?}: executable file not found in $PATH")
            }
            _ => error.to_string(),
        };
        Failure { message, code: 1 }
    }
}

/// For errors of the system: what was done, and to what.
pub fn cannot<E: Display>(what: impl Display) -> impl FnOnce(E) -> Failure {
    move |error| format!("cannot {what}: {error}").into()
}

/// Where errors are written, besides standard error.
#[derive(Debug, Default)]
pub struct Log {
    pub file: Option<PathBuf>,
    pub json: bool,
}

impl Log {
    /// Whether it can be written to: what goes wrong later is not to be lost.
    pub fn check(&self) -> Outcome<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let opened = OpenOptions::new().create(true).append(true).open(file);
        opened
            .map(drop)
            .map_err(cannot(format_args!("open the log {}", file.display())))
    }

    /// Says that a command failed.
    pub fn error(&self, message: &str) {
        self.write("error", message);
        eprintln!("bulkhead-runc: error: {message}");
    }

    fn write(&self, level: &str, message: &str) {
        let Some(file) = &self.file else { return };
        let time = clock::now();
        let line = match self.json {
            true => json!({"level": level, "msg": message, "time": time}).to_string(),
            false => format!("time={time:?} level={level} msg={message:?}"),
        };
        // One write, since others may write to the file, too.
        let opened = OpenOptions::new().create(true).append(true).open(file);
        if let Err(error) = opened.and_then(|mut file| writeln!(file, "{line}")) {
            eprintln!("bulkhead-runc: {}: {error}", file.display());
        }
    }
}

/// Something that is not as it should be and changes nothing.
pub fn warn(problem: &Error) {
    eprintln!("bulkhead-runc: warning: {problem}");
}
