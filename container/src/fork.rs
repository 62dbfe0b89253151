//! Starting a process that carries a plan out, and what its failures mean.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::child::{self, Message};
use crate::error::Error;
use crate::namespaces;
use crate::plan::{Operation, Plan, Remaining};
use crate::prepare;
use crate::sys::{self, Forked, Later, Lent};

/// A process that carries a plan out.
pub(crate) struct Started {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub channel: OwnedFd,
    /// What it does when it is told to start.
    pub remaining: Remaining,
    /// For the errors of its operations.
    pub plan: Carried,
}

/// A plan that a process carries out.
#[derive(Debug)]
pub(crate) enum Carried {
    /// The process has a copy.
    Copied(Box<Plan>),
    /// It is the process's until that has executed its program or ended.
    Lent(Lent<Task>),
}

impl Carried {
    /// What it means that an operation failed, which the process has said as the last thing it did.
    pub fn failure(self, operation: usize, error: Errno) -> Error {
        let plan = match self {
            Carried::Copied(plan) => Some(*plan),
            Carried::Lent(lent) => lent.take_back().and_then(Task::into_plan),
        };
        match plan {
            Some(plan) => plan.failure(operation, error),
            None => Error::step("prepare", "the container", error),
        }
    }
}

/// What a process works with that borrows this one's memory.
#[derive(Debug)]
pub(crate) struct Task {
    pub plan: Plan,
    /// By its number, which is the process's own.
    pub channel: BorrowedFd<'static>,
    /// What it carries out after that, if it is a spare one.
    pub later: Option<Arc<Later<Plan>>>,
}

impl Task {
    /// The plan that it came to.
    fn into_plan(self) -> Option<Plan> {
        match self.later {
            Some(later) => Arc::into_inner(later)?.into_inner().or(Some(self.plan)),
            None => Some(self.plan),
        }
    }
}

impl Started {
    /// Collects a process that failed, so that its number is free and no namespace waits for it. Whoever else collects
    /// children may have been faster.
    pub fn reap(pidfd: &OwnedFd) {
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// Starts a process that carries a plan out, in a process namespace that exists if one is given. It borrows the memory of this
/// process, if it is to, and is not in such a namespace.
pub(crate) fn fork(
    plan: Plan,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    pids: Option<BorrowedFd<'_>>,
    borrows: bool,
) -> Result<Started, Error> {
    let (channel, theirs) = channel(&plan)?;
    let their_channel = sys::of_the_process(&theirs);
    let remaining = plan.after_the_gate();
    let (pid, pidfd, plan) = match pids {
        None if borrows => {
            hide_memory()?;
            let task = Task {
                plan,
                channel: their_channel,
                later: None,
            };
            let started = sys::clone3_beside(flags, cgroup, task, |task| {
                child::run(&mut task.plan, Some(task.channel));
            });
            let (pid, pidfd, lent) = started.map_err(not_started)?;
            (pid, pidfd, Carried::Lent(lent))
        }
        _ => {
            let mut plan = plan;
            let started = fork_in(pids, || match sys::clone3(flags, cgroup)? {
                Forked::Parent(pid, pidfd) => Ok((pid, pidfd)),
                Forked::Child => {
                    child::run(&mut plan, Some(their_channel));
                    sys::exit(127)
                }
            });
            let (pid, pidfd) = started.map_err(not_started)?;
            (pid, pidfd, Carried::Copied(Box::new(plan)))
        }
    };
    drop(theirs);
    Ok(Started {
        pid,
        pidfd,
        channel,
        remaining,
        plan,
    })
}

/// A process that has executed its program.
pub(crate) struct Executed {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

/// Starts a process that carries a plan out, in a process namespace that exists if one is given, and returns when it has
/// executed the program. Meanwhile it borrows the memory of this process, unless it is not to. If its system calls are somebody
/// else's to decide about, that one is told.
pub(crate) fn execute(
    plan: Plan,
    cgroup: Option<BorrowedFd<'_>>,
    pids: Option<BorrowedFd<'_>>,
    borrows: bool,
    told: impl Fn(&OwnedFd, Pid) -> Result<(), Error>,
) -> Result<Executed, Error> {
    hide_memory()?;
    let opens_terminal = |operation: &Operation| matches!(operation, Operation::Terminal { .. });
    let needs_channel = !borrows || plan.operations.iter().any(opens_terminal);
    let (channel, theirs) = needs_channel.then(|| channel(&plan)).transpose()?.unzip();
    let mut plan = plan;
    let mut failed = None;
    let mut start = |plan: &mut Plan, cgroup| {
        let mut run = || child::run(plan, theirs.as_ref().map(sys::of_the_process));
        fork_in(pids, || {
            if borrows {
                return sys::clone3_borrowing(cgroup, || failed = Some(run()));
            }
            match sys::clone3(0, cgroup)? {
                Forked::Parent(pid, pidfd) => Ok((pid, pidfd)),
                Forked::Child => {
                    run();
                    sys::exit(127)
                }
            }
        })
    };
    let started = match (start(&mut plan, cgroup), cgroup) {
        (Err(Errno::AGAIN), Some(group)) => {
            // It has as many processes as it may have, and none is born into it. One may enter it all the same.
            let tasks = vec![processes_of(group).map_err(not_started)?.into()];
            let enter = Operation::EnterGroups { tasks };
            plan.operations.insert(0, enter);
            start(&mut plan, None)
        }
        (started, _) => started,
    };
    let (pid, pidfd) = started.map_err(not_started)?;
    drop(theirs);
    let mut terminal = None;
    if let Some(channel) = channel {
        let failed_to_hear = |e| Error::step("hear from", "the process", e);
        loop {
            match child::receive(&channel).map_err(failed_to_hear)? {
                Message::Terminal(master) => terminal = Some(master),
                Message::Listener(descriptor) => {
                    if let Err(error) = told(&descriptor, pid) {
                        // Nobody would answer it.
                        let _ = send_signal(&pidfd, libc::SIGKILL, || format!("process {pid}"));
                        Started::reap(&pidfd);
                        return Err(error);
                    }
                }
                Message::Failed { operation, error } => failed = Some((operation, error)),
                Message::Ready | Message::Hooks | Message::Keeps(_) => {}
                Message::Gone => break,
            }
        }
    }
    if let Some((operation, error)) = failed {
        Started::reap(&pidfd);
        return Err(plan.failure(operation, error));
    }
    Ok(Executed {
        pid,
        pidfd,
        terminal,
    })
}

/// Whoever may look into a process in the container must not see this process's memory in it. From now on nobody may look
/// into either, without the capability to look into all.
pub(crate) fn hide_memory() -> Result<(), Error> {
    static HIDDEN: AtomicBool = AtomicBool::new(false);
    if !HIDDEN.load(Ordering::Relaxed) {
        sys::set_undumpable()
            .map_err(|e| Error::step("protect", "the process from its neighbours", e))?;
        HIDDEN.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// The file that a process enters a control group by.
fn processes_of(group: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    openat(group, "cgroup.procs", flags, Mode::empty())
}

/// The parent's end and the child's.
pub(crate) fn channel(plan: &Plan) -> Result<(OwnedFd, OwnedFd), Error> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(not_started)?;
    Ok((ours, prepare::out_of_the_way(theirs, &plan.preserved)?))
}

fn fork_in(
    pids: Option<BorrowedFd<'_>>,
    fork: impl FnOnce() -> Result<(Pid, OwnedFd), Errno> + Send,
) -> Result<(Pid, OwnedFd), Errno> {
    match pids {
        None => fork(),
        Some(pids) => namespaces::fork_in(pids, libc::CLONE_NEWPID, fork).and_then(|forked| forked),
    }
}

pub(crate) fn not_started(error: Errno) -> Error {
    Error::step("start", "a process", error)
}

/// Sends a signal to a process that was started. One that has ended is no error.
pub(crate) fn send_signal(
    pidfd: &OwnedFd,
    signal: i32,
    name: impl FnOnce() -> String,
) -> Result<(), Error> {
    match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::step("send a signal to", name(), error)),
    }
}
