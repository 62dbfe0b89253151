//! The `bulkhead` command: a thin skin over the rooms below.
#![forbid(unsafe_code)]

mod boot;
mod doctor;
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code when Bulkhead itself failed, as Docker's.
const FAILED: u8 = 125;

/// OCI containers behind the wall you choose: a microVM of their own, or the host's kernel.
#[derive(Parser)]
#[command(name = "bulkhead", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a microVM: Bulkhead's own guest, or your kernel and disks
    Boot(Box<boot::BootArgs>),
    /// Say what this host can do, what is missing, and what to do about it
    Doctor(doctor::DoctorArgs),
    /// Print the version
    Version,
    /// Put the terminal back when the command that made it raw was killed
    #[command(name = terminal::KEEPER_COMMAND, hide = true)]
    KeepTerminal,
}

fn main() -> ExitCode {
    let started = bulkhead_vmm::timing::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Clap's own codes are 0 for help and version and 2 for mistakes; ours for those is 125.
            let code = if e.use_stderr() { FAILED } else { 0 };
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let result = match cli.command {
        Command::Boot(args) => boot::run(&args, started),
        Command::Doctor(args) => doctor::run(&args),
        Command::Version => {
            println!("bulkhead {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
        Command::KeepTerminal => terminal::keep(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("bulkhead: {}", with_causes(&*e));
            ExitCode::from(FAILED)
        }
    }
}

/// An error and what caused it, on one line. What an error's own text already says is not repeated.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}
