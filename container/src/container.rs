//! A container's life: created, started, told things, removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::cgroup::{Cgroup, Limits, Stats};
use crate::child::{self, Message};
use crate::create::{Create, Stdio};
use crate::error::Error;
use crate::exec::Exec;
use crate::fork::{Started, failure, fork};
use crate::namespaces::Namespaces;
use crate::plan::Plan;
use crate::prepare;
use crate::seccomp::Filter;
use crate::spec::{Linux, NamespaceKind, Process, Resources};
use crate::sys;

/// A container whose first process waits to be started, runs, or has ended.
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: Pid,
    pub(crate) pidfd: Arc<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// To the first process, and what that is to do; none once it runs its program.
    waiting: Option<(OwnedFd, Plan)>,
    /// `CLONE_NEW*` of the namespaces that are not the parent's.
    pub(crate) namespaces: i32,
    pub(crate) seccomp: Option<Filter>,
    pub(crate) cgroup: Option<Cgroup>,
    paused: bool,
}

impl Container {
    /// Checks the configuration and makes the container, up to the point where it only has to be started. When this fails
    /// nothing is left of it.
    pub fn create(mut create: Create<'_>) -> Result<Container, Error> {
        let prepared = prepare::container(&mut create)?;
        let linux = create.spec.linux.as_ref();
        let flags = prepared.namespaces.clone_flags();
        let joined_pid = prepared
            .namespaces
            .joined(NamespaceKind::Pid)
            .map(|joined| joined.namespace.as_fd());
        let limits = &prepared.limits;
        let cgroup = create
            .cgroup
            .as_deref()
            .map(|path| Cgroup::create(path, limits))
            .transpose()?;
        let directory = cgroup.as_ref().map(Cgroup::directory);
        let started = match fork(prepared.plan, flags, directory, joined_pid) {
            Ok(started) => started,
            Err(error) => {
                let _ = cgroup.map(|group| group.remove());
                return Err(error);
            }
        };
        let Started {
            pid,
            pidfd,
            channel,
            plan,
        } = started;
        let mut container = Container {
            id: create.id.to_owned(),
            pid,
            pidfd: Arc::new(pidfd),
            terminal: None,
            waiting: None,
            namespaces: prepared.namespaces.flags(),
            seccomp: prepared.seccomp,
            cgroup,
            paused: false,
        };
        match container.await_ready(&channel, &plan, &prepared.namespaces, linux) {
            Ok(()) => {
                container.waiting = Some((channel, plan.after_the_gate()));
                Ok(container)
            }
            Err(error) => {
                // It may wait for what will not come.
                let _ = container.delete();
                Started::reap(&container.pidfd);
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

    /// Lets the first process become the program. Returns when it has, or could not: then it ends with 127, and is still to be
    /// waited for.
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

    /// Stops all of its processes; returns when they have stopped.
    pub fn pause(&mut self) -> Result<(), Error> {
        let group = self.cgroup("pause")?;
        if let Err(error) = group.freeze(true) {
            // Some stand still and some do not: all go on.
            let _ = group.freeze(false);
            return Err(error);
        }
        self.paused = true;
        Ok(())
    }

    /// Lets its processes go on.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.cgroup("resume")?.freeze(false)?;
        self.paused = false;
        Ok(())
    }

    /// Whether it was paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What it uses now.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.cgroup("measure")?.stats()
    }

    /// The numbers of all its processes, as the caller sees them, in no order.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        self.cgroup("list the processes of")?.processes()
    }

    /// How many of its processes the kernel ended because memory ran out. It can be asked until the container is deleted.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        self.cgroup.as_ref().map_or(Ok(0), Cgroup::oom_kills)
    }

    /// A file to poll for `POLLPRI`, which comes when memory runs out (and at other events of it): then read the file, and
    /// ask [`Container::oom_kills`]. None if memory is not watched.
    pub fn memory_events(&self) -> Result<Option<OwnedFd>, Error> {
        self.cgroup.as_ref().map_or(Ok(None), Cgroup::memory_events)
    }

    /// Changes its limits. Those that are not named stay.
    pub fn update(&self, resources: &Resources) -> Result<(), Error> {
        let limits = Limits::read(resources)?;
        self.cgroup("limit")?.apply(&limits)
    }

    /// Sends a signal to every process. SIGKILL reaches those too that are being forked.
    pub fn kill_all(&self, signal: i32) -> Result<(), Error> {
        let group = self.cgroup("signal all of")?;
        if signal == libc::SIGKILL {
            return group.kill();
        }
        for pid in group.processes()? {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                match sys::kill(pid, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(Error::step("send a signal to", &*self.id, error)),
                }
            }
        }
        Ok(())
    }

    /// Ends all that is left of it and removes its control group. Its first process is still to be waited for.
    pub fn delete(&mut self) -> Result<(), Error> {
        self.waiting = None;
        self.kill(libc::SIGKILL)?;
        self.cgroup.as_ref().map_or(Ok(()), Cgroup::remove)
    }

    fn cgroup(&self, step: &'static str) -> Result<&Cgroup, Error> {
        self.cgroup.as_ref().ok_or_else(|| Error::NoCgroup {
            step,
            id: self.id.clone(),
        })
    }
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
