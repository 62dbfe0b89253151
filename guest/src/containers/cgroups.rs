//! The guest's control groups: the agent in one, every container in one of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_container::cgroup::Location;

/// What containers are limited and counted by.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

/// The name of a group that is made before its container. No container has it for an id.
pub const SPARE: &str = ".spare";

/// Where containers' groups are. Nothing of it is made before the first container, since a boot would
/// have to wait for it.
#[derive(Debug)]
pub enum Cgroups {
    /// In the guest's hierarchy, which is the agent's alone.
    OfAGuest {
        /// Where it is mounted.
        root: PathBuf,
        /// Whether the agent has left its root to the groups.
        ready: bool,
        /// A group that no container has had yet.
        spare: Option<PathBuf>,
    },
    /// The group of a host's that its one container gets.
    OfAHost(Location),
    /// Nowhere: containers stay where the agent is.
    Nowhere,
}

impl Cgroups {
    /// The guest's hierarchy.
    pub fn of_a_guest() -> Self {
        Cgroups::OfAGuest {
            root: "/sys/fs/cgroup".into(),
            ready: false,
            spare: None,
        }
    }

    /// Makes the next container's group of a guest's, as there is time for it now: to make one with all its
    /// controllers is a good part of making a container. Templates of machines have theirs so.
    pub fn make_spare(&mut self) {
        if let Cgroups::OfAGuest {
            root,
            ready: true,
            spare: spare @ None,
        } = self
        {
            let group = root.join("containers").join(SPARE);
            // Without it the next container makes its own.
            *spare = fs::create_dir(&group).is_ok().then_some(group);
        }
    }

    /// Where a container's group is, which is not made yet; `None` where there are none.
    pub fn of_container(&mut self, id: &str) -> io::Result<Option<Location>> {
        let (root, ready, spare) = match self {
            Cgroups::Nowhere => return Ok(None),
            Cgroups::OfAHost(location) => {
                if let Location::Directory(group) = location {
                    share_controllers(group)?;
                }
                return Ok(Some(location.clone()));
            }
            Cgroups::OfAGuest { root, ready, spare } => (root, ready, spare),
        };
        if let Some(group) = spare.take() {
            return Ok(Some(group.into()));
        }
        let containers = root.join("containers");
        if !*ready {
            let agent = root.join("agent");
            make(&agent)?;
            // 0 is whoever writes it.
            fs::write(agent.join("cgroup.procs"), "0")?;
            hand_down(root)?;
            make(&containers)?;
            hand_down(&containers)?;
            // A guest is hardly larger than its container, and would refuse memory that a host promises: a program
            // is to run into its limit where it runs into it elsewhere.
            fs::write("/proc/sys/vm/overcommit_memory", "1")?;
            *ready = true;
        }
        Ok(Some(containers.join(id).into()))
    }
}

/// Lets a group to be on a host have the controllers, by which it is counted. Whoever makes the folder of all
/// of them does it for the others.
fn share_controllers(group: &Path) -> io::Result<()> {
    let Some(all) = group.parent().filter(|all| !all.exists()) else {
        return Ok(());
    };
    if let Some(above) = all.parent() {
        // A host that does not want that counts less.
        let _ = hand_down(above);
    }
    fs::create_dir_all(all)?;
    let _ = hand_down(all);
    Ok(())
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Lets the groups below this one have the controllers. One that the kernel lacks is done without; a
/// container that needs it is refused later.
fn hand_down(group: &Path) -> io::Result<()> {
    let control = group.join("cgroup.subtree_control");
    let all = CONTROLLERS.map(|c| format!("+{c}")).join(" ");
    if fs::write(&control, all).is_ok() {
        return Ok(());
    }
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    for controller in available.split_ascii_whitespace() {
        if CONTROLLERS.contains(&controller) {
            fs::write(&control, format!("+{controller}"))?;
        }
    }
    Ok(())
}
