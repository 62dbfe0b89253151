//! The `bulkhead` command: a thin skin over the rooms below.
#![forbid(unsafe_code)]

mod boot;
mod compare;
mod completion;
mod container;
mod doctor;
mod image;
mod output;
mod restore;
mod snapshot;
mod system;
mod template;
mod terminal;
mod values;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_engine::volumes::staging;
use bulkhead_engine::{Engine, monitor, rootless};
use clap::{CommandFactory, Parser, Subcommand};
use dlmalloc::GlobalDlmalloc;

/// The C library's gives its memory back to the kernel so eagerly that a third of the system calls of a container's start
/// were its own.
#[global_allocator]
static HEAP: GlobalDlmalloc = GlobalDlmalloc;

/// Exit code when Bulkhead itself failed, as Docker's.
const FAILED: u8 = 125;

/// What a command comes to: an exit code, or why it could not be done.
type Outcome = Result<u8, Box<dyn std::error::Error>>;

/// OCI containers behind the wall you choose: a microVM of their own, or the host's kernel.
#[derive(Parser)]
#[command(name = "bulkhead", version, max_term_width = 100)]
struct Cli {
    /// Where images and containers are kept [default: /var/lib/bulkhead, or the user's own folder]
    #[arg(
        long,
        value_name = "DIR",
        env = "BULKHEAD_ROOT",
        global = true,
        hide_env = true
    )]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Container(container::Command),
    #[command(flatten)]
    Image(image::Command),
    /// Start a microVM: Bulkhead's own guest, or your kernel and disks
    Boot(Box<boot::BootArgs>),
    /// Keep moments of microVMs, to go on from them
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Go on with a microVM from a snapshot
    Restore(restore::RestoreArgs),
    /// Make VMs that containers begin in, with `run --template`
    #[command(subcommand)]
    Template(Box<template::Command>),
    /// Run the same image both ways, measure what each costs, and show what each keeps apart
    Compare(Box<compare::CompareArgs>),
    /// Say what this host can do, what is missing, and what to do about it
    Doctor(doctor::DoctorArgs),
    /// What all containers and images take, and what of it nobody needs
    #[command(subcommand)]
    System(system::Command),
    /// Write a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Write the manual pages
    Man(completion::ManArgs),
    /// Print the version
    Version,
    /// Put the terminal back when the command that made it raw was killed
    #[command(name = terminal::KEEPER_COMMAND, hide = true)]
    KeepTerminal,
    /// Stay with a sandbox
    #[command(name = monitor::COMMAND, hide = true)]
    Monitor(container::MonitorArgs),
    /// Become another command once traced
    #[command(name = bulkhead_compare::TRACED_COMMAND, hide = true)]
    CompareTraced {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Work among the files of containers of who is not root
    #[command(name = rootless::COMMAND, hide = true)]
    InUserNamespace {
        /// What to do
        words: Vec<String>,
    },
    /// Become a sandbox's file server
    #[command(name = staging::COMMAND, hide = true)]
    ServeFiles { staging: String },
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
    let engine = || Engine::open(cli.root.as_deref());
    let result = match cli.command {
        Command::Container(command) => engine()
            .map_err(Into::into)
            .and_then(|engine| command.run(&engine)),
        Command::Image(command) => engine()
            .map_err(Into::into)
            .and_then(|engine| command.run(&engine)),
        Command::System(command) => engine()
            .map_err(Into::into)
            .and_then(|engine| system::run(&command, &engine)),
        Command::Boot(args) => boot::run(&args, started),
        Command::Snapshot(command) => engine()
            .map_err(Into::into)
            .and_then(|engine| snapshot::run(&command, &engine)),
        Command::Restore(args) => engine()
            .map_err(Into::into)
            .and_then(|engine| restore::run(&args, &engine, started)),
        Command::Template(command) => engine()
            .map_err(Into::into)
            .and_then(|engine| template::run(&command, &engine)),
        Command::Compare(args) => engine()
            .map_err(Into::into)
            .and_then(|engine| compare::run(&engine, cli.root.as_deref(), &args)),
        Command::CompareTraced { arguments } => {
            Err(bulkhead_compare::become_traced(&arguments).into())
        }
        Command::Doctor(args) => doctor::run(&args),
        Command::Completion(args) => completion::complete(&args, &Cli::command()),
        Command::Man(args) => completion::manual(&args, Cli::command()),
        Command::Version => {
            println!("bulkhead {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
        Command::KeepTerminal => terminal::keep(),
        Command::ServeFiles { staging } => match staging::run(&staging) {
            Ok(()) => Ok(0),
            Err(e) => {
                eprintln!("{}{e}", staging::COMPLAINT);
                Ok(FAILED)
            }
        },
        Command::InUserNamespace { words } => engine()
            .map_err(Into::into)
            .and_then(|engine| work_in_namespace(&engine, &words)),
        Command::Monitor(args) => engine()
            .map_err(Into::into)
            .and_then(|engine| args.run(&engine)),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("bulkhead: {}", with_causes(&*e));
            ExitCode::from(exit_code(&*e))
        }
    }
}

/// Does what a command has started this one for, and tells it what came of it.
fn work_in_namespace(engine: &Engine, words: &[String]) -> Outcome {
    // A person should see that it takes a while; a script's standard error is the program's.
    let progress = output::progress(!io::stderr().is_terminal());
    let answer = engine.work_in_namespace(words, &*progress);
    println!("{}", serde_json::to_string(&answer)?);
    Ok(0)
}

/// The exit code that an error stands for.
fn exit_code(error: &(dyn std::error::Error + 'static)) -> u8 {
    if let Some(interrupted) = error.downcast_ref::<container::Interrupted>() {
        return interrupted.exit_code();
    }
    error
        .downcast_ref::<bulkhead_engine::Error>()
        .map_or(FAILED, bulkhead_engine::Error::exit_code)
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
