//! The commands for containers.

mod attach;
mod checkpoint;
mod control;
mod copy;
mod exec;
mod inspect;
mod keys;
mod list;
mod logs;
mod monitor;
mod options;
mod run;
mod start;
mod stats;
mod stay;
pub(crate) mod streams;
mod top;
mod volumes;

use bulkhead_engine::Engine;
use clap::Subcommand;

pub use monitor::MonitorArgs;
pub use start::Interrupted;

use crate::Outcome;

/// The commands for containers, as Docker has them.
#[derive(Subcommand)]
pub enum Command {
    /// Make a container of an image and run it
    Run(Box<run::RunArgs>),
    /// Make a container of an image
    Create(Box<run::CreateArgs>),
    /// Start containers that are not running
    Start(start::StartArgs),
    /// Ask containers to end, and make them if they do not
    Stop(control::StopArgs),
    /// Send a signal to containers
    Kill(control::KillArgs),
    /// Stop containers and start them again
    Restart(control::RestartArgs),
    /// Remove containers
    Rm(control::RmArgs),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(list::PsArgs),
    /// Show what containers have written
    Logs(logs::LogsArgs),
    /// Run a command in a container that is running
    Exec(exec::ExecArgs),
    /// Attach to the streams of a container that is running
    Attach(attach::AttachArgs),
    /// Wait until containers end, and print their exit codes
    Wait(control::NamesArgs),
    /// Show everything about containers, as JSON
    Inspect(inspect::InspectArgs),
    /// Show the processes of a container
    Top(top::TopArgs),
    /// Show what containers use
    Stats(stats::StatsArgs),
    /// Copy files between a container and this machine
    Cp(copy::CpArgs),
    /// Hold all processes of containers
    Pause(control::NamesArgs),
    /// Let the processes of containers go on
    Unpause(control::NamesArgs),
    /// Keep moments of containers, to go on from them
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Give a container another name
    Rename(control::RenameArgs),
}

impl Command {
    /// Does it.
    pub fn run(self, engine: &Engine) -> Outcome {
        // What was killed before is put in order before anything else.
        engine.sweep()?;
        match self {
            Command::Run(args) => run::run(engine, &args),
            Command::Create(args) => run::create(engine, &args),
            Command::Start(args) => start::start(engine, &args),
            Command::Stop(args) => control::stop(engine, &args),
            Command::Kill(args) => control::kill(engine, &args),
            Command::Restart(args) => control::restart(engine, &args),
            Command::Rm(args) => control::remove(engine, &args),
            Command::Ps(args) => list::list(engine, &args),
            Command::Logs(args) => logs::logs(engine, &args),
            Command::Exec(args) => exec::exec(engine, &args),
            Command::Attach(args) => attach::attach(engine, &args),
            Command::Wait(args) => control::wait(engine, &args),
            Command::Inspect(args) => inspect::inspect(engine, &args),
            Command::Top(args) => top::top(engine, &args),
            Command::Stats(args) => stats::stats(engine, &args),
            Command::Cp(args) => copy::copy(engine, &args),
            Command::Pause(args) => control::pause(engine, &args),
            Command::Unpause(args) => control::unpause(engine, &args),
            Command::Checkpoint(command) => checkpoint::run(engine, &command),
            Command::Rename(args) => control::rename(engine, &args),
        }
    }
}
