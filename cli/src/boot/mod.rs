//! `bulkhead boot`: a microVM from the command line. The session is `bulkhead restore`'s, too.

mod directory;
mod error;
mod options;
mod session;
pub mod signals;
mod timing;
mod typing;
mod waking;

use crate::Outcome;
pub use directory::Directory;
pub use options::{BootArgs, Format};
use session::Session;
pub use session::{Origin, Plan};

/// Boots the VM, gives it the terminal, and stays until it is over. Returns the exit code.
///
/// `started` is when this process started, in nanoseconds of `CLOCK_MONOTONIC`.
pub fn run(args: &BootArgs, started: u64) -> Outcome {
    let directory = Directory::open(args.vsock.as_deref())?;
    let config = args.to_config(directory.path())?;
    let plan = Plan {
        document: serde_json::to_string(&config)?,
        directory,
        origin: Origin::Boot {
            reports: args.has_agent(),
        },
        signals: signals::block()?,
        measure_only: args.timing,
        started,
    };
    stay(plan, args.timing.then_some(args.format))
}

/// Starts a VM and stays until it is over; then prints its times, if they are wanted. Returns the exit code.
pub fn stay(plan: Plan, times: Option<Format>) -> Outcome {
    let mut session = Session::start(plan)?;
    let end = session.supervise()?;
    if let Some(format) = times {
        timing::print(end, format)?;
    }
    Ok(end.code)
}
