//! A container's life: created, started, told things, removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::child::{self, Message};
use crate::create::{Create, Stdio};
use crate::error::Error;
use crate::exec::Exec;
use crate::namespaces::{self, Namespaces};
use crate::plan::Plan;
use crate::prepare::{self, Filter};
use crate::spec::{Linux, NamespaceKind, Process};
use crate::sys::{self, Forked};

/// A container whose first process waits to be started, runs, or has ended.
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: Pid,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    /// To the first process, and what that is to do; none once it runs its program.
    waiting: Option<(OwnedFd, Plan)>,
    /// `CLONE_NEW*` of the namespaces that are not the parent's.
    pub(crate) namespaces: i32,
    pub(crate) seccomp: Option<Filter>,
}

impl Container {
    /// Checks the configuration and makes the container, up to the point where it only has to be started. When this fails
    /// nothing is left of it, but for a child that has ended and wants to be waited for.
    pub fn create(mut create: Create<'_>) -> Result<Container, Error> {
        let prepared = prepare::container(&mut create)?;
        let linux = create.spec.linux.as_ref();
        let flags = prepared.namespaces.clone_flags();
        let joined_pid = prepared
            .namespaces
            .joined(NamespaceKind::Pid)
            .map(|joined| joined.namespace.as_fd());
        let Started {
            pid,
            pidfd,
            channel,
            plan,
        } = fork(prepared.plan, flags, None, joined_pid)?;
        let mut container = Container {
            id: create.id.to_owned(),
            pid,
            pidfd,
            terminal: None,
            waiting: None,
            namespaces: prepared.namespaces.flags(),
            seccomp: prepared.seccomp,
        };
        match container.await_ready(&channel, &plan, &prepared.namespaces, linux) {
            Ok(()) => {
                container.waiting = Some((channel, plan.after_the_gate()));
                Ok(container)
            }
            Err(error) => {
                // It may wait for what will not come.
                let _ = container.kill(libc::SIGKILL);
                Err(error)
            }
        }
    }

    fn await_ready(
        &mut self,
        channel: &OwnedFd,
        plan: &Plan,
        namespaces: &Namespaces,
        linux: Option<&Linux>,
    ) -> Result<(), Error> {
        if let Some(linux) = linux.filter(|_| namespaces.is_new(NamespaceKind::User)) {
            map_users(self.pid, linux)?;
            child::send_go(channel).map_err(|e| Error::step("start", &*self.id, e))?;
        }
        loop {
            match child::receive(channel).map_err(|e| Error::step("hear from", &*self.id, e))? {
                Message::Ready => return Ok(()),
                Message::Terminal(master) => self.terminal = Some(master),
                Message::Failed { operation, error } => {
                    return Err(failure(plan, operation, error));
                }
                Message::Gone => {
                    return Err(Error::Ended {
                        id: self.id.clone(),
                    });
                }
            }
        }
    }

    /// Lets the first process become the program. Returns when it has, or could not.
    pub fn start(&mut self) -> Result<(), Error> {
        let Some((channel, plan)) = self.waiting.take() else {
            return Err(Error::Started {
                id: self.id.clone(),
            });
        };
        child::send_go(&channel).map_err(|e| Error::step("start", &*self.id, e))?;
        match child::receive(&channel).map_err(|e| Error::step("hear from", &*self.id, e))? {
            Message::Failed { operation, error } => Err(failure(&plan, operation, error)),
            _ => Ok(()),
        }
    }

    /// Executes a further program in the container. See [`Exec`].
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<Exec, Error> {
        Exec::start(self, process, stdio)
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number of its first process, as the process sees it that created the container.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The first process; readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The master of its terminal, if it has one.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Sends a signal to the first process. One that has ended is no error.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        match sys::pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::step("send a signal to", &*self.id, error)),
        }
    }
}

/// A process that carries a plan out.
pub(crate) struct Started {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub channel: OwnedFd,
    /// For the errors of its operations.
    pub plan: Plan,
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

/// Writes the mappings of a new user namespace.
fn map_users(pid: Pid, linux: &Linux) -> Result<(), Error> {
    let lines = |mappings: &[crate::spec::IdMapping]| {
        let line =
            |m: &crate::spec::IdMapping| format!("{} {} {}\n", m.container_id, m.host_id, m.size);
        mappings.iter().map(line).collect::<String>()
    };
    for (file, text) in [
        ("uid_map", lines(&linux.uid_mappings)),
        ("gid_map", lines(&linux.gid_mappings)),
    ] {
        let path = format!("/proc/{}/{file}", pid.as_raw_pid());
        std::fs::write(&path, text).map_err(|e| Error::step("write", path, e))?;
    }
    Ok(())
}
