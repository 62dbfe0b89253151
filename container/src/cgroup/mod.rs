//! The control group of a container: its directory in a cgroup v2 hierarchy.
//!
//! This is the only place that knows how the hierarchy looks: hosts that have version 1 will want another [`Cgroup`] with
//! the same methods.

mod devices;
mod limits;
mod stats;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdir, openat, unlinkat};
use rustix::io::{Errno, write};

use crate::error::Error;
use crate::sys;

pub use limits::Limits;
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};

/// How long the kernel is given to freeze or end all processes: some may sit in a call that cannot be interrupted.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// More than the longest file that is read here.
const MAX_FILE: u64 = 1 << 20;

/// A control group.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the group, and sets its limits. A group that exists already must have no processes.
    pub fn create(path: &Path, limits: &Limits) -> Result<Cgroup, Error> {
        let failed =
            |e: Errno| Error::step("make the control group", path.display().to_string(), e);
        let made = match mkdir(path, Mode::from_raw_mode(0o755)) {
            Err(Errno::NOENT) => {
                let parent = path.parent().unwrap_or(path);
                std::fs::create_dir_all(parent).map_err(|e| {
                    Error::step("make the control group", parent.display().to_string(), e)
                })?;
                mkdir(path, Mode::from_raw_mode(0o755))
            }
            made => made,
        };
        let is_new = match made {
            Err(Errno::EXIST) => false,
            made => made.map(|()| true).map_err(failed)?,
        };
        // CLONE_INTO_CGROUP wants to read it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        let group = Cgroup {
            path: path.to_owned(),
            directory,
        };
        if !is_new && group.event("populated")? {
            return Err(failed(Errno::BUSY));
        }
        match group.apply(limits) {
            Ok(()) => Ok(group),
            Err(error) => {
                let _ = group.remove();
                Err(error)
            }
        }
    }

    /// Sets limits. What was set before and is not named stays.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        for limit in &limits.files {
            match self.write(&limit.file, &limit.value) {
                Err(Errno::NOENT) => {
                    self.enable(&limit.file)?;
                    match self.write(&limit.file, &limit.value) {
                        // Kernels without swap and the like: what they lack cannot be used up.
                        Err(Errno::NOENT) if limit.optional => {}
                        written => written.map_err(|e| self.failed("write", &limit.file, e))?,
                    }
                }
                written => written.map_err(|e| self.failed("write", &limit.file, e))?,
            }
        }
        if let Some(rules) = &limits.devices {
            let failed = |e| self.failed("limit the devices of", "", e);
            let program = sys::load_device_program(&devices::compile(rules)).map_err(failed)?;
            sys::attach_device_program(self.directory.as_fd(), program.as_fd()).map_err(failed)?;
        }
        Ok(())
    }

    /// Has every group above hand its controller of `file` down, which groups do not by themselves.
    fn enable(&self, file: &str) -> Result<(), Error> {
        let controller = file.split('.').next().unwrap_or(file);
        let above: Vec<&Path> = self
            .path
            .ancestors()
            .skip(1)
            .take_while(|p| p.join("cgroup.subtree_control").exists())
            .collect();
        for group in above.into_iter().rev() {
            let control = group.join("cgroup.subtree_control");
            let enabled = std::fs::read_to_string(&control).unwrap_or_default();
            if !enabled.split_whitespace().any(|name| name == controller) {
                // A controller that is not there is said by who misses its files.
                match std::fs::write(&control, format!("+{controller}")) {
                    Err(e)
                        if !matches!(
                            e.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                        ) =>
                    {
                        return Err(Error::step(
                            "enable controllers in",
                            control.display().to_string(),
                            e,
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// For clone3(2).
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn failed(&self, step: &'static str, file: &str, error: impl Into<io::Error>) -> Error {
        Error::step(step, self.path.join(file).display().to_string(), error)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let file = openat(
            &self.directory,
            file,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        write(file, value.as_bytes()).map(drop)
    }

    /// The text of a file; none if there is no such file, because its controller is not enabled.
    fn read(&self, file: &str) -> Result<Option<String>, Error> {
        let opened = match openat(
            &self.directory,
            file,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(|e| self.failed("open", file, e))?,
        };
        let mut text = String::new();
        let read = File::from(opened).take(MAX_FILE).read_to_string(&mut text);
        match read {
            // The group is gone.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            read => read
                .map(|_| Some(text))
                .map_err(|e| self.failed("read", file, e)),
        }
    }

    /// Whether `populated` or `frozen` is so.
    fn event(&self, name: &str) -> Result<bool, Error> {
        let text = self.read("cgroup.events")?.unwrap_or_default();
        Ok(stats::value(&text, name) == Some(1))
    }

    /// Waits until an event is as wanted.
    fn await_event(&self, name: &'static str, wanted: bool) -> Result<(), Error> {
        let failed = |e: Errno| self.failed("wait for", "cgroup.events", e);
        let events = openat(
            &self.directory,
            "cgroup.events",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        loop {
            let mut text = [0; 256];
            let length = rustix::io::pread(&events, &mut text, 0).map_err(failed)?;
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            if (stats::value(&text, name) == Some(1)) == wanted {
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

    /// Ends all processes; it does not wait for them.
    pub fn kill(&self) -> Result<(), Error> {
        self.write("cgroup.kill", "1")
            .map_err(|e| self.failed("write", "cgroup.kill", e))
    }

    /// Ends all processes, waits for that, and removes the group. One that is gone is no error.
    pub fn remove(&self) -> Result<(), Error> {
        match self.remove_tree() {
            Err(Errno::BUSY) => {}
            removed => return removed.map_err(|e| self.failed("remove", "", e)),
        }
        self.kill()?;
        self.await_event("populated", false)?;
        self.remove_tree().map_err(|e| self.failed("remove", "", e))
    }

    /// Removes the group and those that the container has made in it, the deepest first.
    fn remove_tree(&self) -> Result<(), Errno> {
        match unlinkat(CWD, &self.path, AtFlags::REMOVEDIR) {
            Err(Errno::BUSY) => {}
            Err(Errno::NOENT) => return Ok(()),
            removed => return removed,
        }
        for group in self.subgroups().into_iter().rev() {
            unlinkat(CWD, &group, AtFlags::REMOVEDIR)?;
        }
        unlinkat(CWD, &self.path, AtFlags::REMOVEDIR)
    }

    /// Groups below, each before those below it.
    fn subgroups(&self) -> Vec<PathBuf> {
        const MOST: usize = 10_000;
        let mut groups = vec![self.path.clone()];
        let mut next = 0;
        while let Some(group) = groups.get(next).filter(|_| groups.len() < MOST) {
            let inside = std::fs::read_dir(group).into_iter().flatten().flatten();
            let below: Vec<_> = inside
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path())
                .collect();
            groups.extend(below);
            next += 1;
        }
        groups.split_off(1)
    }

    /// The numbers of all processes, in no order.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        let mut all: Vec<u32> = Vec::new();
        let add = |all: &mut Vec<u32>, text: &str| {
            all.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()))
        };
        add(&mut all, &self.read("cgroup.procs")?.unwrap_or_default());
        for group in self.subgroups() {
            add(
                &mut all,
                &std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default(),
            );
        }
        // Zero are those of process namespaces that the reader does not see.
        all.retain(|&pid| pid != 0);
        Ok(all)
    }

    /// How often the kernel ended a process of the group because memory ran out.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let text = self.read("memory.events")?.unwrap_or_default();
        Ok(stats::value(&text, "oom_kill").unwrap_or(0))
    }

    /// A file that polls as exceptional (`POLLPRI`) when memory ran out, once for each time it was read; none without the
    /// memory controller.
    pub fn memory_events(&self) -> Result<Option<OwnedFd>, Error> {
        match openat(
            &self.directory,
            "memory.events",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT) => Ok(None),
            opened => opened
                .map(Some)
                .map_err(|e| self.failed("open", "memory.events", e)),
        }
    }

    /// What the group uses now.
    pub fn stats(&self) -> Result<Stats, Error> {
        Stats::read(|file| self.read(file))
    }
}
