//! What the first process of a container does before it becomes the program: a list of operations, made by the parent, where
//! memory may be allocated and a failure costs nothing yet.
//!
//! The child carries the list out (`child`) and, should one operation fail, reports its place in the list and the error's
//! number. What that was, in words, the parent finds here.

use std::borrow::Cow;
use std::ffi::{CString, c_int, c_ulong};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sys::{Instruction, MountAttributes, SchedulerAttributes, Strings};
use crate::users::Wanted;

/// The operations, and what they need that is not an operation's own.
#[derive(Debug)]
pub struct Plan {
    pub operations: Vec<Operation>,
    pub program: Program,
    pub identity: Identity,
    /// A socket at which who starts the child calls; none: whoever made it starts it.
    pub gate: Option<OwnedFd>,
    /// The descriptors after the standard ones that the program keeps, in their order, each once.
    pub preserved: Vec<RawFd>,
}

impl Plan {
    /// What it means that an operation failed.
    pub fn failure(&self, operation: usize, error: Errno) -> Error {
        match self.operations.get(operation) {
            Some(Operation::FindProgram | Operation::Execute) => {
                program_failure(&self.program.name, error)
            }
            Some(operation) => {
                let (step, object) = operation.describe();
                Error::step(step, object, error)
            }
            None => Error::step("prepare", "the container", error),
        }
    }

    /// What is left to be told of when the child waits at the gate.
    pub fn after_the_gate(&self) -> Remaining {
        let gate = |o: &Operation| matches!(o, Operation::Ready { gate: true });
        let first = self.operations.iter().position(gate).unwrap_or(0);
        let words = |operation: &Operation| {
            let (step, object) = operation.describe();
            (Cow::Borrowed(step), object)
        };
        Remaining {
            first,
            steps: self.operations.iter().skip(first).map(words).collect(),
            program: self.program.name.clone(),
        }
    }
}

/// What the operations behind the gate are, in words: all that is left of a plan for whoever starts the child, who may be
/// another process than the one that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// The place of the first of them in the plan, by which the child reports.
    first: usize,
    /// What is done, to what; the last of them executes the program.
    steps: Vec<(Cow<'static, str>, String)>,
    program: String,
}

impl Remaining {
    /// What it means that an operation failed.
    pub fn failure(&self, operation: usize, error: Errno) -> Error {
        let place = operation.checked_sub(self.first);
        match place.and_then(|place| self.steps.get(place)) {
            Some(_) if place == Some(self.steps.len() - 1) => program_failure(&self.program, error),
            Some((step, object)) => Error::step(step.clone(), object.as_str(), error),
            None => Error::step("start", self.program.as_str(), error),
        }
    }
}

fn program_failure(program: &str, error: Errno) -> Error {
    let program = program.to_owned();
    match error {
        Errno::NOENT | Errno::NOTDIR => Error::NotFound { program },
        error => Error::NotExecutable {
            program,
            source: error.into(),
        },
    }
}

/// How the slot for the home directory begins in the environment.
pub const HOME: &[u8] = b"HOME=";

/// The program to become.
#[derive(Debug)]
pub struct Program {
    /// As it was named.
    pub name: String,
    /// Where it may be, in the order to try.
    pub candidates: Vec<CString>,
    /// In those before this one it is not.
    pub first: usize,
    pub args: Strings,
    pub env: Strings,
    /// `env` has no HOME but a slot for it.
    pub wants_home: bool,
}

/// Who to be, as far as it is known before the image's user database is read.
#[derive(Debug)]
pub struct Identity {
    pub wanted: Wanted,
    /// The groups of `process.user.additionalGids`.
    pub additional: Vec<u32>,
    /// Groups can be left and joined.
    pub sets_groups: bool,
}

/// Descriptors that later operations work by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    Proc,
    Sys,
    Dev,
}

/// What to make where a mount's target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Directory,
    File,
}

/// A place below one of our own mounts, by its descriptor, or anywhere in the container, by its path.
#[derive(Debug)]
pub struct Place {
    pub slot: Option<Slot>,
    /// Relative to the slot, or absolute.
    pub path: CString,
}

/// A filesystem to mount, by mount(2): one call.
#[derive(Debug)]
pub struct Mount {
    pub source: CString,
    pub kind: CString,
    pub target: CString,
    pub flags: MountFlags,
    pub data: CString,
    /// What the target holds is copied into it.
    pub copy_up: bool,
}

/// A filesystem to mount by a descriptor of it.
#[derive(Debug)]
pub struct MountKept {
    pub kind: CString,
    pub source: Option<CString>,
    pub options: Vec<(CString, Option<CString>)>,
    pub attributes: MountAttrFlags,
    pub target: CString,
    pub slot: Slot,
}

/// Processors or memory nodes, bit n for number n.
pub type NumberSet = [u64; 16];

/// Capabilities, bit n for number n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// The files a process enters a control group by: `tasks` or `cgroup.procs` of each of its directories.
pub type Entrance = Vec<Arc<OwnedFd>>;

/// Directories of a control group, to be attached below a directory that is there.
#[derive(Debug, Default)]
pub struct GroupTrees {
    /// Each with its place.
    pub trees: Vec<(OwnedFd, CString)>,
    /// Symbolic links: their places, and what they say.
    pub links: Vec<(CString, CString)>,
}

#[derive(Debug)]
pub enum Operation {
    /// Waits until the parent has done what only it can: the user namespace's mappings.
    AwaitParent,
    Undumpable,
    /// Enters a control group.
    EnterGroups {
        tasks: Entrance,
    },
    Join {
        namespace: Arc<OwnedFd>,
        flags: c_int,
        name: String,
    },
    Unshare {
        flags: c_int,
        name: &'static str,
    },
    /// Becomes user and group 0 of its new user namespace.
    BecomeRoot,
    /// Brings the loopback interface of its new network namespace up.
    Loopback,
    /// A file of the host's /proc, before that is left behind.
    Write {
        path: CString,
        data: Vec<u8>,
        /// Who is not root does without, where the kernel has it so.
        may_be_refused: bool,
    },
    /// Nothing that is mounted from here on is seen outside.
    PrivateMounts,
    /// Mounts a tree that the parent opened and goes there.
    EnterTree {
        tree: OwnedFd,
        target: CString,
        name: String,
    },
    /// Goes to what it mounts over everything.
    EnterMount {
        source: CString,
        kind: CString,
        flags: MountFlags,
        data: CString,
    },
    /// Makes the directories for an overlay in the current directory, which is empty, and some in the writable layer.
    MakeLayers {
        mount_points: Vec<CString>,
    },
    /// Mounts what an overlay in the current directory lies over.
    Lower {
        source: CString,
        kind: CString,
        flags: MountFlags,
        /// By [`Operation::MakeLayers`].
        has_layers: bool,
    },
    /// A file of the new root, made where the overlay will have it: through that it takes three times as long. Nothing is
    /// done where only the overlay can do it right, and then [`Operation::NewFile`] does it.
    PlaceFile {
        /// Its directory below the overlay.
        lower: CString,
        /// That in the writable layer.
        upper: CString,
        path: CString,
        data: Arc<[u8]>,
        number: usize,
    },
    /// Makes the overlay and goes there.
    Overlay {
        /// The overlay's options.
        layers: CString,
        devices: bool,
    },
    /// The current directory becomes the root of this process, and what was the root can still be gone back to.
    ChangeRoot,
    /// Waits until the hooks of the creation were run.
    AwaitHooks,
    /// Goes back to what was the root, in the directory that was the root meanwhile.
    ChangeRootBack,
    /// The current directory becomes the root, and what was the root is gone.
    Pivot,
    /// A file of the new root, in the place of what is there, if it was not placed before.
    NewFile {
        path: CString,
        data: Arc<[u8]>,
        number: usize,
    },
    Propagate {
        flags: MountPropagationFlags,
        target: CString,
    },
    Mount(Mount),
    /// A mount whose root later operations work below, so that no link is followed to get there.
    Open(MountKept),
    AttachKept {
        slot: Slot,
        target: CString,
    },
    Attach {
        tree: OwnedFd,
        target: CString,
        missing: Missing,
        source: String,
        copy_up: bool,
    },
    /// The directories of the control group in the hierarchies of version 1, once it is made.
    ShowGroups {
        target: String,
        groups: GroupTrees,
    },
    MakeDirectory {
        place: Place,
    },
    Device {
        place: Place,
        mode: u32,
        device: u64,
        owner: Option<(u32, u32)>,
        /// Anything else at its place is an error.
        asked_for: bool,
    },
    Link {
        place: Place,
        target: CString,
    },
    Attributes {
        target: CString,
        attributes: MountAttributes,
        flags: c_int,
    },
    Sysctl {
        place: Place,
        value: Vec<u8>,
    },
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
    Mask {
        place: Place,
    },
    ReadOnly {
        place: Place,
    },
    Terminal {
        rows: u16,
        columns: u16,
        console: bool,
    },
    WorkingDirectory {
        path: CString,
    },
    /// Standard input, output and error. None: as they are.
    Stdio {
        files: Option<[OwnedFd; 3]>,
    },
    /// Signals do what they do by default; bit n-1 of `ignored` is signal n.
    Signals {
        ignored: u64,
    },
    /// Keeps no descriptor but the standard ones, so many that the program is given besides, and the ways to be told to go on.
    CloseOthers,
    Session {
        terminal: bool,
    },
    Rlimit {
        resource: Resource,
        limit: Rlimit,
        name: String,
    },
    Scheduler {
        attributes: SchedulerAttributes,
        name: String,
    },
    IoPriority {
        value: u16,
        name: String,
    },
    /// Where memory comes from.
    MemoryPolicy {
        mode: c_int,
        nodes: Box<NumberSet>,
        name: String,
    },
    /// On which processors it runs.
    Affinity {
        processors: Box<NumberSet>,
        name: String,
    },
    /// What programs take the machine for.
    Personality(c_ulong),
    Umask(u32),
    /// A session keyring of its own, since no namespace keeps the runtime's from it.
    Keyring,
    LookUpUser,
    /// Says early that there is no such program: who starts the child later asks somebody else then.
    FindProgram,
    /// Passes over the places where there is nothing. To try to execute that takes the kernel a new address space each time.
    Locate,
    BoundingSet {
        dropped: u64,
    },
    BecomeUser {
        keep_capabilities: bool,
    },
    /// Is killed when the thread ends that forked it.
    DieWithParent,
    /// Tells the parent that all is ready, with the terminal if there is one, and waits for the start if there is a gate.
    Ready {
        gate: bool,
    },
    NoNewPrivileges,
    Seccomp {
        program: Arc<[Instruction]>,
        flags: u32,
    },
    Capabilities(CapabilitySets),
    /// Leaves process 1 to reap, and goes on in a child of it.
    Init,
    Execute,
}

impl Operation {
    fn describe(&self) -> (&'static str, String) {
        use Operation as O;
        let path = |path: &CString| path.to_string_lossy().into_owned();
        match self {
            O::AwaitParent => ("map users into", "the user namespace".into()),
            O::Undumpable => ("protect", "the process from its neighbours".into()),
            O::EnterGroups { .. } => ("enter", "the control group".into()),
            O::Join { name, .. } => ("join namespace", name.clone()),
            O::Unshare { name, .. } => ("make a namespace for", (*name).into()),
            O::BecomeRoot => ("become user 0 of", "the user namespace".into()),
            O::Loopback => ("bring up", "the loopback interface".into()),
            O::Write { path: p, .. } => ("write", path(p)),
            O::PrivateMounts => ("make private", "the mounts of the new namespace".into()),
            O::EnterTree { name, .. } => ("mount the root filesystem from", name.clone()),
            O::EnterMount { source, .. } => ("mount the writable layer from", path(source)),
            O::MakeLayers { .. } => (
                "make directories for",
                "the root filesystem's overlay".into(),
            ),
            O::Lower { source, .. } => ("mount what the root filesystem is of,", path(source)),
            O::PlaceFile { path: p, .. } => ("write", path(p)),
            O::Overlay { .. } => ("mount", "the root filesystem's overlay".into()),
            O::ChangeRoot => ("go to", "the root filesystem".into()),
            O::AwaitHooks => ("wait for", "hooks".into()),
            O::ChangeRootBack => ("leave", "the root filesystem".into()),
            O::Pivot => ("pivot to", "the root filesystem".into()),
            O::NewFile { path: p, .. } => ("write", path(p)),
            O::Propagate { target, .. } => ("change the propagation of", path(target)),
            O::Mount(Mount { target, kind, .. }) => {
                ("mount", format!("{} on {}", path(kind), path(target)))
            }
            O::AttachKept { target, .. } => (
                "attach the filesystem that must be mounted on ordinary directory, not on a link, at",
                path(target),
            ),
            O::Open(MountKept { target, kind, .. }) => {
                ("mount", format!("{} on {}", path(kind), path(target)))
            }
            O::Attach { target, source, .. } => ("mount", format!("{source} on {}", path(target))),
            O::ShowGroups { target, .. } => ("mount the control groups on", target.clone()),
            O::MakeDirectory { place } => ("make directory", place.name()),
            O::Device { place, .. } => ("make device", place.name()),
            O::Link { place, .. } => ("make symbolic link", place.name()),
            O::Attributes { target, .. } => ("change the mount at", path(target)),
            O::Sysctl { place, .. } => ("set kernel parameter", place.name()),
            O::Hostname(name) => ("set host name", String::from_utf8_lossy(name).into_owned()),
            O::Domainname(name) => (
                "set domain name",
                String::from_utf8_lossy(name).into_owned(),
            ),
            O::Mask { place } => ("mask", place.name()),
            O::ReadOnly { place } => ("make read-only", place.name()),
            O::Terminal { .. } => (
                "open a terminal through",
                "/dev/pts/ptmx of the container".into(),
            ),
            O::WorkingDirectory { path: p } => ("enter working directory", path(p)),
            O::Stdio { .. } => ("connect", "standard input, output and error".into()),
            O::Signals { .. } => ("reset", "signals".into()),
            O::CloseOthers => ("close", "inherited descriptors".into()),
            O::Session { .. } => ("start", "a session".into()),
            O::Rlimit { name, .. } => ("set limit", name.clone()),
            O::Scheduler { name, .. } => ("set the scheduler to", name.clone()),
            O::IoPriority { name, .. } => ("set the priority of I/O to", name.clone()),
            O::MemoryPolicy { name, .. } => ("set the memory policy to", name.clone()),
            O::Affinity { name, .. } => ("run on processors", name.clone()),
            O::Personality(_) => ("set", "the execution domain".into()),
            O::Keyring => ("make", "a session keyring".into()),
            O::Umask(mask) => ("set umask", format!("{mask:04o}")),
            O::LookUpUser => (
                "find in /etc/passwd and /etc/group of the container:",
                "user".into(),
            ),
            O::Locate => ("look for", "the program".into()),
            O::FindProgram => ("find", "the program".into()),
            O::BoundingSet { .. } => ("limit", "the bounding set of capabilities".into()),
            O::BecomeUser { .. } => ("become", "the user of the program".into()),
            O::DieWithParent => ("tie the process to", "the runtime".into()),
            O::Ready { .. } => ("report to", "the parent".into()),
            O::NoNewPrivileges => ("set", "no_new_privs".into()),
            O::Seccomp { .. } => ("load", "the seccomp filter".into()),
            O::Capabilities { .. } => ("set", "the capabilities".into()),
            O::Init => ("fork from", "the init process".into()),
            O::Execute => ("execute", "the program".into()),
        }
    }
}

impl Place {
    fn name(&self) -> String {
        let path = self.path.to_string_lossy();
        match self.slot {
            Some(Slot::Proc) => format!("/proc/{path}"),
            Some(Slot::Sys) => format!("/sys/{path}"),
            Some(Slot::Dev) => format!("/dev/{path}"),
            None => path.into_owned(),
        }
    }
}
