//! The control group of a container: what limits, counts, stops and ends all of its processes.
//!
//! A host has one hierarchy of groups (version 2), one for each controller (version 1), or both (hybrid): see
//! [`Hierarchies`]. The same can be asked of a [`Cgroup`] on each.

mod devices;
mod files;
mod hierarchies;
mod limits;
mod location;
mod oom;
mod stats;
mod v1;
mod v2;

use std::os::fd::BorrowedFd;

use rustix::event::Timespec;

use crate::error::Error;
use crate::plan::Entrance;

pub use hierarchies::Hierarchies;
pub use limits::Limits;
pub use location::{Location, Places};
pub use oom::MemoryEvents;
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};

/// How long the kernel is given to freeze or end all processes: some may sit in a call that cannot be interrupted.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Of control groups, as far as their limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    One,
    /// One for all.
    Two,
}

/// A control group.
#[derive(Debug)]
pub struct Cgroup(Kind);

#[derive(Debug)]
enum Kind {
    One(v1::Groups),
    Two(v2::Group),
}

/// A directory of a control group as its container sees it.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    pub path: &'a std::path::Path,
    /// Where it is below `/sys/fs/cgroup`.
    pub name: String,
    /// Further names of it.
    pub links: Vec<String>,
}

impl Cgroup {
    /// Makes the group, and sets its limits. A group that exists already must have no processes.
    pub fn create(location: &Location, limits: &Limits) -> Result<Cgroup, Error> {
        let (location, is_held) = match location {
            Location::Held(location) => (&**location, true),
            location => (location, false),
        };
        let group = Cgroup(match location {
            Location::Directory(path) => Kind::Two(v2::Group::make(path, is_held)?),
            Location::Hierarchies(places) => Kind::One(v1::Groups::make(places, limits, is_held)?),
            Location::Held(location) => return Cgroup::create(location, limits),
        });
        match group.apply(limits) {
            Ok(()) => Ok(group),
            Err(error) => {
                let _ = group.remove();
                Err(error)
            }
        }
    }

    /// Opens a group that exists.
    pub fn open(location: &Location) -> Result<Cgroup, Error> {
        Ok(Cgroup(match location {
            Location::Directory(path) => Kind::Two(v2::Group::open(path).map_err(|e| {
                Error::step("open the control group", path.display().to_string(), e)
            })?),
            Location::Hierarchies(places) => Kind::One(v1::Groups::open(places)?),
            Location::Held(location) => return Cgroup::open(location),
        }))
    }

    /// A group below that somebody has made: on a host of version 1 in at least one hierarchy, and in the others this.
    pub(crate) fn below(&self, path: &std::path::Path) -> Result<Cgroup, Error> {
        let missing = || {
            let problem = rustix::io::Errno::NOENT;
            Error::step(
                "find the control group",
                path.display().to_string(),
                problem,
            )
        };
        Cgroup::open(&self.location().below(path).ok_or_else(missing)?)
    }

    /// Where it is: all of it, and nothing that was not made.
    pub fn location(&self) -> Location {
        match &self.0 {
            Kind::One(groups) => groups.location(),
            Kind::Two(group) => Location::Directory(group.path().to_owned()),
        }
    }

    /// Which version its limits are of.
    pub fn version(&self) -> Version {
        match &self.0 {
            Kind::One(_) => Version::One,
            Kind::Two(_) => Version::Two,
        }
    }

    /// Sets limits. What was set before and is not named stays.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        match &self.0 {
            Kind::One(groups) => groups.apply(limits),
            Kind::Two(group) => group.apply(limits),
        }
    }

    /// What a child is born into, by clone3(2); none where it has to enter by itself.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::One(_) => None,
            Kind::Two(group) => Some(group.directory()),
        }
    }

    /// What it enters by itself through.
    pub(crate) fn entrance(&self) -> Result<Entrance, Error> {
        match &self.0 {
            Kind::One(groups) => groups.entrance(),
            Kind::Two(_) => Ok(Entrance::default()),
        }
    }

    /// Its directories in hierarchies of version 1 and beside them, for the container to see.
    pub(crate) fn shown(&self) -> Vec<Shown<'_>> {
        let Kind::One(groups) = &self.0 else {
            return Vec::new();
        };
        let of_place = |place| Shown::of_place(place);
        let unified = groups.unified().map(|group| Shown {
            path: group.path(),
            name: "unified".to_owned(),
            links: Vec::new(),
        });
        groups
            .places()
            .iter()
            .map(of_place)
            .chain(unified)
            .collect()
    }

    /// Stops all processes, or lets them go on; returns when they have.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        match &self.0 {
            Kind::One(groups) => groups.freeze(frozen),
            Kind::Two(group) => group.freeze(frozen),
        }
    }

    /// Whether they stand still.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        match &self.0 {
            Kind::One(groups) => groups.is_frozen(),
            Kind::Two(group) => group.is_frozen(),
        }
    }

    /// Ends all processes; it does not wait for them.
    pub fn kill(&self) -> Result<(), Error> {
        match &self.0 {
            Kind::One(groups) => groups.kill(),
            Kind::Two(group) => group.kill(),
        }
    }

    /// Ends all processes, waits for that, and removes the group with those the container has made in it. One that is gone is
    /// no error.
    pub fn remove(&self) -> Result<(), Error> {
        match &self.0 {
            Kind::One(groups) => groups.remove(),
            Kind::Two(group) => group.remove(),
        }
    }

    /// The numbers of all processes, in no order.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        Ok(match &self.0 {
            Kind::One(groups) => groups.processes(),
            Kind::Two(group) => files::processes(group.path()),
        })
    }

    /// How often the kernel ended a process of the group because memory ran out.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        match &self.0 {
            Kind::One(groups) => groups.oom_kills(),
            Kind::Two(group) => group.oom_kills(),
        }
    }

    /// What tells when memory runs out; none without the memory controller.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, Error> {
        match &self.0 {
            Kind::One(groups) => groups.memory_events(),
            Kind::Two(group) => group.memory_events(),
        }
    }

    /// What the group uses now.
    pub fn stats(&self) -> Result<Stats, Error> {
        match &self.0 {
            Kind::One(groups) => groups.stats(),
            Kind::Two(group) => group.stats(),
        }
    }
}

impl<'a> Shown<'a> {
    fn of_place(place: &'a location::Place) -> Shown<'a> {
        let links = match place.controllers.len() {
            1 => Vec::new(),
            _ => place.controllers.clone(),
        };
        Shown {
            path: &place.path,
            name: place.controllers.join(","),
            links,
        }
    }
}
