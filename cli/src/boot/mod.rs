//! `bulkhead boot`: a microVM from the command line.

mod directory;
mod error;
mod options;
mod session;
mod timing;
mod typing;

use std::error::Error;

pub use options::{BootArgs, Format};
use session::Session;

/// Boots the VM, gives it the terminal, and stays until it is over. Returns the exit code.
///
/// `started` is when this process started, in nanoseconds of `CLOCK_MONOTONIC`.
pub fn run(args: &BootArgs, started: u64) -> Result<u8, Box<dyn Error>> {
    let mut session = Session::start(args, started)?;
    let end = session.supervise()?;
    if args.timing {
        timing::print(end, args.format)?;
    }
    Ok(end.code)
}
