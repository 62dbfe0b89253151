//! Where a container's control group is: which directories, in which of the host's hierarchies.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Version;

/// Where a control group is, or is to be made. It can be written down: whoever reads it finds the group again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// A directory of cgroup version 2.
    Directory(PathBuf),
    /// Directories of the hierarchies of version 1.
    Hierarchies(Places),
    /// One that somebody has made for the container, and holds with a process: systemd's.
    Held(Box<Location>),
}

/// A group's directories in hierarchies of version 1, and in that of version 2 beside them, where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub(super) places: Vec<Place>,
    /// In the hierarchy of version 2.
    pub(super) unified: Option<PathBuf>,
    /// In all of them, whether or not the group has anything to ask of them.
    pub(super) everywhere: bool,
}

/// A group's directory in a hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// What the hierarchy is of: controllers, or its name.
    pub controllers: Vec<String>,
    pub path: PathBuf,
}

impl Location {
    /// In every hierarchy of version 1, as the runtime specification has it; without this only in those that a limit, a
    /// figure or a signal to all needs: each costs time when the container starts.
    pub fn everywhere(mut self) -> Location {
        match &mut self {
            Location::Directory(_) => self,
            Location::Hierarchies(places) => {
                places.everywhere = true;
                self
            }
            Location::Held(location) => location.clone().everywhere().held(),
        }
    }

    /// There may be processes in it already. All others must have none: two containers would be in one group.
    pub fn held(self) -> Location {
        match self {
            Location::Held(_) => self,
            location => Location::Held(Box::new(location)),
        }
    }

    /// Which version the limits of a group here are of.
    pub fn version(&self) -> Version {
        match self {
            Location::Directory(_) => Version::Two,
            Location::Hierarchies(_) => Version::One,
            Location::Held(location) => location.version(),
        }
    }

    /// The directories of the group, as far as it is made.
    pub fn directories(&self) -> Vec<&Path> {
        match self {
            Location::Directory(path) => vec![path],
            Location::Hierarchies(places) => {
                let v1 = places.places.iter().map(|place| &*place.path);
                v1.chain(places.unified.as_deref()).collect()
            }
            Location::Held(location) => location.directories(),
        }
    }

    /// The directories below that are there, and of the others these; none: not one is there.
    pub(super) fn below(&self, path: &Path) -> Option<Location> {
        let is_plain = |part: &Component| matches!(part, Component::Normal(_) | Component::RootDir);
        if !path.components().all(|part| is_plain(&part)) {
            return None;
        }
        let path = path.strip_prefix("/").unwrap_or(path);
        let mut found = false;
        let mut go = |directory: &mut PathBuf| {
            let below = directory.join(path);
            if below.is_dir() {
                *directory = below;
                found = true;
            }
        };
        let mut location = self.clone();
        match &mut location {
            Location::Held(location) => return location.below(path),
            Location::Directory(directory) => go(directory),
            Location::Hierarchies(places) => {
                places
                    .places
                    .iter_mut()
                    .for_each(|place| go(&mut place.path));
                places.unified.iter_mut().for_each(go);
            }
        }
        found.then_some(location)
    }

    /// The directory of a controller, or of a named hierarchy.
    pub fn directory_of(&self, controller: &str) -> Option<&Path> {
        match self {
            Location::Directory(path) => Some(path),
            Location::Hierarchies(places) => {
                let place = places.places.iter().find(|place| place.has(controller));
                place.map(|place| &*place.path)
            }
            Location::Held(location) => location.directory_of(controller),
        }
    }
}

impl From<PathBuf> for Location {
    fn from(directory: PathBuf) -> Location {
        Location::Directory(directory)
    }
}

impl Place {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}
