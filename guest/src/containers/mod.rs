//! The containers of the guest.
//!
//! [`bulkhead_container`] makes them; here is who they are, what is known of them, and whom their end
//! is told. [`cgroups`], [`disks`], [`rootfs`] and [`volumes`] find what they are made of, [`stdio`] makes their
//! streams, [`lifecycle`] is what happens to them.

pub mod cgroups;
pub mod disks;
pub mod lifecycle;
pub mod oom;
pub mod rootfs;
pub mod stdio;
pub mod volumes;

use std::collections::BTreeMap;

use bulkhead_container::Container;
use bulkhead_container::cgroup::{Location, MemoryEvents};
use bulkhead_protocol::{ContainerState, ExecState, Exit, Status};
use rustix::process::Pid;

use crate::server::slab::{Key, Slab};
use cgroups::Cgroups;

/// The most containers at a time. A guest is made for one.
pub const MAX_CONTAINERS: usize = 64;
/// The most programs at a time that were executed in containers.
pub const MAX_EXECS: usize = 1024;
/// How many of those that have ended are remembered.
const MAX_ENDED: usize = 256;

/// All containers, and what was executed in them.
pub struct Containers {
    entries: Slab<Entry>,
    ids: BTreeMap<String, Key>,
    execs: BTreeMap<u64, ExecEntry>,
    next_exec: u64,
    created: u64,
    cgroups: Cgroups,
}

/// A container.
pub struct Entry {
    /// Its name.
    pub id: String,
    /// Itself.
    pub container: Container,
    /// Its streams.
    pub program: Key,
    /// Its first process, until that has been reaped.
    pub pid: Option<Pid>,
    /// What has become of it.
    pub phase: Phase,
    /// Whether it gets no processor.
    pub paused: bool,
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// Nanoseconds since 1970.
    pub started_ns: Option<u64>,
    /// Nanoseconds since 1970.
    pub finished_ns: Option<u64>,
    /// Why its program could not be executed: the exit's code and a sentence.
    pub failure: Option<(u8, String)>,
    /// Whether its memory runs out.
    pub oom: Option<MemoryEvents>,
    /// Clients that wait for its end.
    pub waiting: Vec<Key>,
    /// Clients that want it deleted as soon as it has ended.
    pub deleting: Vec<Key>,
    order: u64,
}

/// How far a container has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Stopped(Exit),
}

/// A program that was executed in a container.
#[derive(Debug)]
pub struct ExecEntry {
    /// The container's name.
    pub container_id: String,
    /// Its streams, if it has any.
    pub program: Key,
    /// Its process, until that has been reaped.
    pub pid: Option<Pid>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Clients that wait for that.
    pub waiting: Vec<Key>,
}

impl Entry {
    /// What it is at the moment.
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Stopped(_) => Status::Stopped,
            _ if self.paused => Status::Paused,
            Phase::Created => Status::Created,
            Phase::Running => Status::Running,
        }
    }

    /// As the API says it.
    pub fn state(&self) -> ContainerState {
        ContainerState {
            id: self.id.clone(),
            status: self.status(),
            pid: number(self.pid),
            created_ns: self.created_ns,
            started_ns: self.started_ns,
            finished_ns: self.finished_ns,
            exit: match &self.phase {
                Phase::Stopped(exit) => Some(exit.clone()),
                _ => None,
            },
        }
    }
}

impl ExecEntry {
    /// As the API says it.
    pub fn state(&self, id: u64) -> ExecState {
        ExecState {
            exec_id: id.to_string(),
            container_id: self.container_id.clone(),
            pid: number(self.pid),
            exit: self.exit.clone(),
        }
    }
}

fn number(pid: Option<Pid>) -> u32 {
    // A pid is positive.
    pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
}

impl Containers {
    /// None yet, on a machine whose cgroups are the agent's to arrange.
    pub fn of_a_guest() -> Self {
        Self::with(Cgroups::of_a_guest())
    }

    /// None yet, on a machine whose cgroups are somebody else's: containers have no limits.
    pub fn without_limits() -> Self {
        Self::with(Cgroups::Nowhere)
    }

    /// None yet, on a host that gives the one there will be this control group.
    pub fn of_a_host(group: Location) -> Self {
        Self::with(Cgroups::OfAHost(group))
    }

    fn with(cgroups: Cgroups) -> Self {
        Containers {
            entries: Slab::new(),
            ids: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_exec: 1,
            created: 0,
            cgroups,
        }
    }

    /// Looks a container up by its name.
    pub fn find(&self, id: &str) -> Option<Key> {
        self.ids.get(id).copied()
    }

    /// The container of which this is the program.
    pub fn with_program(&self, program: Key) -> Option<Key> {
        let mut entries = self.entries.iter();
        let found = entries.find(|(_, entry)| entry.program == program);
        found.map(|(key, _)| key)
    }

    /// Looks a container up.
    pub fn get(&self, key: Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Looks a container up.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// All of them, in the order in which they were created.
    pub fn states(&self) -> Vec<ContainerState> {
        let mut entries: Vec<&Entry> = self.entries.iter().map(|(_, entry)| entry).collect();
        entries.sort_by_key(|entry| entry.order);
        entries.into_iter().map(Entry::state).collect()
    }

    /// The keys of all of them.
    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys_of(|_| true)
    }

    /// A program that was executed in a container, by the numbers in a path.
    pub fn exec(&self, id: &str, exec: &str) -> Option<(u64, &ExecEntry)> {
        let number = exec.parse().ok()?;
        let entry = self.execs.get(&number)?;
        (entry.container_id == id).then_some((number, entry))
    }

    /// A program that was executed in a container.
    pub fn exec_mut(&mut self, number: u64) -> Option<&mut ExecEntry> {
        self.execs.get_mut(&number)
    }

    /// How many of those run.
    pub fn running_execs(&self) -> usize {
        self.execs.values().filter(|e| e.pid.is_some()).count()
    }

    fn insert(&mut self, make: impl FnOnce(u64) -> Entry) -> Option<Key> {
        self.created += 1;
        let entry = make(self.created);
        let id = entry.id.clone();
        let made = self.entries.insert_with(|_| Ok::<_, ()>(entry));
        let key = made?.ok()?;
        self.ids.insert(id, key);
        Some(key)
    }

    fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.ids.remove(&entry.id);
        self.execs
            .retain(|_, exec| exec.container_id != entry.id || exec.pid.is_some());
        Some(entry)
    }

    /// Adds a program and returns its number. Of those that have ended the oldest are forgotten.
    fn insert_exec(&mut self, entry: ExecEntry) -> u64 {
        let number = self.next_exec;
        self.next_exec += 1;
        self.execs.insert(number, entry);
        let ended = self.execs.iter().filter(|(_, e)| e.pid.is_none());
        let ended: Vec<u64> = ended.map(|(&number, _)| number).collect();
        for number in &ended[..ended.len().saturating_sub(MAX_ENDED)] {
            self.execs.remove(number);
        }
        number
    }

    /// Whose first process this is.
    fn container_of(&self, pid: Pid) -> Option<Key> {
        let mut entries = self.entries.iter();
        let found = entries.find(|(_, entry)| entry.pid == Some(pid));
        found.map(|(key, _)| key)
    }

    /// Which program's process this is.
    fn exec_of(&self, pid: Pid) -> Option<u64> {
        let mut execs = self.execs.iter();
        let found = execs.find(|(_, entry)| entry.pid == Some(pid));
        found.map(|(&number, _)| number)
    }
}

/// Whether a text can be a container's name: it becomes part of paths.
pub fn is_id(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && id.len() <= 128
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_when_it_could_mean_more_than_a_name_then_refused() {
        for good in ["a", "9", "web-1.A_b", &"x".repeat(128)] {
            assert!(is_id(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(129),
        ] {
            assert!(!is_id(bad), "{bad}");
        }
    }

    #[test]
    fn execs_when_they_have_ended_then_only_the_latest_are_remembered() {
        let mut containers = Containers::without_limits();
        let nowhere = Key {
            slot: 0,
            generation: 0,
        };
        let exec = |pid| ExecEntry {
            container_id: "a".into(),
            program: nowhere,
            pid,
            exit: None,
            waiting: Vec::new(),
        };
        let running = containers.insert_exec(exec(Pid::from_raw(5)));
        for _ in 0..2 * MAX_ENDED {
            containers.insert_exec(exec(None));
        }
        assert_eq!(containers.execs.len(), MAX_ENDED + 1);
        assert!(containers.exec("a", &running.to_string()).is_some());
        assert!(containers.exec("b", &running.to_string()).is_none());
        assert!(containers.exec("a", "2").is_none());
        assert_eq!(containers.running_execs(), 1);
    }
}
