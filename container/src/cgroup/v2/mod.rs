//! A control group of version 2: one directory.

mod devices;
pub mod limits;
mod stats;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::limits::{Limit, Limits, Otherwise};
use super::oom::MemoryEvents;
use super::stats::{Stats, number, value};
use super::{PATIENCE, files};
use crate::error::Error;
use crate::sys;

/// A group.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    directory: OwnedFd,
}

impl Group {
    /// Makes it. One that exists already must have no processes, if it is not held by somebody.
    pub fn make(path: &Path, is_held: bool) -> Result<Group, Error> {
        let is_new = files::make(path)?;
        let group = Group::open(path).map_err(|e| files::not_made(path, e))?;
        if !is_new {
            if !is_held && group.event("populated")? {
                return Err(files::not_made(path, Errno::BUSY));
            }
            // Whoever left it may have left it frozen.
            group.freeze(false)?;
        }
        Ok(group)
    }

    /// Opens one that exists.
    pub fn open(path: &Path) -> Result<Group, Errno> {
        // CLONE_INTO_CGROUP wants to read it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Group {
            path: path.to_owned(),
            directory: openat(CWD, path, flags, Mode::empty())?,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets limits. What was set before and is not named stays.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        if let Some(limit) = limits.not_below_use {
            let used = self.read("memory.current")?.unwrap_or_default();
            if number(&used).is_some_and(|used| used > limit) {
                let problem = format!("{} bytes are used already", used.trim());
                return Err(Error::invalid("linux.resources.memory.limit", problem));
            }
        }
        for limit in &limits.files {
            self.set(limit)?
                .map_err(|e| self.failed("write", &limit.file, e))?;
        }
        if let Some(rules) = &limits.devices {
            let failed = |e| self.failed("limit the devices of", "", e);
            let program = sys::load_device_program(&devices::compile(rules)).map_err(failed)?;
            sys::attach_device_program(self.directory.as_fd(), program.as_fd()).map_err(failed)?;
        }
        Ok(())
    }

    /// Sets one limit.
    pub fn set(&self, limit: &Limit) -> Result<Result<(), Errno>, Error> {
        let once = || self.write(&limit.file, &limit.value);
        let written = match once() {
            Err(Errno::NOENT) => {
                self.enable(limit.controller())?;
                once()
            }
            written => written,
        };
        Ok(match (written, &limit.otherwise) {
            (Err(Errno::NOENT), Otherwise::DoWithout) => Ok(()),
            (Err(Errno::NOENT), Otherwise::Write(file, value)) => self.write(file, value),
            (written, _) => written,
        })
    }

    /// Has every group above hand a controller down, which groups do not by themselves.
    fn enable(&self, controller: &str) -> Result<(), Error> {
        let above: Vec<&Path> = self
            .path
            .ancestors()
            .skip(1)
            .take_while(|p| p.join("cgroup.subtree_control").exists())
            .collect();
        for group in above.into_iter().rev() {
            let control = group.join("cgroup.subtree_control");
            let enabled = std::fs::read_to_string(&control).unwrap_or_default();
            if enabled.split_whitespace().any(|name| name == controller) {
                continue;
            }
            // A controller that is not there is said by who misses its files.
            match files::write(CWD, &control, &format!("+{controller}")) {
                Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
                Err(error) => {
                    let control = control.display().to_string();
                    return Err(Error::step("enable controllers in", control, error));
                }
            }
        }
        Ok(())
    }

    /// For clone3(2).
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn failed(&self, step: &'static str, file: &str, error: impl Into<std::io::Error>) -> Error {
        Error::step(step, self.path.join(file).display().to_string(), error)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        files::write(&self.directory, file, value)
    }

    pub fn read(&self, file: &str) -> Result<Option<String>, Error> {
        files::read(&self.directory, file).map_err(|e| self.failed("read", file, e))
    }

    /// Whether `populated` or `frozen` is so.
    fn event(&self, name: &str) -> Result<bool, Error> {
        let text = self.read("cgroup.events")?.unwrap_or_default();
        Ok(value(&text, name) == Some(1))
    }

    /// Waits until an event is as wanted.
    fn await_event(&self, name: &'static str, wanted: bool) -> Result<(), Error> {
        let failed = |e: Errno| self.failed("wait for", "cgroup.events", e);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events =
            openat(&self.directory, "cgroup.events", flags, Mode::empty()).map_err(failed)?;
        loop {
            let mut text = [0; 256];
            let length = rustix::io::pread(&events, &mut text, 0).map_err(failed)?;
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            if (value(&text, name) == Some(1)) == wanted {
                return Ok(());
            }
            // The kernel wakes whoever waits since the last reading.
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut changed, Some(&PATIENCE)) {
                Ok(0) => return Err(failed(Errno::TIMEDOUT)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Stops all processes, or lets them go on; returns when they have.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)
            .map_err(|e| self.failed("write", "cgroup.freeze", e))?;
        self.await_event("frozen", frozen)
    }

    /// Whether they stand still.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        self.event("frozen")
    }

    /// Ends all processes; it does not wait for them.
    pub fn kill(&self) -> Result<(), Error> {
        self.write("cgroup.kill", "1")
            .map_err(|e| self.failed("write", "cgroup.kill", e))
    }

    /// Ends all processes, waits for that, and removes the group. One that is gone is no error.
    pub fn remove(&self) -> Result<(), Error> {
        match files::remove_tree(&self.path) {
            Err(Errno::BUSY) => {}
            removed => return removed.map_err(|e| self.failed("remove", "", e)),
        }
        let emptied = self
            .kill()
            .and_then(|()| self.await_event("populated", false));
        // A manager such as systemd removes its group itself as soon as it is empty.
        if self.path.exists() {
            emptied?;
        }
        files::remove_tree(&self.path).map_err(|e| self.failed("remove", "", e))
    }

    /// How often the kernel ended a process of the group because memory ran out.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let text = self.read("memory.events")?.unwrap_or_default();
        Ok(value(&text, "oom_kill").unwrap_or(0))
    }

    /// None without the memory controller.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match openat(&self.directory, "memory.events", flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            opened => opened
                .map(|table| Some(MemoryEvents::of_table(table)))
                .map_err(|e| self.failed("open", "memory.events", e)),
        }
    }

    /// What the group uses now.
    pub fn stats(&self) -> Result<Stats, Error> {
        stats::read(|file| self.read(file))
    }
}
