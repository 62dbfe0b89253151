//! Runs a test program in the faithful lane's outer machine: `faithful PROGRAM [ARGUMENT...]`.
//!
//! Made to be cargo's runner, so that `cargo test` builds, filters and reports there as it does here.
//! The files that the variables of `CARRIED` name go in with it.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bulkhead_tests::faithful::{Carried, Ended, Outer, print_prefixed};

/// Environment variables that name files the tests use.
const CARRIED: [&str; 12] = [
    "BULKHEAD",
    "BULKHEAD_VMM",
    "BULKHEAD_KERNEL",
    "BULKHEAD_AGENT_IMAGE",
    "BULKHEAD_BENCH",
    "BULKHEAD_TEST_IMAGE",
    "BULKHEAD_TEST_INITRAMFS",
    "BULKHEAD_TEST_CONTAINER",
    "BULKHEAD_TEST_BUSYBOX",
    "BULKHEAD_TEST_PYTHON",
    "BULKHEAD_CLOUD_KERNEL",
    "BULKHEAD_FIRECRACKER",
];
/// Environment variables handed on as they are.
const HANDED_ON: [&str; 6] = [
    "BULKHEAD_TEST_ROUNDS",
    "BULKHEAD_TEST_SEED",
    "BULKHEAD_TEST_TIMEOUT",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_TEST_THREADS",
];

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("faithful: {e}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let program = arguments
        .next()
        .ok_or("usage: faithful PROGRAM [ARGUMENT...]")?;
    let arguments: Vec<String> = arguments.collect();

    let outer = Outer {
        kernel: env::var_os("BULKHEAD_OUTER_KERNEL")
            .map(PathBuf::from)
            .ok_or("BULKHEAD_OUTER_KERNEL names no folder; `make test-faithful` sets it")?,
        init: env::current_exe()?.with_file_name("outer-init"),
        memory_mib: number("BULKHEAD_OUTER_MEMORY_MIB", 4096)?,
        // Guests run on all but the first; see `outer-init`.
        cpus: number("BULKHEAD_OUTER_CPUS", 3)?,
        timeout: Duration::from_secs(number("BULKHEAD_FAITHFUL_TIMEOUT", 2700)?.into()),
    };
    let carried: Vec<Carried> = CARRIED
        .iter()
        .filter_map(|variable| {
            Some(Carried {
                variable: (*variable).to_owned(),
                file: env::var_os(variable)?.into(),
            })
        })
        .collect();
    let mut environment = vec![("BULKHEAD_LANE".to_owned(), "faithful".to_owned())];
    for variable in HANDED_ON {
        if let Ok(value) = env::var(variable) {
            environment.push((variable.to_owned(), value));
        }
    }

    let start = Instant::now();
    let ended = outer.run(
        program.as_ref(),
        &arguments,
        &carried,
        &environment,
        print_prefixed,
    )?;
    let seconds = start.elapsed().as_secs();
    Ok(match ended {
        Ended::Status(status) => {
            println!("faithful: ended with status {status} after {seconds} s");
            ExitCode::from(status)
        }
        Ended::Lost => {
            println!("faithful: the outer machine was lost after {seconds} s");
            ExitCode::from(125)
        }
        Ended::TimedOut => {
            println!("faithful: not done after {seconds} s; BULKHEAD_FAITHFUL_TIMEOUT allows more");
            ExitCode::from(124)
        }
    })
}

fn number(variable: &str, default: u32) -> Result<u32, String> {
    match env::var(variable) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{variable} is {text:?}, not a number")),
        Err(_) => Ok(default),
    }
}
