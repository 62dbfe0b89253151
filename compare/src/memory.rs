//! What an instance takes of the host's memory: its processes' proportional shares of the pages that
//! they map (PSS, proc_pid_smaps(5)), in which what several instances share counts once among them all.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use bulkhead_engine::record::Processes;

use crate::report::Kind;

/// What an instance takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bulkhead's own processes, without a guest's memory.
    pub own: u64,
    /// A guest's memory, or the container's processes.
    pub inside: u64,
    /// The kernel memory that is charged to the container's control group, if the host tells.
    pub kernel: Option<u64>,
}

impl Taken {
    /// The shares of all its processes.
    pub fn processes(&self) -> u64 {
        self.own + self.inside
    }
}

/// What the instance with these processes takes.
pub fn taken(kind: Kind, processes: &Processes) -> Result<Taken, String> {
    let all = descendants(processes.monitor.pid, &parents());
    let mut taken = Taken::default();
    for &pid in &all {
        let (guest, rest) = share(pid)?;
        let is_own = pid == processes.monitor.pid || kind == Kind::Vm;
        taken.inside += guest;
        *(if is_own {
            &mut taken.own
        } else {
            &mut taken.inside
        }) += rest;
    }
    if kind == Kind::Container {
        taken.kernel = kernel_memory(processes.vmm.pid);
    }
    Ok(taken)
}

/// The parent of each process.
fn parents() -> HashMap<i32, i32> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            parents.insert(pid, parent);
        }
    }
    parents
}

/// The fourth field of `/proc/PID/stat`; the second is a name, which may hold any character.
fn parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A process and all that come of it.
fn descendants(root: i32, parents: &HashMap<i32, i32>) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        let children = parents.iter().filter(|&(_, &parent)| parent == of);
        found.extend(children.map(|(&pid, _)| pid));
        next += 1;
    }
    found
}

/// The shares of a process: of a guest's memory, and of all else. A process that has just ended has
/// none.
fn share(pid: i32) -> Result<(u64, u64), String> {
    match fs::read_to_string(format!("/proc/{pid}/smaps")) {
        Ok(smaps) => Ok(shares(&smaps)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => Ok((0, 0)),
        Err(e) => Err(format!("cannot read what memory process {pid} has: {e}")),
    }
}

fn shares(smaps: &str) -> (u64, u64) {
    let (mut guest, mut rest, mut current) = (0, 0, 0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Pss:") => {
                let kib: Option<u64> = words.next().and_then(|word| word.parse().ok());
                current = kib.unwrap_or(0) << 10;
            }
            // The last line about a mapping. The VMM leaves only the guest's memory out of a core dump;
            // the kernel's own pages, which are left out as well, are marked as I/O.
            Some("VmFlags:") => {
                let flags: Vec<&str> = words.collect();
                let is_guest = flags.contains(&"dd") && !flags.contains(&"io");
                *(if is_guest { &mut guest } else { &mut rest }) += current;
                current = 0;
            }
            _ => {}
        }
    }
    (guest, rest)
}

/// The kernel memory charged to the control group of a process, if that is not ours as well.
fn kernel_memory(pid: i32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let ours = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let unified = controllers.is_empty();
        // A group that others are in, too, such as the root, says nothing of one of them.
        if ours.lines().any(|ours| ours == line) {
            continue;
        }
        if !unified && !controllers.split(',').any(|name| name == "memory") {
            continue;
        }
        let Some(root) = hierarchy(&mounts, unified) else {
            continue;
        };
        let folder = root.join(path.trim_start_matches('/'));
        let bytes = if unified {
            let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let kernel = stat.lines().find_map(|line| line.strip_prefix("kernel "));
            kernel.and_then(|number| number.trim().parse().ok())
        } else {
            let usage = fs::read_to_string(folder.join("memory.kmem.usage_in_bytes"));
            usage.ok().and_then(|number| number.trim().parse().ok())
        };
        if bytes.is_some() {
            return bytes;
        }
    }
    None
}

/// Where the hierarchy with the memory controller is mounted.
fn hierarchy(mounts: &str, unified: bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let fits = match after.next()? {
            "cgroup2" => unified,
            "cgroup" => !unified && after.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        fits.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_when_a_mapping_is_the_guests_are_told_apart() {
        let smaps = "\
7f001000-7f002000 r-xp 00000000 fe:00 1  /usr/bin/vmm
Pss:   12 kB
Pss_Dirty: 4 kB
VmFlags: rd ex mr
7f010000-7f020000 rw-p 00000000 00:00 0
Pss:   9999 kB
VmFlags: rd wr mr nr dd hg
7f020000-7f021000 r--p 00000000 00:00 0  [vvar]
Pss:   1 kB
VmFlags: rd mr pf io de dd
";
        assert_eq!(shares(smaps), (9999 << 10, 13 << 10));
        let own = std::process::id() as i32;
        let (guest, rest) = share(own).expect("ours");
        assert!(guest == 0 && rest > 0);
        assert_eq!(share(i32::MAX), Ok((0, 0)));
    }

    #[test]
    fn descendants_are_children_and_theirs() {
        assert_eq!(parent("7 (a) R ( b) S 3 7 7"), Some(3));
        let parents = HashMap::from([(2, 1), (3, 2), (4, 2), (5, 1), (6, 0)]);
        let mut found = descendants(2, &parents);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4]);
    }

    #[test]
    fn hierarchy_when_there_are_many_is_the_one_with_memory() {
        let mounts = "\
30 29 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 29 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 29 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
        let at = |unified| hierarchy(mounts, unified).map(|path| path.display().to_string());
        assert_eq!(at(false).as_deref(), Some("/sys/fs/cgroup/memory"));
        assert_eq!(at(true).as_deref(), Some("/sys/fs/cgroup/unified"));
    }
}
