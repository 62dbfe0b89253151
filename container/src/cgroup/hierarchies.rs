//! The hierarchies of control groups that this host has mounted: version 1 has one for each controller or two, version 2
//! one for all, and a hybrid host both, with each controller in one of them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Version;
use rustix::fs::Access;

use super::location::{Location, Place, Places};
use crate::error::Error;

/// All hierarchies of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    v1: Vec<Hierarchy>,
    v2: Option<Hierarchy>,
}

/// One that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Controllers, or the name of one without any. Empty: version 2.
    controllers: Vec<String>,
    mounted: PathBuf,
    /// The group of this process, from where it is mounted on.
    own: PathBuf,
}

impl Hierarchies {
    /// Those of the host this process runs on.
    pub fn of_this_host() -> Result<Hierarchies, Error> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| Error::step("read", path, e));
        let mounts = read("/proc/self/mountinfo")?;
        let own = read("/proc/self/cgroup")?;
        let found = Hierarchies::read(&mounts, &own);
        match found.v1.is_empty() && found.v2.is_none() {
            true => Err(Error::NoHierarchy),
            false => Ok(found),
        }
    }

    fn read(mounts: &str, own: &str) -> Hierarchies {
        let mut found = Hierarchies {
            v1: Vec::new(),
            v2: None,
        };
        for line in mounts.lines() {
            let Some(hierarchy) = Hierarchy::read(line, own) else {
                continue;
            };
            // The same one can be mounted at several places.
            if hierarchy.controllers.is_empty() {
                found.v2.get_or_insert(hierarchy);
            } else if !found
                .v1
                .iter()
                .any(|h| h.controllers == hierarchy.controllers)
            {
                found.v1.push(hierarchy);
            }
        }
        found
    }

    /// Which version limits are of. A hierarchy of version 1 for something else may be mounted on any host.
    pub fn version(&self) -> Version {
        const LIMITING: [&str; 3] = ["cpu", "memory", "pids"];
        let limits = |h: &Hierarchy| h.controllers.iter().any(|name| LIMITING.contains(&&**name));
        match self.v2.is_some() && !self.v1.iter().any(limits) {
            true => Version::Two,
            false => Version::One,
        }
    }

    /// The group of this path: below where the hierarchies are mounted, if it is absolute, and otherwise below the group of
    /// this process.
    pub fn at(&self, path: impl AsRef<Path>) -> Location {
        let path = path.as_ref();
        if let (Version::Two, Some(v2)) = (self.version(), &self.v2) {
            return Location::Directory(v2.at(path));
        }
        let place = |hierarchy: &Hierarchy| Place {
            controllers: hierarchy.names(),
            path: hierarchy.at(path),
        };
        Location::Hierarchies(Places {
            places: self.v1.iter().map(place).collect(),
            unified: self.v2.as_ref().map(|v2| v2.at(path)),
            everywhere: false,
        })
    }

    /// A place of this name for a group of who is not root, where the host has given such a place away: beside the group of
    /// this process, so that the one above it need have no processes, or else in it. Only with version 2 can that be done
    /// safely.
    pub fn delegated(&self, name: &str) -> Option<Location> {
        let v2 = self
            .v2
            .as_ref()
            .filter(|_| self.version() == Version::Two)?;
        let own = v2.mounted.join(&v2.own);
        let beside = own.parent().filter(|_| !v2.own.as_os_str().is_empty());
        let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
        let is_given = |group: &&Path| writable(group) && writable(&group.join("cgroup.procs"));
        let given = beside.into_iter().chain([&*own]).find(is_given)?;
        Some(Location::Directory(given.join(below(Path::new(name)))))
    }
}

impl Hierarchy {
    /// Reads a line of mountinfo, `36 35 98:0 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu`.
    fn read(line: &str, own: &str) -> Option<Hierarchy> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        let mut fields = mount.split(' ').skip(3);
        let root = unescape(fields.next()?);
        let mounted = PathBuf::from(unescape(fields.next()?));
        let controllers: Vec<String> = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                let known = options.split(',').filter(|option| is_controller(option));
                known.map(str::to_owned).collect()
            }
            _ => return None,
        };
        if kind == "cgroup" && controllers.is_empty() {
            return None;
        }
        // `4:memory:/group`, `5:cpu,cpuacct:/`, `1:name=systemd:/`, `0::/`
        let group = own.lines().find_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (names, group) = line.split_once(':')?;
            let is_this = match controllers.first() {
                None => names.is_empty(),
                Some(first) => names.split(',').any(|name| name == first),
            };
            is_this.then_some(group)
        });
        // What is mounted may be a part of the hierarchy.
        let own = Path::new(group.unwrap_or("/"));
        let own = own.strip_prefix(&root).unwrap_or(Path::new(""));
        Some(Hierarchy {
            controllers,
            mounted,
            own: below(own),
        })
    }

    fn names(&self) -> Vec<String> {
        let name = |name: &String| name.strip_prefix("name=").unwrap_or(name).to_owned();
        self.controllers.iter().map(name).collect()
    }

    fn at(&self, path: &Path) -> PathBuf {
        match path.is_absolute() {
            true => self.mounted.join(below(path)),
            false => self.mounted.join(&self.own).join(below(path)),
        }
    }
}

/// Options that are none of the hierarchy's own.
fn is_controller(option: &str) -> bool {
    let other = [
        "rw",
        "ro",
        "none",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
        "nofavordynmods",
    ];
    !other.contains(&option) && !option.starts_with("release_agent=")
}

/// The path without its root, and without what leads upwards.
fn below(path: &Path) -> PathBuf {
    let names = path
        .components()
        .filter(|c| matches!(c, Component::Normal(_)));
    names.collect()
}

/// Blanks and the like are octal numbers in the kernel's tables.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) if code.is_ascii() => {
                all.push(char::from(code));
                all.push_str(rest);
            }
            _ => {
                all.push('\\');
                all.push_str(part);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 master:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /outer /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /mnt/two\\040words rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "5:cpu,cpuacct:/a\n4:memory:/outer/inner\n1:name=systemd:/../../b\n0::/\n";

    #[test]
    fn hybrid_host_when_read_then_a_place_in_each_hierarchy() {
        let host = Hierarchies::read(HYBRID, OWN);
        assert_eq!(host.version(), Version::One);
        let location = host.at("/bulkhead/../x");
        let all = [
            "/sys/fs/cgroup/cpu,cpuacct/bulkhead/x",
            "/sys/fs/cgroup/memory/bulkhead/x",
            "/sys/fs/cgroup/systemd/bulkhead/x",
            "/sys/fs/cgroup/unified/bulkhead/x",
        ];
        assert_eq!(location.directories(), all.map(Path::new));
        let cpuacct = location.directory_of("cpuacct");
        assert_eq!(cpuacct, Some(Path::new(all[0])));
        assert_eq!(location.directory_of("systemd"), Some(Path::new(all[2])));
        assert_eq!(location.directory_of("pids"), None);
    }

    #[test]
    fn path_when_relative_then_below_the_own_group() {
        let location = Hierarchies::read(HYBRID, OWN).at("x");
        let expected = [
            "/sys/fs/cgroup/cpu,cpuacct/a/x",
            "/sys/fs/cgroup/memory/inner/x",
            "/sys/fs/cgroup/systemd/b/x",
            "/sys/fs/cgroup/unified/x",
        ];
        assert_eq!(location.directories(), expected.map(Path::new));
    }

    #[test]
    fn version_2_alone_when_read_then_one_directory() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let host = Hierarchies::read(mounts, "0::/user.slice\n");
        assert_eq!(host.version(), Version::Two);
        let location = host.at("/bulkhead/a");
        let directory = PathBuf::from("/sys/fs/cgroup/bulkhead/a");
        assert_eq!(location, Location::Directory(directory));
        let own = host.at("a").everywhere();
        let directory = PathBuf::from("/sys/fs/cgroup/user.slice/a");
        assert_eq!(own, Location::Directory(directory));
    }

    #[test]
    fn named_hierarchy_when_beside_version_2_then_limits_are_of_that() {
        let mounts = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let host = Hierarchies::read(mounts, "");
        assert_eq!(host.version(), Version::Two);
        assert_eq!(host.at("/a").directories().len(), 1);
    }

    #[test]
    fn location_when_written_down_then_read_again() {
        let location = Hierarchies::read(HYBRID, OWN).at("/a").everywhere();
        let text = serde_json::to_string(&location).expect("JSON");
        let again: Location = serde_json::from_str(&text).expect("the same");
        assert_eq!(again, location);
    }

    #[test]
    fn lines_when_broken_then_passed_over() {
        let mounts = "\n - \n1 2 3 - cgroup\n1 2 3 / /x rw - cgroup cgroup rw\n1 2 3 / /a\\04 rw - cgroup c rw,pids\n";
        let host = Hierarchies::read(mounts, "x\n::\n");
        assert_eq!(host.at("/g").directories(), [Path::new("/a\\04/g")]);
    }
}
