//! What a process prints, line by line.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc;

use crate::lane::patience;

/// Lines as they come.
#[derive(Debug)]
pub struct Lines(mpsc::Receiver<String>);

impl Lines {
    /// The lines of `stream`.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Lines(receiver)
    }

    /// Waits for a line that is this.
    pub fn wait_for(&self, expected: &str) {
        let mut seen = Vec::new();
        loop {
            match self.0.recv_timeout(patience()) {
                Ok(line) if line == expected => return,
                Ok(line) => seen.push(line),
                Err(e) => panic!("there is no line {expected:?} ({e}): {seen:?}"),
            }
        }
    }

    /// Whether a line has come that is this.
    pub fn has(&self, expected: &str) -> bool {
        self.0.try_iter().any(|line| line == expected)
    }
}
