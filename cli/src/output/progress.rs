//! Progress on a terminal: a line for each thing, redrawn in place. Elsewhere plain lines.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_image::progress::{Plain, Progress, Silent, State};

use super::time::decimal;

/// Between two drawings.
const INTERVAL: Duration = Duration::from_millis(100);
/// Characters of a bar.
const BAR: u64 = 30;

/// Progress as it suits standard error: bars on a terminal, else lines, nothing if `quiet`.
pub fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Silent)
    } else if io::stderr().is_terminal() {
        Box::new(Bars(Mutex::new(Screen::new())))
    } else {
        Box::new(Plain::new(io::stderr()))
    }
}

struct Bars(Mutex<Screen>);

/// What is on the terminal.
struct Screen {
    /// What is under way, and what is said of it.
    lines: Vec<(String, String)>,
    /// So many lines were drawn, and the cursor is below them.
    drawn: usize,
    last: Option<Instant>,
}

impl Screen {
    fn new() -> Self {
        Screen {
            lines: Vec::new(),
            drawn: 0,
            last: None,
        }
    }

    /// The bytes that bring the terminal up to date.
    fn draw(&mut self) -> String {
        let columns = crate::terminal::window_size().map_or(80, |(columns, _)| columns);
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for (item, state) in &self.lines {
            let line = format!("{item}: {state}");
            // A line that wraps would not be found again.
            text.extend(line.chars().take(usize::from(columns.max(2)) - 1));
            text.push_str("\x1b[K\n");
        }
        self.drawn = self.lines.len();
        self.last = Some(Instant::now());
        text
    }
}

impl Progress for Bars {
    fn report(&self, item: &str, state: State<'_>) {
        let mut screen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let moving = matches!(
            state,
            State::Downloading(..) | State::Uploading(..) | State::Reading(..)
        );
        let text = describe(state);
        match screen.lines.iter_mut().find(|(known, _)| known == item) {
            Some((_, old)) => *old = text,
            None => screen.lines.push((item.to_owned(), text)),
        }
        // A screen that scrolled away what is done already need not show it all.
        if !moving || screen.last.is_none_or(|last| last.elapsed() >= INTERVAL) {
            let text = screen.draw();
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    fn message(&self, text: &str) {
        let mut screen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What was drawn stays above the message.
        screen.lines.clear();
        screen.drawn = 0;
        let _ = writeln!(io::stderr(), "{text}");
    }
}

fn describe(state: State<'_>) -> String {
    let bar = |what, done: u64, all: u64| {
        let filled = if all == 0 {
            BAR
        } else {
            (u128::from(done.min(all)) * u128::from(BAR) / u128::from(all)) as u64
        };
        let bar: String = (0..BAR)
            .map(|n| if n < filled { '=' } else { ' ' })
            .collect();
        format!("{what:<12} [{bar}] {}/{}", decimal(done), decimal(all))
    };
    match state {
        State::Waiting => "Waiting".to_owned(),
        State::Exists => "Already exists".to_owned(),
        State::Downloading(done, all) => bar("Downloading", done, all),
        State::Uploading(done, all) => bar("Uploading", done, all),
        State::Reading(done, all) => bar("Reading", done, all),
        State::Retrying(why) => format!("Retrying: {why}"),
        State::Mounted(from) => format!("Mounted from {from}"),
        State::Done => "Complete".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill_and_do_not_overflow() {
        let half = describe(State::Downloading(50, 100));
        assert_eq!(half.matches('=').count(), 15);
        let odd = describe(State::Uploading(u64::MAX, 1));
        assert_eq!(odd.matches('=').count(), 30);
        assert_eq!(describe(State::Reading(0, 0)).matches('=').count(), 30);
    }

    #[test]
    fn screen_when_drawn_again_goes_back_over_its_lines() {
        let mut screen = Screen::new();
        screen.lines.push(("a".into(), "Waiting".into()));
        assert!(!screen.draw().contains("\x1b[1A"));
        assert!(screen.draw().starts_with("\x1b[1A"));
    }
}
