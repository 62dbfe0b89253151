//! Starting a process that carries a plan out, and what its failures mean.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::child;
use crate::error::Error;
use crate::namespaces;
use crate::plan::Plan;
use crate::prepare;
use crate::sys::{self, Forked};

/// A process that carries a plan out.
pub(crate) struct Started {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub channel: OwnedFd,
    /// For the errors of its operations.
    pub plan: Plan,
}

impl Started {
    /// Collects a process that failed, so that its number is free and no namespace waits for it. Whoever else collects
    /// children may have been faster.
    pub fn reap(pidfd: &OwnedFd) {
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// Starts a process that carries a plan out, in a process namespace that exists if one is given.
pub(crate) fn fork(
    plan: Plan,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    pids: Option<BorrowedFd<'_>>,
) -> Result<Started, Error> {
    let failed = |e: Errno| Error::step("start", "a process", e);
    let kind = SocketType::SEQPACKET;
    let (channel, theirs) =
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
    let theirs = prepare::out_of_the_way(theirs)?;
    let mut plan = plan;
    let mut clone = || {
        let forked = sys::clone3(flags, cgroup)?;
        match forked {
            Forked::Child => child::run(&mut plan, &theirs),
            Forked::Parent(pid, pidfd) => Ok((pid, pidfd)),
        }
    };
    let forked = match pids {
        None => clone(),
        Some(pids) => {
            namespaces::fork_in(pids, libc::CLONE_NEWPID, clone).and_then(|forked| forked)
        }
    };
    let (pid, pidfd) = forked.map_err(failed)?;
    Ok(Started {
        pid,
        pidfd,
        channel,
        plan,
    })
}

/// What a failed operation means. Executing the program is the last operation of every plan.
pub(crate) fn failure(plan: &Plan, operation: usize, error: Errno) -> Error {
    if operation + 1 == plan.operations.len() {
        let program = plan.program.name.clone();
        return match error {
            Errno::NOENT | Errno::NOTDIR => Error::NotFound { program },
            error => Error::NotExecutable {
                program,
                source: error.into(),
            },
        };
    }
    let (step, object) = plan.describe(operation);
    Error::step(step, object, error)
}
