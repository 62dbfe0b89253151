//! Turns: so many machines start at a time as this machine has processors for. A hundred that are started at once take turns
//! rather than getting in each other's way for so long that none is in time.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::starting::{Obstacle, Starting, boot_limit};
use crate::engine::make_folder;
use crate::error::cannot;
use crate::lock::try_make;

/// Machines that start at a time, for each processor. A start waits for its disk or for others now and then, so
/// that one would leave processors idle.
const FOR_EACH_PROCESSOR: usize = 2;
/// Between two looks whether it is our turn.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A turn. It is over when this is dropped, or the process ends.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

impl Starting<'_> {
    /// Waits for a turn, though not for ever: whoever has waited as long as a boot may take goes on without one.
    pub fn turn(&self) -> Result<Option<Turn>, Obstacle> {
        let folder = self.layout.turns();
        make_folder(&folder)?;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let until = Instant::now() + boot_limit();
        loop {
            let turn = take(&folder, processors.saturating_mul(FOR_EACH_PROCESSOR));
            match turn.map_err(cannot("wait for a turn to start"))? {
                None if Instant::now() < until => {
                    self.wait(None, None, Instant::now() + LOOK_AGAIN)?;
                }
                turn => return Ok(turn),
            }
        }
    }
}

/// Takes one of so many turns, if there is one left.
fn take(folder: &Path, turns: usize) -> io::Result<Option<Turn>> {
    for turn in 0..turns {
        let path = folder.join(turn.to_string());
        if let Some(lock) = try_make(&path, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(Some(Turn { _lock: lock }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_when_all_are_taken_then_the_next_is_the_first_that_is_over() {
        let dir = tempfile::tempdir().expect("folder");
        let take = || take(dir.path(), 2).expect("look");
        let first = take().expect("a turn");
        let _second = take().expect("a turn");
        assert!(take().is_none());
        drop(first);
        let _third = take().expect("a turn");
        assert!(take().is_none());
    }
}
