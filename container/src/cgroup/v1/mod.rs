//! A control group of version 1: a directory in each hierarchy that it needs. On a hybrid host one of version 2 may be beside
//! them.
//!
//! A process enters by writing to the `tasks` of each of them itself, while it has one thread: then the kernel need not wait
//! until no process is being forked, which takes milliseconds.

pub mod devices;
mod freezer;
pub mod limits;
mod stats;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::files;
use super::limits::{Limit, Limits, Otherwise};
use super::location::{Location, Place, Places};
use super::oom::MemoryEvents;
use super::stats::Stats;
use super::v2;
use crate::error::Error;
use crate::plan::Entrance;
use freezer::Pauses;

/// What is counted of a group, and stops and ends it: it has a directory there whatever its limits.
const ALWAYS: [&str; 5] = ["freezer", "memory", "pids", "cpuacct", "blkio"];
/// How long processes are given to stand still before they are ended.
const SHORT: Duration = Duration::from_millis(200);
/// Where most processes are found.
const LEADING: [&str; 4] = ["freezer", "pids", "memory", "cpuacct"];

/// A group.
#[derive(Debug)]
pub struct Groups {
    places: Vec<Place>,
    unified: Option<v2::Group>,
    entrance: OnceLock<Entrance>,
}

impl Groups {
    /// Makes it where it is needed. One that exists already must have no processes.
    pub fn make(places: &Places, limits: &Limits, is_held: bool) -> Result<Groups, Error> {
        let freezer = places.places.iter().any(|place| place.has("freezer"));
        let hugetlb = places.places.iter().any(|place| place.has("hugetlb"));
        let needed = |place: &&Place| {
            places.everywhere
                || ALWAYS.iter().any(|name| place.has(name))
                || limits
                    .files
                    .iter()
                    .any(|limit| place.has(limit.controller()))
                || limits.devices.is_some() && place.has("devices")
        };
        let needs_unified = places.everywhere
            || !freezer
            || !hugetlb
                && limits
                    .files
                    .iter()
                    .any(|limit| limit.controller() == "hugetlb");
        let mut groups = Groups {
            places: Vec::new(),
            unified: None,
            entrance: OnceLock::new(),
        };
        for place in places.places.iter().filter(needed) {
            if let Err(error) = groups.make_at(place, is_held) {
                let _ = groups.remove();
                return Err(error);
            }
        }
        if let Some(path) = places.unified.as_deref().filter(|_| needs_unified) {
            match v2::Group::make(path, is_held) {
                Ok(unified) => groups.unified = Some(unified),
                Err(error) => {
                    let _ = groups.remove();
                    return Err(error);
                }
            }
        }
        Ok(groups)
    }

    fn make_at(&mut self, place: &Place, is_held: bool) -> Result<(), Error> {
        let path = &place.path;
        if !files::make(path)? {
            if !is_held && !files::processes(path).is_empty() {
                return Err(files::not_made(path, Errno::BUSY));
            }
            if place.has("freezer") {
                // Whoever left it may have left it frozen.
                freezer::thaw(path).map_err(|e| files::not_made(path, e))?;
            }
        }
        self.places.push(place.clone());
        if place.has("cpuset") {
            fill_cpuset(path)?;
        }
        Ok(())
    }

    /// Opens one that exists, as far as it was made.
    pub fn open(places: &Places) -> Result<Groups, Error> {
        let exists = |place: &&Place| place.path.is_dir();
        let unified = places.unified.as_deref();
        let groups = Groups {
            places: places.places.iter().filter(exists).cloned().collect(),
            unified: unified.and_then(|path| v2::Group::open(path).ok()),
            entrance: OnceLock::new(),
        };
        match (groups.places.is_empty(), places.places.first()) {
            (true, Some(place)) => {
                let path = place.path.display().to_string();
                Err(Error::step("open the control group", path, Errno::NOENT))
            }
            _ => Ok(groups),
        }
    }

    pub fn location(&self) -> Location {
        Location::Hierarchies(Places {
            places: self.places.clone(),
            unified: self.unified.as_ref().map(|group| group.path().to_owned()),
            everywhere: false,
        })
    }

    /// The directories of version 1, with how they are named in a container.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub fn unified(&self) -> Option<&v2::Group> {
        self.unified.as_ref()
    }

    /// What a process enters by.
    pub fn entrance(&self) -> Result<Entrance, Error> {
        if let Some(entrance) = self.entrance.get() {
            return Ok(entrance.clone());
        }
        let open = |path: PathBuf| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty())
                .map(Arc::new)
                .map_err(|e| Error::step("open", path.display().to_string(), e))
        };
        let tasks = self.places.iter().map(|place| place.path.join("tasks"));
        let unified = self
            .unified
            .iter()
            .map(|group| group.path().join("cgroup.procs"));
        let opened: Entrance = tasks.chain(unified).map(open).collect::<Result<_, _>>()?;
        Ok(self.entrance.get_or_init(|| opened).clone())
    }

    fn place_of(&self, controller: &str) -> Option<&Path> {
        let place = self.places.iter().find(|place| place.has(controller));
        place.map(|place| &*place.path)
    }

    fn leading(&self) -> Option<&Path> {
        let named = LEADING.iter().find_map(|name| self.place_of(name));
        named.or_else(|| self.places.first().map(|place| &*place.path))
    }

    /// Sets limits. What was set before and is not named stays.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        // Some must not be below, or above, others, which may be about to change.
        let mut again = Vec::new();
        for limit in &limits.files {
            match self.set(limit)? {
                Err(Errno::INVAL) => again.push(limit),
                set => set.map_err(|e| self.not_set(limit, e))?,
            }
        }
        for limit in again {
            self.set(limit)?.map_err(|e| self.not_set(limit, e))?;
        }
        match &limits.devices {
            Some(rules) => self.limit_devices(rules),
            None => Ok(()),
        }
    }

    fn not_set(&self, limit: &Limit, error: Errno) -> Error {
        let place = self.place_of(limit.controller()).unwrap_or(Path::new(""));
        Error::step(
            "write",
            place.join(&limit.file).display().to_string(),
            error,
        )
    }

    fn set(&self, limit: &Limit) -> Result<Result<(), Errno>, Error> {
        let controller = limit.controller();
        let Some(group) = self.place_of(controller) else {
            return match (&self.unified, controller) {
                // A hybrid host may have this one there.
                (Some(unified), "hugetlb") => {
                    let file = limit.file.replace("limit_in_bytes", "max");
                    let moved = Limit {
                        file,
                        ..limit.clone()
                    };
                    unified.set(&moved)
                }
                _ => Err(Error::NoController {
                    controller: controller.to_owned(),
                    file: limit.file.clone(),
                }),
            };
        };
        let write = |file: &str, value: &str| files::write(CWD, group.join(file), value);
        Ok(match (write(&limit.file, &limit.value), &limit.otherwise) {
            (Err(Errno::NOENT | Errno::OPNOTSUPP), Otherwise::DoWithout) => Ok(()),
            (Err(Errno::NOENT), Otherwise::Write(file, value)) => write(file, value),
            (written, _) => written,
        })
    }

    fn limit_devices(&self, rules: &[crate::spec::DeviceRule]) -> Result<(), Error> {
        let Some(group) = self.place_of("devices") else {
            return Err(Error::NoController {
                controller: "devices".to_owned(),
                file: "devices.deny".to_owned(),
            });
        };
        // One rule at a time is what the files take.
        let mut open: Option<(&str, OwnedFd)> = None;
        for devices::Write { file, value } in devices::compile(rules)? {
            let path = group.join(file);
            let failed = |e| Error::step("write", path.display().to_string(), e);
            let descriptor = match open.take() {
                Some((name, descriptor)) if name == file => descriptor,
                _ => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    openat(CWD, &path, flags, Mode::empty()).map_err(failed)?
                }
            };
            rustix::io::write(&descriptor, value.as_bytes()).map_err(failed)?;
            open = Some((file, descriptor));
        }
        Ok(())
    }

    /// Stops all processes, or lets them go on; returns when they have.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let Some(group) = self.place_of("freezer") else {
            return match &self.unified {
                Some(unified) => unified.freeze(frozen),
                None => Err(Error::NoController {
                    controller: "freezer".to_owned(),
                    file: "freezer.state".to_owned(),
                }),
            };
        };
        let set = if frozen {
            freezer::freeze(group, Pauses::new())
        } else {
            freezer::thaw(group)
        };
        let state = group.join("freezer.state");
        set.map_err(|e| Error::step("write", state.display().to_string(), e))
    }

    /// Whether they stand still.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        match (self.place_of("freezer"), &self.unified) {
            (Some(group), _) => {
                let state = group.join("freezer.state").display().to_string();
                freezer::is_frozen(group).map_err(|e| Error::step("read", state, e))
            }
            (None, Some(unified)) => unified.is_frozen(),
            (None, None) => Ok(false),
        }
    }

    /// Ends all processes; it does not wait for them.
    pub fn kill(&self) -> Result<(), Error> {
        if self.processes().is_empty() {
            return Ok(());
        }
        // While they stand still nobody is forked, and no number becomes another's. One that sits in a call that cannot be
        // interrupted is not waited for.
        if let Some(group) = self.place_of("freezer") {
            let stopped = freezer::freeze(group, Pauses::no_longer_than(SHORT));
            self.kill_once();
            self.freeze(false)?;
            if stopped.is_ok() {
                return Ok(());
            }
        } else if let Some(unified) = &self.unified {
            return unified.kill();
        }
        // Those that forked meanwhile had children, which may have had some.
        let mut pauses = Pauses::new();
        while !self.processes().is_empty() {
            self.kill_once();
            pauses
                .wait()
                .map_err(|e| self.failed("end the processes of", e))?;
        }
        Ok(())
    }

    fn kill_once(&self) {
        let own = std::process::id();
        for pid in self.processes().into_iter().filter(|&pid| pid != own) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // One that has ended meanwhile needs no signal.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    fn failed(&self, step: &'static str, error: Errno) -> Error {
        let place = self.leading().unwrap_or(Path::new("a control group"));
        Error::step(step, place.display().to_string(), error)
    }

    /// Ends all processes, waits for that, and removes the group. One that is gone is no error.
    pub fn remove(&self) -> Result<(), Error> {
        match self.remove_once() {
            Err(Errno::BUSY) => self.kill()?,
            removed => return removed.map_err(|e| self.failed("remove", e)),
        }
        // The kernel tells nobody when the last one is gone.
        let mut pauses = Pauses::new();
        loop {
            match self.remove_once() {
                Err(Errno::BUSY) => pauses
                    .wait()
                    .map_err(|_| self.failed("remove", Errno::BUSY))?,
                removed => return removed.map_err(|e| self.failed("remove", e)),
            }
        }
    }

    fn remove_once(&self) -> Result<(), Errno> {
        // That which tells where the processes are goes last.
        let leading = self.leading();
        let others = self
            .places
            .iter()
            .filter(|place| Some(&*place.path) != leading);
        for place in others {
            files::remove_tree(&place.path)?;
        }
        if let Some(unified) = &self.unified {
            files::remove_tree(unified.path())?;
        }
        leading.map_or(Ok(()), files::remove_tree)
    }

    /// The numbers of all processes, in no order.
    pub fn processes(&self) -> Vec<u32> {
        self.leading().map(files::processes).unwrap_or_default()
    }

    /// How often the kernel ended a process of the group because memory ran out.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let text = self.read("memory.oom_control")?.unwrap_or_default();
        Ok(super::stats::value(&text, "oom_kill").unwrap_or(0))
    }

    /// None without the memory controller.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, Error> {
        let Some(group) = self.place_of("memory") else {
            return Ok(None);
        };
        let events = MemoryEvents::of_signals(group);
        events.map(Some).map_err(|e| {
            let file = group.join("cgroup.event_control");
            Error::step("watch the memory by", file.display().to_string(), e)
        })
    }

    fn read(&self, file: &str) -> Result<Option<String>, Error> {
        let controller = file.split('.').next().unwrap_or(file);
        let Some(group) = self.place_of(controller) else {
            return Ok(None);
        };
        let path = group.join(file);
        files::read(CWD, &path).map_err(|e| Error::step("read", path.display().to_string(), e))
    }

    /// What the group uses now.
    pub fn stats(&self) -> Result<Stats, Error> {
        stats::read(|file| self.read(file))
    }
}

/// New groups of cpuset have no processors and no memory, and nobody can enter: they get what the groups above have.
fn fill_cpuset(group: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let in_hierarchy = |path: &&Path| path.join(file).exists();
        let line: Vec<&Path> = group.ancestors().take_while(in_hierarchy).collect();
        let mut above = String::new();
        for group in line.into_iter().rev() {
            let path = group.join(file);
            let failed = |step, e: std::io::Error| Error::step(step, path.display().to_string(), e);
            let own = files::read(CWD, &path).map_err(|e| failed("read", e))?;
            let own = own.unwrap_or_default().trim().to_owned();
            if own.is_empty() {
                files::write(CWD, &path, &above).map_err(|e| failed("write", e.into()))?;
            } else {
                above = own;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn cpuset_when_new_then_it_has_what_the_groups_above_have() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("a/b");
        fs::create_dir_all(&group).expect("made");
        for (path, cpus) in [("", "0-3\n"), ("a", "\n"), ("a/b", "")] {
            let directory = root.path().join(path);
            fs::write(directory.join("cpuset.cpus"), cpus).expect("written");
            fs::write(directory.join("cpuset.mems"), "0\n").expect("written");
        }
        fill_cpuset(&group).expect("filled");
        let read = |path: &str| fs::read_to_string(root.path().join(path)).expect("read");
        assert_eq!(read("a/cpuset.cpus"), "0-3");
        assert_eq!(read("a/b/cpuset.cpus"), "0-3");
        assert_eq!(read("a/b/cpuset.mems"), "0\n");
    }
}
