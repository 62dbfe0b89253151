//! Which namespaces a container has of its own, which it joins, and which it shares with its parent.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags, openat, stat};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::error::Error;
use crate::rootless;
use crate::spec::{Linux, NamespaceKind};

/// A container's namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Made with the first process.
    new: Vec<NamespaceKind>,
    /// Entered by it.
    pub joined: Vec<Joined>,
}

/// A namespace that exists.
#[derive(Debug)]
pub struct Joined {
    pub kind: NamespaceKind,
    pub path: String,
    pub namespace: Arc<OwnedFd>,
}

impl Namespaces {
    /// Reads what the configuration says, and opens what is to be joined.
    pub fn read(linux: &Linux) -> Result<Namespaces, Error> {
        let mut namespaces = Namespaces::default();
        for (i, namespace) in linux.namespaces.iter().enumerate() {
            let kind = namespace.kind;
            if namespaces.has(kind) {
                let problem = format!("a second {} namespace", kind.name());
                return Err(Error::invalid(format!("linux.namespaces[{i}]"), problem));
            }
            match &namespace.path {
                None => namespaces.new.push(kind),
                Some(path) => {
                    let field = || format!("linux.namespaces[{i}].path");
                    if !path.starts_with('/') {
                        return Err(Error::invalid(field(), format!("{path:?} is not absolute")));
                    }
                    let file = File::open(path)
                        .map_err(|e| Error::invalid(field(), format!("{path}: {e}")))?;
                    let joined = Joined {
                        kind,
                        path: path.clone(),
                        namespace: Arc::new(file.into()),
                    };
                    namespaces.joined.push(joined);
                }
            }
        }
        namespaces.check(linux)?;
        Ok(namespaces)
    }

    fn check(&self, linux: &Linux) -> Result<(), Error> {
        use NamespaceKind as K;
        if !self.is_new(K::Mount) {
            let problem =
                "there is no new mount namespace: the root filesystem would be the host's";
            return Err(Error::invalid("linux.namespaces", problem));
        }
        if self.joined(K::User).is_some() {
            let problem = "joining a user namespace is not supported; make a new one";
            return Err(Error::invalid("linux.namespaces", problem));
        }
        let mapped = [
            ("uidMappings", &linux.uid_mappings),
            ("gidMappings", &linux.gid_mappings),
        ];
        for (member, mappings) in mapped {
            let field = format!("linux.{member}");
            if mappings.is_empty() == self.is_new(K::User) {
                let problem =
                    "a new user namespace and mappings for it go together, and one is missing";
                return Err(Error::invalid(field, problem));
            }
            check_mappings(&field, mappings)?;
        }
        if !linux.time_offsets.is_empty() && !self.is_new(K::Time) {
            return Err(Error::invalid(
                "linux.timeOffsets",
                "there is no new time namespace",
            ));
        }
        for (clock, offset) in &linux.time_offsets {
            let field = || format!("linux.timeOffsets.{clock}");
            if clock != "monotonic" && clock != "boottime" {
                return Err(Error::invalid(
                    field(),
                    "only monotonic and boottime have offsets",
                ));
            }
            if offset.nanosecs >= 1_000_000_000 {
                return Err(Error::invalid(
                    field(),
                    "a second has 1000000000 nanoseconds",
                ));
            }
        }
        Ok(())
    }

    pub fn is_new(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind)
    }

    pub fn joined(&self, kind: NamespaceKind) -> Option<&Joined> {
        self.joined.iter().find(|joined| joined.kind == kind)
    }

    /// Whether it has one that is not its parent's.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.is_new(kind) || self.joined(kind).is_some()
    }

    /// What clone3(2) makes. The cgroup namespace is rooted where its maker is, and the maker is moved only after clone3
    /// has made namespaces; the time namespace must be told its offsets first: both are made by the child itself.
    pub fn clone_flags(&self) -> u64 {
        let by_child = [NamespaceKind::Cgroup, NamespaceKind::Time];
        self.new
            .iter()
            .filter(|kind| !by_child.contains(kind))
            .fold(0, |flags, kind| flags | kind.flag() as u64)
    }

    /// All that differ from the parent's, for programs executed later.
    pub fn flags(&self) -> i32 {
        let joined = self.joined.iter().map(|joined| joined.kind);
        self.new
            .iter()
            .copied()
            .chain(joined)
            .fold(0, |flags, kind| flags | kind.flag())
    }
}

/// All that differ from the parent's, for programs executed by who has not opened those that were joined.
pub fn flags(linux: &Linux) -> i32 {
    let kinds = linux.namespaces.iter().map(|namespace| namespace.kind);
    kinds.fold(0, |flags, kind| flags | kind.flag())
}

/// The numbers of all processes that are in one process namespace with this one. Whoever ends meanwhile may be missing.
pub fn processes_beside(first: Pid) -> Result<Vec<u32>, Error> {
    let namespace = |pid: u32| {
        let found = stat(format!("/proc/{pid}/ns/pid"));
        found.map(|found| (found.st_dev, found.st_ino))
    };
    let number = first.as_raw_pid().unsigned_abs();
    let own = namespace(number)
        .map_err(|e| Error::step("find", format!("the namespace of process {number}"), e))?;
    let entries = std::fs::read_dir("/proc").map_err(|e| Error::step("list", "/proc", e))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Those of others cannot be looked at.
    Ok(pids
        .filter(|pid| namespace(*pid).is_ok_and(|other| other == own))
        .collect())
}

/// Runs `fork` so that the child is made in another process namespace, in which the caller itself stays no member.
pub fn fork_in<T: Send>(
    pids: BorrowedFd<'_>,
    kinds: i32,
    fork: impl FnOnce() -> T + Send,
) -> Result<T, Errno> {
    let enter = |fd: BorrowedFd, kinds| move_into_thread_name_spaces(fd, kinds);
    let kinds = ThreadNameSpaceType::from_bits_retain(kinds as u32);
    if !rootless::is_initial() {
        // The way back may be closed: the own one is somebody else's. So only a thread goes there, and ends.
        return thread::scope(|scope| {
            let there = thread::Builder::new().spawn_scoped(scope, || {
                enter(pids, kinds)?;
                Ok(fork())
            });
            let there = there.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))?;
            there.join().unwrap_or(Err(Errno::AGAIN))
        });
    }
    let own = own_pids()?;
    enter(pids, kinds)?;
    let forked = fork();
    enter(own, ThreadNameSpaceType::PROCESS_ID)?;
    Ok(forked)
}

/// The process namespace of this process, which it never leaves.
fn own_pids() -> Result<BorrowedFd<'static>, Errno> {
    static OWN: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own.as_fd());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = openat(CWD, c"/proc/self/ns/pid", flags, Mode::empty())?;
    Ok(OWN.get_or_init(|| own).as_fd())
}

fn check_mappings(field: &str, mappings: &[crate::spec::IdMapping]) -> Result<(), Error> {
    if mappings.len() > 340 {
        return Err(Error::invalid(field, "the kernel takes 340 mappings"));
    }
    for (i, mapping) in mappings.iter().enumerate() {
        let fits = |first: u32| mapping.size > 0 && first.checked_add(mapping.size).is_some();
        if !fits(mapping.container_id) || !fits(mapping.host_id) {
            return Err(Error::invalid(
                format!("{field}[{i}]"),
                "an empty range, or one beyond the last number",
            ));
        }
    }
    Ok(())
}

impl NamespaceKind {
    pub(crate) fn flag(self) -> i32 {
        match self {
            NamespaceKind::Pid => libc::CLONE_NEWPID,
            NamespaceKind::Network => libc::CLONE_NEWNET,
            NamespaceKind::Mount => libc::CLONE_NEWNS,
            NamespaceKind::Ipc => libc::CLONE_NEWIPC,
            NamespaceKind::Uts => libc::CLONE_NEWUTS,
            NamespaceKind::User => libc::CLONE_NEWUSER,
            NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
            NamespaceKind::Time => CLONE_NEWTIME,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "network",
            NamespaceKind::Mount => "mount",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Uts => "uts",
            NamespaceKind::User => "user",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::Time => "time",
        }
    }
}

const CLONE_NEWTIME: i32 = 0x80;
