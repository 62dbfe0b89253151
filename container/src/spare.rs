//! A first process that was made before its container is known: it has its namespaces, its control group, and the kernel's
//! filesystems in the form that most configurations ask for, and waits for the rest of a plan. Where the kernel's own
//! instructions are slow, that is half of a container's creation, and a template of machines has it done for all of them.
//!
//! A plan is taken apart (`split`): what can be done before the root filesystem is there comes first. A configuration whose
//! first part is the same as what was done gets the process; any other gets the control group alone.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::cgroup::{Cgroup, Limits, Location};
use crate::child::{self, Message};
use crate::container::can_borrow;
use crate::create::{Create, Lower, Rootfs, Stdio, Upper};
use crate::error::Error;
use crate::fork::{Carried, Started, Task, channel, hide_memory, not_started, send_signal};
use crate::plan::{Operation as O, Plan};
use crate::prepare::{self, Prepared};
use crate::spec::Spec;
use crate::sys::{self, Later, Lent};

/// The descriptors of this process, by their numbers.
const DESCRIPTORS: &str = "/proc/self/fd";

/// See the module. Dropped, it ends.
#[derive(Debug)]
pub struct Spare {
    /// None once it has been given away.
    waiting: Option<Waiting>,
    /// `CLONE_NEW*` of its namespaces.
    namespaces: u64,
    /// What it has done, in words.
    done: Vec<String>,
    /// The capabilities that are not in its bounding set any more.
    dropped: u64,
    /// What the directory is in that it has prepared for an overlay, likewise.
    upper: String,
    /// None once it has been given away.
    cgroup: Option<Cgroup>,
}

/// A process that waits for a plan.
#[derive(Debug)]
pub(crate) struct Waiting {
    pid: Pid,
    pidfd: OwnedFd,
    channel: OwnedFd,
    /// Its end, and what else it has open: it shares this process's descriptors until it is given the plan, so that it has
    /// those that the plan brings.
    shared: Vec<OwnedFd>,
    lent: Lent<Task>,
    plan: Arc<Later<Plan>>,
}

impl Spare {
    /// Makes one for containers like this, in a control group that is made and has no limits yet. For a process with a single
    /// thread and a mounted /proc, whom no process of a container may look into.
    pub fn new(spec: &Spec, cgroup: &Location) -> Result<Spare, Error> {
        let mut create = Create {
            id: "spare",
            spec,
            // Its lower layer is never mounted.
            rootfs: Rootfs::Overlay {
                lower: Lower::Directory("/".into()),
                upper: Upper::Tmpfs { size_bytes: None },
                files: Vec::new(),
                devices: true,
            },
            cgroup: Some(cgroup.clone()),
            stdio: Stdio::Null,
            init: false,
            borrows: true,
            dies_with_parent: false,
            bundle: None,
            gate: None,
            preserved: Vec::new(),
            spare: None,
        };
        let prepared = prepare::container(&mut create)?;
        if !is_fit(&create, &prepared) {
            let problem = "it asks for what cannot be prepared";
            return Err(Error::invalid("linux", problem));
        }
        let namespaces = prepared.namespaces.clone_flags();
        let mut plan = prepared.plan;
        let (mut early, late) = split(std::mem::take(&mut plan.operations));
        let done = first_of(&early).map(words).collect();
        let dropped = dropped_by(&early);
        let enter_upper = late.into_iter().find(is_upper);
        let upper = enter_upper.as_ref().map(words).unwrap_or_default();
        // What is mounted over that later is taken away again.
        let inside = end_of_outside(&early);
        let mount_points = early.iter().filter_map(mount_point).collect();
        let make_layers = O::MakeLayers { mount_points };
        early.splice(inside..inside, enter_upper.into_iter().chain([make_layers]));
        plan.operations = early;
        let cgroup = Cgroup::create(cgroup, &Limits::none(cgroup.version()))?;
        let waiting = match Waiting::start(plan, namespaces, cgroup.directory()) {
            Ok(waiting) => waiting,
            Err(error) => {
                let _ = cgroup.remove();
                return Err(error);
            }
        };
        Ok(Spare {
            waiting: Some(waiting),
            namespaces,
            done,
            dropped,
            upper,
            cgroup: Some(cgroup),
        })
    }

    /// Where its control group is.
    pub fn cgroup(&self) -> Option<Location> {
        self.cgroup.as_ref().map(Cgroup::location)
    }

    /// Its control group, and the process if it has done what this plan begins with: then that is taken out of the plan.
    pub(crate) fn take(
        mut self,
        create: &Create,
        prepared: &mut Prepared,
    ) -> (Option<Cgroup>, Option<Waiting>) {
        let operations = &mut prepared.plan.operations;
        let begins_like = first_of(operations)
            .map(words)
            .eq(self.done.iter().map(String::as_str));
        let dropped = dropped_by(operations);
        let is_fit = begins_like
            && self.dropped & !dropped == 0
            && self.namespaces == prepared.namespaces.clone_flags()
            && is_fit(create, prepared);
        if !is_fit {
            // The group is to be empty.
            self.end_process();
            return (self.cgroup.take(), None);
        }
        let operations = &mut prepared.plan.operations;
        let (_, mut late) = split(std::mem::take(operations));
        let has_upper = |operation: &O| is_upper(operation) && words(operation) == self.upper;
        if let Some(enter) = late.iter().position(has_upper) {
            late.remove(enter);
            for operation in &mut late {
                if let O::Lower { has_layers, .. } = operation {
                    *has_layers = true;
                }
            }
        }
        let dropped = dropped & !self.dropped;
        if dropped != 0 {
            late.insert(0, O::BoundingSet { dropped });
        }
        *operations = late;
        (self.cgroup.take(), self.waiting.take())
    }

    fn end_process(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let _ = send_signal(&waiting.pidfd, libc::SIGKILL, String::new);
            Started::reap(&waiting.pidfd);
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.end_process();
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.remove();
        }
    }
}

impl Waiting {
    /// Has it carry out what is left of a container's plan: it is the container's from now on. Returns when it has something to
    /// say.
    pub fn go_on(self, plan: Plan) -> Result<Started, Error> {
        let remaining = plan.after_the_gate();
        self.plan.give(plan);
        // Whoever gets the plan back is to be the only one who has it.
        drop(self.plan);
        child::send_go(&self.channel).map_err(not_started)?;
        wait_for_either(self.channel.as_fd(), self.pidfd.as_fd()).map_err(not_started)?;
        // It has descriptors of its own now. Without its end here its own end is heard of.
        drop(self.shared);
        Ok(Started {
            pid: self.pid,
            pidfd: self.pidfd,
            channel: self.channel,
            remaining,
            plan: Carried::Lent(self.lent),
        })
    }

    fn start(
        plan: Plan,
        namespaces: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Waiting, Error> {
        hide_memory()?;
        let (channel, theirs) = channel(&plan)?;
        let before = descriptors()?;
        let later = Arc::new(Later::default());
        let task = Task {
            plan,
            channel: sys::of_the_process(&theirs),
            later: Some(Arc::clone(&later)),
        };
        let flags = namespaces | libc::CLONE_FILES as u64;
        let started = sys::clone3_beside(flags, cgroup, task, |task| {
            if let Some(later) = &task.later {
                child::run_early(&mut task.plan, task.channel, later);
            }
        });
        let (pid, pidfd, lent) = started.map_err(not_started)?;
        let mut kept = Vec::new();
        let failed = loop {
            if !wait_for_either(channel.as_fd(), pidfd.as_fd()).map_err(not_started)? {
                // It has ended; of that nothing is heard as long as its end is open here.
                break Error::step("start", "a spare process", Errno::SRCH);
            }
            match child::receive(&channel) {
                Ok(Message::Keeps(descriptor)) => kept.push(descriptor),
                Ok(Message::Ready) => {
                    // What it has opened besides, it needs no more.
                    let mut shared = opened_since(&before, &pidfd)?;
                    shared.retain(|descriptor| kept.contains(&descriptor.as_raw_fd()));
                    shared.push(theirs);
                    return Ok(Waiting {
                        pid,
                        pidfd,
                        channel,
                        shared,
                        lent,
                        plan: later,
                    });
                }
                Ok(Message::Failed { operation, error }) => {
                    drop(later);
                    break Carried::Lent(lent).failure(operation, error);
                }
                Ok(_) => break Error::step("start", "a spare process", Errno::SRCH),
                Err(error) => break not_started(error),
            }
        };
        let _ = send_signal(&pidfd, libc::SIGKILL, String::new);
        Started::reap(&pidfd);
        drop(opened_since(&before, &pidfd));
        Err(failed)
    }
}

/// Waits until there is something to be read, or a process has ended, and returns whether there is.
fn wait_for_either(channel: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut fds = [
        PollFd::from_borrowed_fd(channel, PollFlags::IN),
        PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
        }
    }
}

/// What a process has opened that shares descriptors with this one.
fn opened_since(before: &[RawFd], pidfd: &OwnedFd) -> Result<Vec<OwnedFd>, Error> {
    let mut now = descriptors()?;
    now.retain(|number| !before.contains(number) && *number != pidfd.as_raw_fd());
    Ok(now.into_iter().filter_map(sys::take_over).collect())
}

/// The numbers of what is open.
fn descriptors() -> Result<Vec<RawFd>, Error> {
    let failed = |e| Error::step("look into", DESCRIPTORS, e);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(DESCRIPTORS).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // That of the folder itself is closed again.
    numbers.retain(|number| sys::is_open(*number));
    Ok(numbers)
}

/// Whether a container can have a process that was made before.
fn is_fit(create: &Create, prepared: &Prepared) -> bool {
    create.borrows
        && can_borrow(create, &prepared.namespaces)
        && prepared.namespaces.joined.is_empty()
        && is_divisible(&prepared.plan.operations)
}

/// How many operations come before those in the new mount namespace; all, if there is none.
fn end_of_outside(operations: &[O]) -> usize {
    let begins = |operation: &O| matches!(operation, O::PrivateMounts);
    let inside = operations.iter().position(begins);
    inside.map_or(operations.len(), |inside| inside + 1)
}

/// What is done first and has to be the same. More can be taken out of a bounding set later.
fn first_of(operations: &[O]) -> impl Iterator<Item = &O> {
    let (outside, inside) = operations.split_at(end_of_outside(operations));
    outside
        .iter()
        .filter(|o| !matches!(o, O::BoundingSet { .. }))
        .chain(inside.iter().filter(|o| is_of_kernel(o)))
}

/// What is taken out of the bounding set of capabilities.
fn dropped_by(operations: &[O]) -> u64 {
    let sets = operations.iter().map(|operation| match operation {
        O::BoundingSet { dropped } => *dropped,
        _ => 0,
    });
    sets.fold(0, |all, dropped| all | dropped)
}

/// Where a filesystem of the kernel's is attached in each container, in the writable layer: an image need not have it.
fn mount_point(operation: &O) -> Option<CString> {
    let O::AttachKept { target, .. } = operation else {
        return None;
    };
    let mut path = b"upper".to_vec();
    path.extend_from_slice(target.to_bytes());
    CString::new(path).ok()
}

/// What is done first, as [`first_of`] has it, and what is done when the root filesystem is known.
fn split(mut operations: Vec<O>) -> (Vec<O>, Vec<O>) {
    let inside = operations.split_off(end_of_outside(&operations));
    let (mut early, mut late) = (operations, Vec::with_capacity(inside.len()));
    for operation in inside {
        if let O::AttachKept { slot, target } = &operation {
            // Once where all is made in it, and then in the container.
            let (slot, target) = (*slot, target.clone());
            late.push(O::AttachKept { slot, target });
        }
        match is_of_kernel(&operation) {
            true => early.push(operation),
            false => late.push(operation),
        }
    }
    (early, late)
}

/// Whether a plan can be taken apart: nothing that comes first may depend on what comes later.
fn is_divisible(operations: &[O]) -> bool {
    let (outside, inside) = operations.split_at(end_of_outside(operations));
    let is_plain = |operation: &O| {
        matches!(
            operation,
            O::Unshare { .. }
                | O::Loopback
                | O::Undumpable
                | O::Umask(_)
                | O::Keyring
                | O::BoundingSet { .. }
                | O::PrivateMounts
        )
    };
    // The root of a runtime that is left later is still there; what is mounted over what was prepared would lie below it; and a
    // parameter could not be set any more.
    let disturbs = |operation: &O| match operation {
        O::ChangeRoot | O::AwaitHooks | O::Sysctl { .. } | O::ShowGroups { .. } => true,
        O::Attach { target, .. } | O::Propagate { target, .. } => is_kernels_place(target),
        O::Mount(mount) => is_kernels_place(&mount.target) && !is_of_kernel(operation),
        O::Device { place, .. } | O::ReadOnly { place } | O::Mask { place } => {
            place.slot.is_none() && is_kernels_place(&place.path)
        }
        _ => false,
    };
    outside.iter().all(is_plain) && !inside.iter().any(disturbs)
}

/// What is done in the kernel's own filesystems, wherever these are attached.
fn is_of_kernel(operation: &O) -> bool {
    match operation {
        O::Open(_) | O::AttachKept { .. } => true,
        O::Mount(mount) => {
            let kinds = [c"devpts", c"mqueue", c"tmpfs", c"cgroup2"];
            is_kernels_place(&mount.target)
                && !mount.copy_up
                && kinds.contains(&mount.kind.as_c_str())
        }
        O::MakeDirectory { place }
        | O::Device { place, .. }
        | O::Link { place, .. }
        | O::ReadOnly { place }
        | O::Mask { place } => place.slot.is_some(),
        _ => false,
    }
}

/// Where the kernel's own filesystems are mounted in each container, or below that.
fn is_kernels_place(path: &std::ffi::CStr) -> bool {
    let path = path.to_bytes();
    [&b"/proc"[..], b"/sys", b"/dev"].iter().any(|top| {
        path.strip_prefix(*top)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

/// What enters the writable layer's filesystem.
fn is_upper(operation: &O) -> bool {
    matches!(operation, O::EnterMount { .. })
}

/// An operation to be compared. None of those that are has a descriptor.
fn words(operation: &O) -> String {
    format!("{operation:?}")
}
