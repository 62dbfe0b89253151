//! A container's life after it was made: `start`, `kill`, `pause`, `resume`, `delete`.

use std::fs;
use std::time::Duration;

use bulkhead_container::{Container, Error, Opened};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::Globals;
use crate::arguments::Arguments;
use crate::failure::{Failure, Outcome, cannot};
use crate::place::{Place, Status};
use crate::signals;

/// How long a process that was killed is given to end: it may sit in a call that cannot be interrupted.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a container that is deleted is given that seems to run.
const MOMENT: Duration = Duration::from_millis(100);

pub fn start(globals: &Globals, id: &str) -> Outcome<u8> {
    let place = Place::new(&globals.root, id)?;
    let _locked = place.lock()?;
    let kept = place.whole()?;
    let (opened, _) = place.open(&kept, false)?;
    let status = place.status(&kept, &opened);
    let mut container = match opened {
        Opened::Alive(container) if status == Status::Created => container,
        _ => return Err(refuse(id, "start", "it is not created but", status)),
    };
    let started = container.start();
    let is_over = !matches!(started, Err(Error::NoProgram { .. }));
    if is_over {
        let _ = fs::remove_file(place.gate());
    }
    match started {
        Ok(()) => Ok(0),
        Err(error) => {
            if is_over {
                await_end(&container)?;
            }
            // The container was deleted.
            if matches!(&error, Error::Hook { .. }) {
                place.remove()?;
            }
            Err(error.into())
        }
    }
}

pub fn kill(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let signal = arguments.words.get(1).map_or("TERM", String::as_str);
    let signal = signals::parse(signal)?;
    let place = Place::new(&globals.root, id)?;
    let kept = place.whole()?;
    let (opened, _) = place.open(&kept, false)?;
    match (opened, arguments.has("all")) {
        (Opened::Alive(container), true) => container.kill_all(signal)?,
        (Opened::Alive(container), false) => container.kill(signal)?,
        // Others may have outlived the first process.
        (Opened::Ended(remains), true) => remains.kill_all(signal)?,
        (Opened::Ended(_), false) => {
            let why = "container not running: it is";
            return Err(refuse(id, "signal", why, Status::Stopped));
        }
    }
    Ok(0)
}

pub fn freeze(globals: &Globals, id: &str, wanted: bool) -> Outcome<u8> {
    let place = Place::new(&globals.root, id)?;
    let _locked = place.lock()?;
    let kept = place.whole()?;
    let (opened, _) = place.open(&kept, false)?;
    let status = place.status(&kept, &opened);
    match (opened, status) {
        (Opened::Alive(mut container), Status::Created | Status::Running) if wanted => {
            container.pause()?;
        }
        (Opened::Alive(mut container), Status::Paused) if !wanted => container.resume()?,
        _ => {
            let operation = if wanted { "pause" } else { "resume" };
            return Err(refuse(id, operation, "it is", status));
        }
    }
    Ok(0)
}

pub fn delete(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let force = arguments.has("force");
    let place = Place::new(&globals.root, id)?;
    if force && !place.exists() {
        return Ok(0);
    }
    let _locked = place.lock()?;
    let Some(kept) = place.kept()? else {
        // Who made it was killed at it, or it would hold the lock.
        place.remove()?;
        return Ok(0);
    };
    let (mut opened, _) = place.open(&kept, false)?;
    let mut status = place.status(&kept, &opened);
    // Its last output may be seen a moment before its end is.
    if let (Opened::Alive(container), Status::Running, false) = (&opened, status, force)
        && ends_within(container, MOMENT)?
    {
        opened = place.open(&kept, false)?.0;
        status = place.status(&kept, &opened);
    }
    // One that was never started has nothing to lose: others end it, too.
    let is_over = matches!(status, Status::Stopped | Status::Created);
    if !is_over && !force {
        return Err(refuse(id, "delete", "it is not stopped but", status));
    }
    end(opened)?;
    place.remove()?;
    Ok(0)
}

/// Ends what is left of a container, and waits for that.
pub fn end(opened: Opened) -> Outcome<()> {
    match opened {
        Opened::Ended(mut remains) => remains.delete()?,
        Opened::Alive(mut container) => {
            container.delete()?;
            await_end(&container)?;
        }
    }
    Ok(())
}

fn await_end(container: &Container) -> Outcome<()> {
    match ends_within(container, PATIENCE)? {
        true => Ok(()),
        false => Err(format!("container {} does not end", container.id()).into()),
    }
}

fn ends_within(container: &Container, limit: Duration) -> Outcome<bool> {
    let failed = || format!("wait for the end of container {}", container.id());
    let limit = Timespec::try_from(limit).map_err(cannot(failed()))?;
    loop {
        let mut ended = [PollFd::from_borrowed_fd(container.pidfd(), PollFlags::IN)];
        match poll(&mut ended, Some(&limit)) {
            Err(Errno::INTR) => {}
            polled => return polled.map(|ready| ready > 0).map_err(cannot(failed())),
        }
    }
}

pub fn refuse(id: &str, operation: &str, why: &str, status: Status) -> Failure {
    let status = status.name();
    format!("cannot {operation} container {id}: {why} {status}").into()
}
