//! What can be done with a container that is up.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bulkhead_protocol::{Processes, Stats};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;

use super::{Engine, Entry};
use crate::cgroup;
use crate::error::{Error, cannot};
use crate::layout::short;
use crate::log;
use crate::poll::poll_until;
use crate::record::{Isolation, State, Status};

/// How long a program may take to end after SIGKILL before its machine is killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// The signal that no program refuses.
const SIGKILL: u8 = 9;

impl Engine {
    /// The container of that name, if it is up and not held.
    pub fn running(&self, name: &str) -> Result<Entry, Error> {
        let entry = self.find(name)?;
        running(&entry)?;
        if entry.state.status == Status::Paused {
            return Err(wrong_state(&entry, "unpause it first"));
        }
        Ok(entry)
    }

    /// Sends a signal to the container's program. SIGKILL ends it, and when this returns it has.
    pub fn kill(&self, entry: &Entry, signal: u8) -> Result<(), Error> {
        running(entry)?;
        if signal == SIGKILL && entry.state.status == Status::Paused {
            // A held process ends only once it goes on.
            self.unpause(entry)?;
        }
        entry.agent().kill(entry.config.guest_id(), signal)?;
        if signal == SIGKILL {
            self.wait_until(entry, Some(Instant::now() + KILL_LIMIT))?;
        }
        Ok(())
    }

    /// Asks the container's program to end, and after `limit` makes it. What has ended already is
    /// left as it is.
    pub fn stop(&self, entry: &Entry, limit: Option<Duration>) -> Result<(), Error> {
        if !entry.state.status.is_up() {
            return Ok(());
        }
        if entry.state.status == Status::Paused {
            self.unpause(entry)?;
        }
        let agent = entry.agent();
        let id = entry.config.guest_id();
        // One that has just ended need not be asked.
        let _ = agent.kill(id, entry.config.stop_signal);
        let until = limit.map(|limit| Instant::now() + limit);
        if self.wait_until(entry, until)?.is_some() {
            return Ok(());
        }
        let _ = agent.kill(id, SIGKILL);
        let until = Instant::now() + KILL_LIMIT;
        if self.wait_until(entry, Some(until))?.is_none() {
            self.kill_machine(entry);
            self.wait_until(entry, None)?;
        }
        Ok(())
    }

    /// What a container uses.
    pub fn stats(&self, entry: &Entry) -> Result<Stats, Error> {
        running(entry)?;
        entry.agent().stats(entry.config.guest_id())
    }

    /// What runs in a container.
    pub fn processes(&self, entry: &Entry) -> Result<Processes, Error> {
        running(entry)?;
        entry.agent().processes(entry.config.guest_id())
    }

    /// Holds the container's processes.
    pub fn pause(&self, entry: &Entry) -> Result<(), Error> {
        if entry.state.status == Status::Paused {
            return Err(wrong_state(entry, "there is nothing to pause"));
        }
        running(entry)?;
        entry.agent().pause(entry.config.guest_id())?;
        File::create(entry.files.paused())
            .map(drop)
            .map_err(cannot("record that the container is paused"))
    }

    /// Lets the container's processes go on.
    pub fn unpause(&self, entry: &Entry) -> Result<(), Error> {
        if entry.state.status != Status::Paused {
            return Err(wrong_state(entry, "it is not paused"));
        }
        entry.agent().resume(entry.config.guest_id())?;
        match fs::remove_file(entry.files.paused()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(cannot("record that the container goes on")(e))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the container's program has ended, and returns its exit code.
    pub fn wait(&self, entry: &Entry) -> Result<u8, Error> {
        if entry.config.auto_remove && entry.state.status.is_up() {
            // Its record goes with it, but its agent tells.
            if let Ok(exit) = entry.agent().wait(entry.config.guest_id()) {
                return Ok(exit.code);
            }
        }
        let state = self.wait_until(entry, None)?.unwrap_or_default();
        if state.status.is_up() {
            return Err(Error::Invalid(format!(
                "container {} was removed before it could tell its exit code",
                short(&entry.config.id)
            )));
        }
        Ok(state.exit_code)
    }

    /// Waits until the container's program has ended, or until `until`. `None` if it has not.
    pub fn wait_until(
        &self,
        entry: &Entry,
        until: Option<Instant>,
    ) -> Result<Option<State>, Error> {
        let failed = || format!("wait for container {}", short(&entry.config.id));
        let watch = Watch::on(entry).map_err(cannot(failed()))?;
        loop {
            // Looked at after the watch was set, so that nothing falls in between.
            match self.find(&entry.config.id) {
                Ok(now) if now.state.status.is_up() => {}
                // It may have been started again meanwhile, which is as good.
                Ok(now) => return Ok(Some(now.state)),
                Err(Error::NoSuchContainer(_)) => return Ok(Some(entry.state.clone())),
                Err(e) => return Err(e),
            }
            if !watch.wait(until).map_err(cannot(failed()))? {
                return Ok(None);
            }
        }
    }

    /// Reads a container's log from its beginning to its end, which comes when the program has ended.
    pub fn follow(
        &self,
        entry: &Entry,
        reader: &mut log::Reader,
        sink: &mut dyn FnMut(&log::Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let watch = Watch::on(entry)?;
        reader.read_all(sink)?;
        loop {
            let now = self.find(&entry.config.id);
            let is_up = now.is_ok_and(|now| now.state.status.is_up());
            // What was written before the end was recorded.
            reader.read_new(sink)?;
            if !is_up {
                return Ok(());
            }
            watch.wait(None)?;
        }
    }

    /// Kills the container's machine, or all its processes. Its monitor records that.
    pub(super) fn kill_machine(&self, entry: &Entry) {
        if entry.config.isolation == Isolation::Container {
            // Also what stands still, which a signal does not end everywhere.
            cgroup::end(&entry.files);
        }
        if let Ok(processes) = entry.files.read_processes() {
            processes.vmm.kill();
        }
    }
}

pub(super) fn running(entry: &Entry) -> Result<(), Error> {
    if entry.state.status.is_up() {
        return Ok(());
    }
    Err(wrong_state(entry, "start it first"))
}

pub(super) fn wrong_state(entry: &Entry, needs: &'static str) -> Error {
    Error::WrongState {
        id: short(&entry.config.id).to_owned(),
        is: entry.state.status.name(),
        needs,
    }
}

/// Tells when a container's state, or its log, or its monitor changes.
pub(crate) struct Watch {
    inotify: std::os::fd::OwnedFd,
    monitor: Option<std::os::fd::OwnedFd>,
}

impl Watch {
    /// Watches the container's folder.
    pub(crate) fn on(entry: &Entry) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags)?;
        let events = inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::MOVE_SELF
            | inotify::WatchFlags::DELETE_SELF;
        let watched = inotify::add_watch(&inotify, &entry.files.folder, events);
        match watched {
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let processes = entry.files.read_processes().ok();
        Ok(Watch {
            inotify,
            monitor: processes.and_then(|processes| processes.monitor.open()),
        })
    }

    /// Waits for a change. `false` if none came in time.
    pub(crate) fn wait(&self, until: Option<Instant>) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.inotify, PollFlags::IN)];
        if let Some(monitor) = &self.monitor {
            fds.push(PollFd::from_borrowed_fd(monitor.as_fd(), PollFlags::IN));
        }
        if !poll_until(&mut fds, until)? {
            return Ok(false);
        }
        // What happened is looked up; that something did is enough.
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.inotify, &mut buffer).is_ok_and(|n| n > 0) {}
        Ok(true)
    }
}
