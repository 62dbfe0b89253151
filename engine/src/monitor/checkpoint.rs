//! Checkpoints of a container in a virtual machine: how its monitor takes one, and how it goes on from one.
//!
//! The container's processes are held for as long as it takes, by its control group: in the snapshot they stand
//! still. What they have written is taken by the monitor before, and a container that goes on is let go only once
//! its agent knows the time, has new random numbers and has the monitor attached again. So its programs neither lose
//! output nor see the wrong time.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::output::Output;
use super::request::{Asked, Request};
use super::sandbox::Sandbox;
use super::starting::{Obstacle, Starting, boot_limit};
use super::warm::random_cid;
use crate::error::{Error, cannot};
use crate::layout::short;
use crate::poll::poll_until;
use crate::record::{Files, Upper};
use crate::snapshots::{self, Snapshot, Snapshots};
use crate::vm::{self, Launch};

/// How long held output is taken. Whoever reads it too slowly for that does not get it in the checkpoint.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// The most that is kept meanwhile for a command that takes no output: what held programs have written is less, but
/// nobody can trust a guest to stop. In bytes.
const MAX_HELD: usize = 16 << 20;
/// So often nothing must have come for that there is nothing more: the agent answers beside what it reads.
const QUIET_ROUNDS: u32 = 2;

/// Which checkpoint a container is to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The ID of the container that it was taken of.
    pub container: String,
    /// Its name.
    pub name: String,
}

/// What a restored container was when its checkpoint was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Whether its user held it, so that it stays held.
    pub paused: bool,
}

/// A container that ends with a checkpoint, and the command that waits for that.
pub struct Checkpointed {
    /// The checkpoint's name.
    pub name: String,
    asked: Asked,
}

impl Checkpointed {
    /// Tells the command that it is done.
    pub fn answer(self) {
        self.asked.answer(Ok(()));
    }
}

impl Sandbox<'_> {
    /// Takes the checkpoint that a command asks for. Returns what is to be answered if the container ends with it;
    /// else it runs on, and the answer is given.
    pub(super) fn checkpoint(&mut self, asked: Asked) -> Option<Checkpointed> {
        let Request::Checkpoint {
            name,
            leave_running,
        } = asked.request.clone();
        if asked.is_withdrawn() {
            return None;
        }
        match self.keep(&name, leave_running, &asked) {
            Ok(()) if !leave_running => Some(Checkpointed { name, asked }),
            result => {
                asked.answer(result);
                None
            }
        }
    }

    /// Keeps the container's moment under a name. It stands still afterwards if it is not to run on.
    fn keep(&mut self, name: &str, leave_running: bool, asked: &Asked) -> Result<(), Error> {
        let id = self.config.guest_id();
        let paused = self.files.paused().exists();
        if !paused && let Err(e) = self.agent.pause(id) {
            if !matches!(e, Error::Agent { .. }) {
                // Who does not answer in time may have done it.
                let _ = self.agent.resume(id);
            }
            return Err(e);
        }
        let kept = self.drain().and_then(|()| {
            let checkpoints = Snapshots::of_container(self.files, &self.config.name);
            let request = snapshots::Request {
                directory: &self.files.sandbox,
                // It is ended in order, so that its disk is as good as after a stop.
                stop: false,
                paused,
                is_interrupted: &|| asked.is_withdrawn(),
            };
            checkpoints.create(name, &request)
        });
        if !paused && (leave_running || kept.is_err()) {
            let resumed = self.agent.resume(id);
            return kept.and(resumed);
        }
        kept
    }

    /// Takes what the container has written, which is held.
    fn drain(&mut self) -> Result<(), Error> {
        let until = Instant::now() + DRAIN_LIMIT;
        let mut quiet = 0;
        while quiet < QUIET_ROUNDS && Instant::now() < until {
            self.agent.flush();
            quiet += 1;
            // Whatever else happens is seen when this is done.
            while !self.output.is_over() && Instant::now() < until && is_readable(&self.output)? {
                self.output.take();
                if self.output.held_bytes() > MAX_HELD {
                    self.output.end_relay();
                }
                quiet = 0;
            }
            if self.output.is_over() {
                return Err(Error::Invalid("the container has just ended".to_owned()));
            }
        }
        Ok(())
    }
}

impl Starting<'_> {
    /// Restores the container's machine from a checkpoint, up to an agent that knows that it has slept. The
    /// container's processes still stand.
    pub fn go_on(&self, origin: &Origin) -> Result<(Machine, Moment), Error> {
        let files = Files {
            folder: self.layout.container(&origin.container),
            sandbox: self.layout.sandbox(&origin.container),
        };
        let checkpoints = Snapshots::of_container(&files, short(&origin.container));
        let snapshot = checkpoints.open(&origin.name)?;
        let moment = Moment {
            paused: snapshot.record.paused,
        };
        let machine = self.go_on_from(&snapshot).map_err(Obstacle::into_error)?;
        // Until now it was needed.
        drop(snapshot);
        Ok((machine, moment))
    }

    fn go_on_from(&self, snapshot: &Snapshot) -> Result<Machine, Obstacle> {
        // A damaged one is refused before anything is copied.
        snapshot.state()?;
        let new = self.files.upper_new();
        remove(&new)?;
        let is_interrupted = || self.wait(None, None, Instant::now()).is_err();
        let disks = snapshot.disks(|_| new.clone(), &is_interrupted);
        let mut disks = disks.inspect_err(|_| _ = fs::remove_file(&new))?;
        for path in disks.values_mut().filter(|path| **path == new) {
            exchange(self.files)?;
            *path = self.files.upper();
        }
        let document = vm::describe_restored(self.files, random_cid()?, disks);
        let launch = Launch {
            restore: Some(snapshot.folder()),
            console: &self.files.console(),
            complaints: &self.files.complaints(),
        };
        let mut machine = self.watch_vmm(launch.start(&document)?)?;
        self.wake(&mut machine, Vec::new(), boot_limit())?;
        Ok(machine)
    }
}

fn is_readable(output: &Output) -> Result<bool, Error> {
    let mut fds = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
    let polled = poll_until(&mut fds, Some(Instant::now()));
    polled.map_err(cannot("take the container's output"))
}

/// Puts the copy of a checkpoint's disk in the place of the container's, which is kept until it is sure that the
/// container goes on.
fn exchange(files: &Files) -> Result<(), Error> {
    let exchanged = fs::rename(files.upper(), files.upper_before())
        .and_then(|()| fs::rename(files.upper_new(), files.upper()));
    exchanged.map_err(cannot("put the checkpoint's disk in place"))
}

/// Removes the disk that the container had before: it goes on with the checkpoint's.
pub fn forget_disk(files: &Files) -> Result<(), Error> {
    remove(&files.upper_before())
}

/// Gives the container back the disk that it had before a start from a checkpoint came to nothing. There is no
/// machine that has the other one.
pub fn put_disk_back(files: &Files, upper: Upper) -> Result<(), Error> {
    if upper == Upper::Memory {
        return Ok(());
    }
    // A copy that somebody was killed over.
    remove(&files.upper_new())?;
    match fs::rename(files.upper_before(), files.upper()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(cannot("put the container's disk back")(e))
        }
        _ => Ok(()),
    }
}

fn remove(path: &std::path::Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(cannot(format!("remove {}", path.display()))(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_when_exchanged_is_put_back_unless_the_container_goes_on() {
        let dir = tempfile::tempdir().expect("folder");
        let files = Files {
            folder: dir.path().to_owned(),
            sandbox: dir.path().to_owned(),
        };
        let disk = Upper::Disk { size_bytes: 1 };
        let read = || fs::read_to_string(files.upper()).expect("read");
        put_disk_back(&files, disk).expect("nothing to do");
        for (goes_on, wanted) in [(false, "old"), (true, "checkpoint's")] {
            fs::write(files.upper(), "old").expect("write");
            fs::write(files.upper_new(), "checkpoint's").expect("write");
            exchange(&files).expect("exchange");
            assert_eq!(read(), "checkpoint's");
            if goes_on {
                forget_disk(&files).expect("forget");
            }
            fs::write(files.upper_new(), "half a copy").expect("write");
            put_disk_back(&files, disk).expect("put back");
            assert_eq!(read(), wanted);
            assert!(!files.upper_before().exists() && !files.upper_new().exists());
        }
    }
}
