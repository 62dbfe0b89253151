//! What is going on with each blob, for whoever draws it.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// How far something is. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State<'a> {
    /// It will be looked at.
    Waiting,
    /// It is here (or there) already.
    Exists,
    /// So much of it has come, out of so much.
    Downloading(u64, u64),
    /// So much of it has been sent, out of so much.
    Uploading(u64, u64),
    /// So much of it has been read, out of so much.
    Reading(u64, u64),
    /// The connection broke; it is tried again.
    Retrying(&'a str),
    /// The registry took it from another of its repositories.
    Mounted(&'a str),
    /// It is complete and was checked.
    Done,
}

/// Somebody to be told. Called from several threads at once, and often: drawing is to be rationed there.
pub trait Progress: Sync {
    /// `item` (the short digest of a blob, or the name of an image) is now in this state.
    fn report(&self, item: &str, state: State<'_>);

    /// Something worth a line, such as which digest a tag stands for.
    fn message(&self, text: &str);
}

/// Nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _item: &str, _state: State<'_>) {}
    fn message(&self, _text: &str) {}
}

/// A line for each thing that begins or ends, none for the bytes in between: for logs and pipes.
pub struct Plain<W> {
    state: Mutex<(W, Vec<String>)>,
}

impl<W: Write + Send> Plain<W> {
    /// Writes to `out`. That the writing fails is no reason to stop the work.
    pub fn new(out: W) -> Self {
        Plain {
            state: Mutex::new((out, Vec::new())),
        }
    }

    fn line(&self, text: &str) {
        let (out, _) = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "{text}");
    }
}

impl<W: Write + Send> Progress for Plain<W> {
    fn report(&self, item: &str, state: State<'_>) {
        let text = match state {
            State::Waiting => return,
            State::Downloading(..) | State::Uploading(..) | State::Reading(..) => {
                let (_, begun) = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if begun.iter().any(|known| known == item) {
                    return;
                }
                begun.push(item.into());
                match state {
                    State::Downloading(..) => "Downloading".into(),
                    State::Uploading(..) => "Uploading".into(),
                    _ => "Reading".into(),
                }
            }
            State::Exists => "Already exists".into(),
            State::Retrying(why) => format!("Retrying: {why}"),
            State::Mounted(from) => format!("Mounted from {from}"),
            State::Done => "Complete".into(),
        };
        self.line(&format!("{item}: {text}"));
    }

    fn message(&self, text: &str) {
        self.line(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_when_bytes_come_writes_one_line_for_all() {
        let plain = Plain::new(Vec::new());
        plain.message("Pulling");
        for done in 0..100 {
            plain.report("abc", State::Downloading(done, 100));
        }
        plain.report("abc", State::Done);
        let (out, _) = plain.state.into_inner().expect("not poisoned");
        assert_eq!(out, b"Pulling\nabc: Downloading\nabc: Complete\n");
    }
}
