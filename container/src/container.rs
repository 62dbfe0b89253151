//! A container's life: created, started, told things, removed.

use std::ffi::c_ulong;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::cgroup::{Cgroup, Limits, MemoryEvents, Stats};
use crate::child::{self, Message};
use crate::create::{Create, Stdio};
use crate::error::Error;
use crate::exec::{Exec, ExecOptions};
use crate::fork::{Carried, Started, Task, fork, send_signal};
use crate::gate;
use crate::hooks::{self, Hooks, Point};
use crate::namespaces::{self, Namespaces};
use crate::open::{self, Record};
use crate::plan::Remaining;
use crate::prepare;
use crate::rootless;
use crate::seccomp::{self, Filter, Listener};
use crate::spec::{Linux, NamespaceKind, Process, Resources, Spec};
use crate::sys::{self, Lent};

/// How long a first process that was killed is given to end: it may sit in a call that cannot be interrupted.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container whose first process waits to be started, runs, or has ended.
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: Pid,
    pub(crate) pidfd: Arc<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// The way to the first process, and what that is to do; none once it runs its program.
    waiting: Option<(Gate, Remaining)>,
    /// What it borrows until then.
    lent: Option<Lent<Task>>,
    has_program: bool,
    /// From when the first of them may run until the last of them have.
    hooks: Option<Hooks>,
    /// `CLONE_NEW*` of the namespaces that are not the parent's.
    pub(crate) namespaces: i32,
    pub(crate) seccomp: Option<Filter>,
    /// Who decides where that asks.
    pub(crate) listener: Option<Listener>,
    pub(crate) personality: Option<c_ulong>,
    /// Whether a process of it may look into all others, those that are not its own yet among them.
    pub(crate) may_trace: AtomicBool,
    pub(crate) cgroup: Option<Cgroup>,
    /// Keeps what is mounted in it mounted when its processes are gone.
    mounts: Option<OwnedFd>,
    paused: bool,
}

/// How the first process is told to start.
#[derive(Debug)]
enum Gate {
    /// It waits for this process.
    Channel(OwnedFd),
    /// It waits for whoever calls there.
    Socket(PathBuf),
}

impl Container {
    /// Checks the configuration and makes the container, up to the point where it only has to be started. When this fails
    /// nothing is left of it.
    pub fn create(mut create: Create<'_>) -> Result<Container, Error> {
        let mut prepared = prepare::container(&mut create)?;
        let spare = create.spare.take();
        let (group, given) = spare.map_or((None, None), |spare| spare.take(&create, &mut prepared));
        let linux = create.spec.linux.as_ref();
        let flags = prepared.namespaces.clone_flags();
        let joined_pid = prepared
            .namespaces
            .joined(NamespaceKind::Pid)
            .map(|joined| joined.namespace.as_fd());
        let limits = &prepared.limits;
        let cgroup = match (group, &create.cgroup) {
            (Some(group), _) => {
                // With the process in it, if there is one.
                group.apply(limits).inspect_err(|_| drop(group.remove()))?;
                Some(group)
            }
            (None, Some(location)) => Some(Cgroup::create(location, limits)?),
            (None, None) => None,
        };
        let directory = cgroup.as_ref().and_then(Cgroup::directory);
        let placed = cgroup
            .as_ref()
            .map_or(Ok(()), |group| prepare::place(&mut prepared.plan, group));
        let borrows = create.borrows && can_borrow(&create, &prepared.namespaces);
        let forked = placed.and_then(|()| match given {
            Some(given) => given.go_on(prepared.plan),
            None => fork(prepared.plan, flags, directory, joined_pid, borrows),
        });
        let started = match forked {
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
            remaining,
            plan,
        } = started;
        let mut plan = Some(plan);
        let gate = create.gate.take();
        let mut container = Container {
            id: create.id.to_owned(),
            pid,
            pidfd: Arc::new(pidfd),
            terminal: None,
            waiting: None,
            has_program: create.spec.process.is_some(),
            hooks: None,
            namespaces: prepared.namespaces.flags(),
            seccomp: prepared.seccomp,
            listener: prepared.listener,
            personality: prepared.personality,
            may_trace: AtomicBool::new(prepared.may_trace),
            cgroup,
            mounts: None,
            lent: None,
            paused: false,
        };
        let mut hooks = prepared.hooks;
        let ready = container
            .map_users(&channel, &prepared.namespaces, linux)
            .and_then(|()| container.await_ready(&channel, &mut plan, &mut hooks));
        match ready {
            Ok(()) => {
                container.hooks = container.hooks.take().or(hooks);
                let gate = gate.map_or(Gate::Channel(channel), Gate::Socket);
                container.waiting = Some((gate, remaining));
                if let Some(Carried::Lent(lent)) = plan {
                    container.lent = Some(lent);
                }
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

    /// One that another process has made: its name and configuration, its first process, and its control group and hooks.
    pub(crate) fn opened(
        record: &Record,
        (id, spec): (&str, &Spec),
        (pid, pidfd): (Pid, OwnedFd),
        (cgroup, hooks, listener): (Option<Cgroup>, Option<Hooks>, Option<Listener>),
    ) -> Result<Container, Error> {
        let linux = spec.linux.as_ref();
        let filter = linux.and_then(|linux| linux.seccomp.as_ref());
        let paused = cgroup.as_ref().map(Cgroup::is_frozen).transpose()?;
        let waiting = record.gate.clone().map(Gate::Socket);
        Ok(Container {
            id: id.to_owned(),
            pid,
            pidfd: Arc::new(pidfd),
            terminal: None,
            waiting: waiting.zip(record.remaining.clone()),
            has_program: spec.process.is_some(),
            hooks,
            namespaces: linux.map_or(0, namespaces::flags),
            seccomp: filter.map(seccomp::compile).transpose()?,
            listener,
            personality: linux.map_or(Ok(None), prepare::personality)?,
            // Others may have executed programs that may.
            may_trace: AtomicBool::new(true),
            cgroup,
            mounts: None,
            lent: None,
            paused: paused.unwrap_or(false),
        })
    }

    /// What whoever starts it must know, if that need not be this process.
    pub(crate) fn gate(&self) -> (Option<PathBuf>, Option<Remaining>) {
        match &self.waiting {
            Some((Gate::Socket(path), remaining)) => (Some(path.clone()), Some(remaining.clone())),
            _ => (None, None),
        }
    }

    fn map_users(
        &self,
        channel: &OwnedFd,
        namespaces: &Namespaces,
        linux: Option<&Linux>,
    ) -> Result<(), Error> {
        match linux.filter(|_| namespaces.is_new(NamespaceKind::User)) {
            Some(linux) => {
                map_users(self.pid, linux)?;
                self.go_on(channel)
            }
            None => Ok(()),
        }
    }

    fn go_on(&self, channel: &OwnedFd) -> Result<(), Error> {
        child::send_go(channel).map_err(|e| Error::step("start", &*self.id, e))
    }

    fn await_ready(
        &mut self,
        channel: &OwnedFd,
        plan: &mut Option<Carried>,
        hooks: &mut Option<Hooks>,
    ) -> Result<(), Error> {
        loop {
            match child::receive(channel).map_err(|e| Error::step("hear from", &*self.id, e))? {
                Message::Ready => return Ok(()),
                Message::Keeps(_) => {}
                Message::Terminal(master) => self.terminal = Some(master),
                Message::Listener(descriptor) => self.tell_listener(&descriptor, self.pid)?,
                Message::Hooks => {
                    self.hooks = hooks.take();
                    for point in hooks::CREATING {
                        self.run_hooks(point)?;
                    }
                    self.go_on(channel)?;
                }
                Message::Failed { operation, error } => {
                    return Err(match plan.take() {
                        Some(plan) => plan.failure(operation, error),
                        None => Error::step("create", &*self.id, error),
                    });
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
    /// waited for. When a hook fails, the container is deleted.
    pub fn start(&mut self) -> Result<(), Error> {
        if !self.has_program {
            return Err(Error::NoProgram {
                id: self.id.clone(),
            });
        }
        if self.waiting.is_some() {
            self.run_hooks(Point::StartContainer)
                .inspect_err(|_| drop(self.delete()))?;
        }
        let started = || Error::Started {
            id: self.id.clone(),
        };
        let (gate, remaining) = self.waiting.take().ok_or_else(started)?;
        let channel = match gate {
            Gate::Channel(channel) => channel,
            Gate::Socket(path) => match gate::call(&path) {
                Err(Errno::CONNREFUSED | Errno::NOENT) => return Err(started()),
                called => called.map_err(|e| Error::step("call", &*self.id, e))?,
            },
        };
        self.go_on(&channel)?;
        let said = child::receive(&channel).map_err(|e| Error::step("hear from", &*self.id, e))?;
        self.lent = None;
        match said {
            Message::Failed { operation, error } => Err(remaining.failure(operation, error)),
            _ => self
                .run_hooks(Point::Poststart)
                .inspect_err(|_| drop(self.delete())),
        }
    }

    /// Gives who decides about system calls the descriptor of a process.
    pub(crate) fn tell_listener(&self, descriptor: &OwnedFd, pid: Pid) -> Result<(), Error> {
        let listener = self.listener.as_ref();
        listener.map_or(Ok(()), |listener| listener.tell(descriptor, pid, self.pid))
    }

    fn run_hooks(&self, point: Point) -> Result<(), Error> {
        match &self.hooks {
            Some(hooks) => hooks.run(point, self),
            None => Ok(()),
        }
    }

    /// The capabilities that a process of it can be given.
    pub(crate) fn available_capabilities(&self) -> Result<u64, Error> {
        match self.namespaces & libc::CLONE_NEWUSER {
            0 => prepare::available_capabilities(),
            _ => Ok(crate::capabilities::ALL),
        }
    }

    /// Executes a further program in the container. See [`Exec`].
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<Exec, Error> {
        Exec::start(self, process, stdio, &ExecOptions::default())
    }

    /// Likewise, with more to say of it.
    pub fn exec_with(
        &self,
        process: &Process,
        stdio: Stdio,
        options: &ExecOptions<'_>,
    ) -> Result<Exec, Error> {
        Exec::start(self, process, stdio, options)
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

    /// From now on what is mounted in it stays so until it is deleted: who is told of its program's end does not wait for
    /// the kernel to forget all that the program has read. A kernel before 6.11 cannot be asked for that.
    pub fn hold_mounts(&mut self) {
        self.mounts = sys::mount_namespace_of(self.pidfd.as_fd()).ok();
    }

    /// Sends a signal to the first process. One that has ended is no error.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        send_signal(&self.pidfd, signal, || self.id.clone())
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

    /// Its control group.
    pub fn control_group(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Whether it was paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What it uses now.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.cgroup("measure")?.stats()
    }

    /// The numbers of all its processes, as the caller sees them, in no order. Without a control group they are those of its
    /// process namespace, if it has one of its own.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        let own = self.namespaces & libc::CLONE_NEWPID != 0;
        match &self.cgroup {
            Some(group) => group.processes(),
            None if own => namespaces::processes_beside(self.pid),
            None => self.cgroup("list the processes of")?.processes(),
        }
    }

    /// How many of its processes the kernel ended because memory ran out. It can be asked until the container is deleted.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        self.cgroup.as_ref().map_or(Ok(0), Cgroup::oom_kills)
    }

    /// What tells when memory runs out. None if memory is not watched.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, Error> {
        self.cgroup.as_ref().map_or(Ok(None), Cgroup::memory_events)
    }

    /// Changes its limits. Those that are not named stay.
    pub fn update(&self, resources: &Resources) -> Result<(), Error> {
        let group = self.cgroup("limit")?;
        let limits = Limits::read(resources, group.version())?;
        group.apply(&limits)
    }

    /// Sends a signal to every process. SIGKILL reaches those too that are being forked.
    pub fn kill_all(&self, signal: i32) -> Result<(), Error> {
        open::signal_all(self.cgroup("signal all of")?, signal)
    }

    /// Ends all that is left of it and removes its control group. Its first process is still to be waited for. The hooks for
    /// this are run once.
    pub fn delete(&mut self) -> Result<(), Error> {
        self.waiting = None;
        self.kill(libc::SIGKILL)?;
        self.cgroup.as_ref().map_or(Ok(()), Cgroup::remove)?;
        self.lent = None;
        self.mounts = None;
        if let Some(hooks) = self.hooks.take() {
            let ended = hooks::ends_within(self.pidfd.as_fd(), Some(PATIENCE));
            ended.map_err(|e| Error::step("wait for", &*self.id, e))?;
            hooks.run_all(Point::Poststop, None);
        }
        Ok(())
    }

    fn cgroup(&self, step: &'static str) -> Result<&Cgroup, Error> {
        self.cgroup.as_ref().ok_or_else(|| Error::NoCgroup {
            step,
            id: self.id.clone(),
        })
    }
}

/// Whether the first process can share its parent's memory: not for longer than it takes to become the program, as the reaper
/// would; not where the kernel wants memory of its own for it, or has its place in the order of who is killed when memory runs
/// out be that of all who share theirs; and not where others could be before it who look into it.
pub(crate) fn can_borrow(create: &Create<'_>, namespaces: &Namespaces) -> bool {
    let process = create.spec.process.as_ref();
    let apart = NamespaceKind::User.flag() | NamespaceKind::Time.flag();
    !create.init
        && create.gate.is_none()
        && namespaces.flags() & apart == 0
        && namespaces.is_new(NamespaceKind::Pid)
        && process.is_none_or(|process| process.oom_score_adj.is_none())
}

/// Writes the mappings of a new user namespace.
fn map_users(pid: Pid, linux: &Linux) -> Result<(), Error> {
    for (file, text) in [
        ("uid_map", rootless::lines(&linux.uid_mappings)),
        ("gid_map", rootless::lines(&linux.gid_mappings)),
    ] {
        let path = format!("/proc/{}/{file}", pid.as_raw_pid());
        std::fs::write(&path, text).map_err(|e| Error::step("write", path, e))?;
    }
    Ok(())
}
