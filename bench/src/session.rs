//! Answering what `compare` asks, a line of JSON for each line.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::timed::Done;
use crate::{calls, cpu, evidence, files, memory};

/// The longest a question may have a measurement take, in milliseconds.
const LONGEST: u64 = 60_000;

/// Answers until nobody asks any more.
pub fn serve() {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{}", answer(&line)).and_then(|()| out.flush());
        if written.is_err() {
            return;
        }
    }
}

/// What there is to say to a question.
fn answer(line: &str) -> Value {
    let words: Vec<&str> = line.split_whitespace().collect();
    let measured = match words[..] {
        ["idle"] => Ok(json!({ "idle": true, "memory": memory_in_use() })),
        ["evidence", first, second] => Ok(evidence::collect((first, second))),
        // For who counts the system calls of this: they are all made between two answers.
        ["calls", count] => match count.parse() {
            Ok(count) => Ok(json!({ "count": calls::ask(count) })),
            Err(_) => Err("that is no number".to_owned()),
        },
        [what, budget] => budget
            .parse::<u64>()
            .map_err(|_| "that is no time".to_owned())
            .and_then(|ms| measure(what, Duration::from_millis(ms.min(LONGEST)))),
        _ => Err("that is no question".to_owned()),
    };
    measured.unwrap_or_else(|error| json!({ "error": error }))
}

fn measure(what: &str, budget: Duration) -> Result<Value, String> {
    let one = match what {
        "integer" => cpu::integer(budget),
        "avx" => cpu::avx(budget),
        "memory_copy" => memory::copy(budget),
        "memory_read" => memory::read(budget),
        "first_touch" => memory::first_touch(budget),
        "system_call" => calls::system_calls(budget),
        "spawn" => calls::spawn(budget),
        "files" => {
            let figures = files::measure(Path::new("/"), budget)?;
            let figures = figures.into_iter();
            return Ok(figures.map(|(name, done)| (name, value(done))).collect());
        }
        _ => return Err(format!("`{what}` cannot be measured")),
    };
    Ok(value(one?))
}

fn value(done: Done) -> Value {
    json!({ "count": done.count, "seconds": done.seconds, "rate": done.rate() })
}

/// What the kernel here has of memory, and what of it could still be had, in bytes.
fn memory_in_use() -> Option<Value> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    };
    Some(json!({ "total": bytes("MemTotal:")?, "available": bytes("MemAvailable:")? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_when_it_is_one_is_answered_with_figures() {
        let answered = answer("integer 0");
        assert!(answered["rate"].as_f64().expect("rate") > 0.0, "{answered}");
        assert!(answered["count"].as_u64().expect("count") > 0, "{answered}");
        assert_eq!(answer("calls 3"), json!({ "count": 3 }));
        let idle = answer("idle");
        assert!(
            idle["memory"]["total"].as_u64().expect("total") > 0,
            "{idle}"
        );
    }

    #[test]
    fn question_when_it_is_none_is_answered_with_what_is_wrong() {
        for wrong in [
            "",
            "x",
            "integer",
            "integer -1",
            "x 1",
            "calls y",
            "a b c d",
        ] {
            assert!(answer(wrong)["error"].is_string(), "{wrong}");
        }
    }
}
