//! Further programs in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
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

/// What else there is to say of a program that is executed.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecOptions<'a> {
    /// Descriptors of this process that are the program's, too: by their numbers from 3 on, in their order, each once.
    pub preserved: &'a [RawFd],
    /// A control group below the container's own that the program is in; on hosts of cgroup v1 it is in those that are there.
    pub group: Option<&'a Path>,
    /// Also in a container that stands still: the call returns when that goes on.
    pub even_paused: bool,
}

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
        options: &ExecOptions<'_>,
    ) -> Result<Exec, Error> {
        if container.is_paused() && !options.even_paused {
            return Err(Error::Paused {
                id: container.id().to_owned(),
            });
        }
        prepare::check_terminal(process, &stdio)?;
        let available = container.available_capabilities()?;
        let tail = Tail::prepare(process, container.seccomp.clone(), available)?;

        let [first, last] = prepare::affinity(process)?;
        let mut operations = Vec::with_capacity(32);
        operations.extend(last);
        prepare::oom_score(process, &mut operations);
        operations.extend(container.personality.map(O::Personality));
        Exec::join(container, tail, (stdio, options), (first, operations))
    }

    /// Goes on in the container's namespaces after the first operations: one outside of its control group, and others.
    pub(crate) fn join(
        container: &Container,
        tail: Tail,
        (stdio, options): (Stdio, &ExecOptions<'_>),
        (outside, mut operations): (Option<O>, Vec<O>),
    ) -> Result<Exec, Error> {
        let below = match (&container.cgroup, options.group) {
            (Some(group), Some(path)) => Some(group.below(path)?),
            (None, Some(_)) => {
                return Err(Error::NoCgroup {
                    step: "execute below the group of",
                    id: container.id().to_owned(),
                });
            }
            (_, None) => None,
        };
        let group = below.as_ref().or(container.cgroup.as_ref());
        if let Some(group) = group {
            let tasks = group.entrance()?;
            if !tasks.is_empty() {
                operations.insert(0, O::EnterGroups { tasks });
            }
        }
        if let Some(outside) = outside {
            operations.insert(0, outside);
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
            preserved: options.preserved.to_vec(),
        };

        // A process that shares memory cannot change its clocks, and is for nobody to write to.
        let borrows = container.namespaces & NamespaceKind::Time.flag() == 0
            // This process stands still while its memory is borrowed, and could not tell who listens.
            && container.listener.is_none()
            && !container.may_trace.load(Ordering::Relaxed);
        container.may_trace.fetch_or(will_trace, Ordering::Relaxed);
        let cgroup = group.and_then(Cgroup::directory);
        let pids = (container.namespaces & libc::CLONE_NEWPID != 0).then(|| container.pidfd());
        let Executed {
            pid,
            pidfd,
            terminal,
        } = execute(plan, cgroup, pids, borrows, |listener, pid| {
            container.tell_listener(listener, pid)
        })?;
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
