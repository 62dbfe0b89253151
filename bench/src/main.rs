//! The program that `bulkhead compare` runs in a container of each kind: it measures what a program gets
//! there, and looks around.
//!
//! `session` says that it is there, with the first thing that it does, and then answers each line of its
//! standard input with a line of JSON, so that one container serves all measurements. Each takes about
//! as long as it is told, however slow the machine is, and says how often it did what it measures.

mod calls;
mod cpu;
mod evidence;
mod files;
mod memory;
mod panic;
mod ready;
mod session;
mod timed;

use std::env;
use std::process::ExitCode;

use serde_json::json;

/// The argument with which this program ends at once: what `spawn` starts.
const NOTHING: &str = "nothing";

const USAGE: &str =
    "usage: bulkhead-bench session [WORD...] | evidence TOKEN-HALF TOKEN-HALF | panic | nothing";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [NOTHING] => {}
        // More words are for who looks for them in the lists of processes.
        ["session", ..] => {
            ready::end_when_asked();
            ready::say();
            session::serve();
        }
        ["evidence", first, second] => println!("{}", evidence::collect((first, second))),
        ["panic"] => println!("{}", json!({ "error": panic::bring_down() })),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
