//! Standing still and going on, by the freezer of version 1. It tells nobody when it is done, and does not always get there
//! by itself: a process that was about to freeze while another was forked leaves the group freezing for good.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::super::{PATIENCE, files};

const STATE: &str = "freezer.state";
/// Between two looks: as long as a process takes to come by, at first.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(5);
/// Looks until it is begun anew.
const LOOKS: u32 = 25;

/// Waits between looks at what gives no sign, longer each time, and not for ever.
pub struct Pauses {
    next: Duration,
    until: Instant,
}

impl Pauses {
    /// As long as the kernel is given.
    pub fn new() -> Pauses {
        Pauses::no_longer_than(Duration::from_secs(PATIENCE.tv_sec.unsigned_abs()))
    }

    pub fn no_longer_than(time: Duration) -> Pauses {
        Pauses {
            next: SHORTEST,
            until: Instant::now() + time,
        }
    }

    pub fn wait(&mut self) -> Result<(), Errno> {
        if Instant::now() >= self.until {
            return Err(Errno::TIMEDOUT);
        }
        sleep(self.next);
        self.next = LONGEST.min(self.next * 2);
        Ok(())
    }
}

/// Stops all processes of a group; returns when they have stopped.
pub fn freeze(group: &Path, mut pauses: Pauses) -> Result<(), Errno> {
    loop {
        set(group, "FROZEN")?;
        for _ in 0..LOOKS {
            if is_frozen(group)? {
                return Ok(());
            }
            pauses.wait()?;
        }
        set(group, "THAWED")?;
    }
}

/// Lets them go on.
pub fn thaw(group: &Path) -> Result<(), Errno> {
    set(group, "THAWED")
}

fn set(group: &Path, state: &str) -> Result<(), Errno> {
    files::write(CWD, group.join(STATE), state)
}

/// Whether all stand still.
pub fn is_frozen(group: &Path) -> Result<bool, Errno> {
    let state = files::read(CWD, group.join(STATE))
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(state.is_some_and(|state| state.trim() == "FROZEN"))
}
