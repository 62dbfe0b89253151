//! Further programs in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::process::Pid;

use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::create::Stdio;
use crate::error::Error;
use crate::fork::{Executed, execute, send_signal};
use crate::plan::{Operation as O, Plan};
use crate::prepare::{self, Ending, Tail};
use crate::spec::{NamespaceKind, Process};

/// A program that was executed in a container that runs.
#[derive(Debug)]
pub struct Exec {
    pid: Pid,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl Exec {
    /// Executes a program in a container, as a child of the calling process: in all of the container's namespaces, in its
    /// control group, under its seccomp filter. Returns when the program runs.
    pub(crate) fn start(
        container: &Container,
        process: &Process,
        stdio: Stdio,
        preserved: u32,
    ) -> Result<Exec, Error> {
        if container.is_paused() {
            return Err(Error::Paused {
                id: container.id().to_owned(),
            });
        }
        prepare::check_terminal(process, &stdio)?;
        let available = container.available_capabilities()?;
        let tail = Tail::prepare(process, container.seccomp.clone(), available)?;

        let mut operations = Vec::with_capacity(32);
        prepare::oom_score(process, &mut operations);
        operations.extend(container.personality.map(O::Personality));
        Exec::join(container, tail, (stdio, preserved), operations)
    }

    /// Goes on in the container's namespaces after the first operations.
    pub(crate) fn join(
        container: &Container,
        tail: Tail,
        (stdio, preserved): (Stdio, u32),
        mut operations: Vec<O>,
    ) -> Result<Exec, Error> {
        if let Some(group) = &container.cgroup {
            let tasks = group.entrance()?;
            if !tasks.is_empty() {
                operations.insert(0, O::EnterGroups { tasks });
            }
        }
        let namespace = container.pidfd.clone();
        let flags = container.namespaces & !libc::CLONE_NEWPID;
        operations.push(O::Join {
            namespace,
            flags,
            name: format!("those of container {}", container.id()),
        });
        if flags & libc::CLONE_NEWUSER != 0 {
            operations.push(O::BecomeRoot);
        }
        let will_trace = tail.may_trace();
        tail.open_terminal(&stdio, false, &mut operations);
        tail.enter_directory(&mut operations);
        let ending = Ending {
            stdio,
            gate: false,
            find_program: false,
            init: false,
        };
        let (program, identity) = tail.become_program(ending, &mut operations)?;
        let plan = Plan {
            operations,
            program,
            identity,
            gate: None,
            preserved,
        };

        // A process that shares memory cannot change its clocks, and is for nobody to write to.
        let borrows = container.namespaces & NamespaceKind::Time.flag() == 0
            && !container.may_trace.load(Ordering::Relaxed);
        container.may_trace.fetch_or(will_trace, Ordering::Relaxed);
        let cgroup = container.cgroup.as_ref().and_then(Cgroup::directory);
        let pids = (container.namespaces & libc::CLONE_NEWPID != 0).then(|| container.pidfd());
        let Executed {
            pid,
            pidfd,
            terminal,
        } = execute(plan, cgroup, pids, borrows)?;
        Ok(Exec {
            pid,
            pidfd,
            terminal,
        })
    }

    /// Its number, as the process sees it that executed it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// For who only waits for it.
    pub(crate) fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// The master of its terminal, if it has one.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Sends it a signal. One that has ended is no error.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        send_signal(&self.pidfd, signal, || format!("process {}", self.pid))
    }
}
