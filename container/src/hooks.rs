//! Programs that a configuration has run at points of its container's life (runtime-spec config.md#posix-platform-hooks).
//!
//! Some are run here, in the runtime's own namespaces, and some in the container's. All are told the container's state on their
//! standard input.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};

use crate::container::Container;
use crate::create::{Bundle, Stdio};
use crate::error::Error;
use crate::exec::{Exec, ExecOptions};
use crate::prepare::Tail;
use crate::spec::{self, Hook, Spec};
use crate::state::{State, Status};
use crate::sys;

/// When hooks are run, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    pub(crate) const ALL: [Point; 6] = [
        Point::Prestart,
        Point::CreateRuntime,
        Point::CreateContainer,
        Point::StartContainer,
        Point::Poststart,
        Point::Poststop,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }

    fn list(self, hooks: &spec::Hooks) -> &[Hook] {
        match self {
            Point::Prestart => &hooks.prestart,
            Point::CreateRuntime => &hooks.create_runtime,
            Point::CreateContainer => &hooks.create_container,
            Point::StartContainer => &hooks.start_container,
            Point::Poststart => &hooks.poststart,
            Point::Poststop => &hooks.poststop,
        }
    }

    /// The specification numbers the steps of a container's life, and says between which it is what.
    fn status(self) -> Status {
        match self {
            Point::Poststart => Status::Running,
            Point::Poststop => Status::Stopped,
            _ => Status::Created,
        }
    }
}

/// Those of a container that is being created, in their order.
pub(crate) const CREATING: [Point; 3] = [
    Point::Prestart,
    Point::CreateRuntime,
    Point::CreateContainer,
];

/// The hooks of a container, and what they are told.
#[derive(Debug)]
pub(crate) struct Hooks {
    lists: spec::Hooks,
    id: String,
    bundle: Bundle,
    annotations: BTreeMap<String, String>,
    /// The program's, which hooks in the container have that say nothing of theirs.
    env: Vec<String>,
}

/// Reads and checks the hooks. None: there are none.
pub(crate) fn read(id: &str, spec: &Spec, bundle: Option<&Bundle>) -> Result<Option<Hooks>, Error> {
    let Some(lists) = spec.hooks.as_ref().filter(|lists| !lists.is_empty()) else {
        return Ok(None);
    };
    let Some(bundle) = bundle else {
        let problem = "hooks are told of their bundle, and there is none here; run the programs before and after";
        return Err(Error::invalid("hooks", problem));
    };
    for point in Point::ALL {
        for (i, hook) in point.list(lists).iter().enumerate() {
            check(&field(point, i), hook)?;
        }
    }
    Ok(Some(Hooks {
        lists: lists.clone(),
        id: id.to_owned(),
        bundle: bundle.clone(),
        annotations: spec.annotations.clone(),
        env: spec
            .process
            .as_ref()
            .map_or(Vec::new(), |process| process.env.clone()),
    }))
}

fn field(point: Point, i: usize) -> String {
    format!("hooks.{}[{i}]", point.name())
}

fn check(field: &str, hook: &Hook) -> Result<(), Error> {
    if !hook.path.starts_with('/') {
        let problem = format!("{:?} is not an absolute path", hook.path);
        return Err(Error::invalid(format!("{field}.path"), problem));
    }
    if hook.timeout.is_some_and(|seconds| seconds <= 0) {
        let problem = "a time to wait is above zero";
        return Err(Error::invalid(format!("{field}.timeout"), problem));
    }
    if let Some(i) = hook.env.iter().position(|entry| !entry.contains('=')) {
        return Err(Error::invalid(
            format!("{field}.env[{i}]"),
            "it is no NAME=value",
        ));
    }
    let strings = hook.args.iter().chain(&hook.env).chain([&hook.path]);
    for text in strings {
        if text.contains('\0') {
            return Err(Error::invalid(field, "it holds a NUL"));
        }
    }
    Ok(())
}

impl Hooks {
    /// Whether a container stops in the middle of being created, for hooks to be run.
    pub fn interrupt_creation(&self) -> bool {
        CREATING
            .into_iter()
            .any(|point| !point.list(&self.lists).is_empty())
    }

    /// Runs those of a point one after the other, up to the first that fails.
    pub fn run(&self, point: Point, container: &Container) -> Result<(), Error> {
        let mut hooks = point.list(&self.lists).iter().enumerate();
        hooks.try_for_each(|(i, hook)| self.run_one(hook, &field(point, i), point, Some(container)))
    }

    /// Runs those of a point that comes too late to change anything: one that fails keeps no other from running.
    pub fn run_all(&self, point: Point, container: Option<&Container>) {
        for (i, hook) in point.list(&self.lists).iter().enumerate() {
            if let Err(error) = self.run_one(hook, &field(point, i), point, container) {
                (self.bundle.warn)(&error);
            }
        }
    }

    fn run_one(
        &self,
        hook: &Hook,
        field: &str,
        point: Point,
        container: Option<&Container>,
    ) -> Result<(), Error> {
        let failed = |problem: String| Error::Hook {
            field: field.to_owned(),
            program: hook.path.clone(),
            problem,
        };
        let state = self
            .state(point, container.map(Container::pid))
            .map_err(|e| failed(format!("cannot write its state: {e}")))?;
        let started = match (point, container) {
            (Point::CreateContainer | Point::StartContainer, Some(container)) => {
                let mut hook = hook.clone();
                if hook.env.is_empty() {
                    hook.env = match point {
                        Point::StartContainer => self.env.clone(),
                        _ => own_env(),
                    };
                }
                let cwd = (point == Point::CreateContainer).then_some(&*self.bundle.path);
                inside(&hook, container, state, cwd).map_err(|e| e.to_string())
            }
            _ => outside(hook, state, &self.bundle.path).map_err(|e| e.to_string()),
        };
        let process = started.map_err(failed)?;
        match wait(process.as_fd(), hook.timeout) {
            Ok(Some(status)) if status.exit_status() == Some(0) => Ok(()),
            Ok(Some(status)) => Err(failed(describe(&status))),
            Ok(None) => Err(failed(format!(
                "it was ended after {} seconds",
                hook.timeout.unwrap_or_default()
            ))),
            Err(error) => Err(failed(format!("cannot wait for it: {error}"))),
        }
    }

    /// The state, as a file: who does not read it blocks nobody.
    fn state(&self, point: Point, pid: Option<Pid>) -> io::Result<OwnedFd> {
        let status = point.status();
        let state = State {
            oci_version: spec::VERSION.into(),
            id: self.id.clone(),
            status,
            pid: pid
                .filter(|_| status != Status::Stopped)
                .map(Pid::as_raw_pid),
            bundle: self.bundle.path.clone(),
            annotations: self.annotations.clone(),
        };
        let mut file = File::from(memfd_create(c"state", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&state)?)?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
        Ok(file.into())
    }
}

fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("it exited with {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".into(),
    }
}

/// Our own environment, as far as it is text.
fn own_env() -> Vec<String> {
    let pairs = std::env::vars_os()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)));
    pairs.collect()
}

/// Starts a hook in our own namespaces.
fn outside(hook: &Hook, state: OwnedFd, bundle: &Path) -> io::Result<OwnedFd> {
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    // Who says nothing of it has ours.
    if !hook.env.is_empty() {
        command.env_clear();
    }
    command.stdin(state).current_dir(bundle);
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?)
}

/// Starts a hook in the container's namespaces and its control group.
fn inside(
    hook: &Hook,
    container: &Container,
    state: OwnedFd,
    cwd: Option<&Path>,
) -> Result<OwnedFd, Error> {
    let copy = |fd: BorrowedFd| {
        fd.try_clone_to_owned()
            .map_err(|e| Error::step("copy", "standard error", e))
    };
    let stdio = Stdio::Files {
        stdin: state,
        stdout: copy(io::stdout().as_fd())?,
        stderr: copy(io::stderr().as_fd())?,
    };
    let tail = Tail::of_hook(hook, container.available_capabilities()?, cwd)?;
    let options = ExecOptions::default();
    let first = (None, Vec::new());
    Exec::join(container, tail, (stdio, &options), first).map(Exec::into_pidfd)
}

/// Waits for a process, so many seconds at most; after that it is killed, and there is no status.
fn wait(process: BorrowedFd, seconds: Option<i64>) -> Result<Option<WaitIdStatus>, Errno> {
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let is_late = !ends_within(process, seconds.map(Duration::from_secs))?;
    if is_late {
        let _ = sys::pidfd_send_signal(process, libc::SIGKILL);
    }
    loop {
        match waitid(WaitId::PidFd(process), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            status => return Ok(status?.filter(|_| !is_late)),
        }
    }
}

/// Whether a process has ended, at the latest when so much time has passed.
pub(crate) fn ends_within(process: BorrowedFd, limit: Option<Duration>) -> Result<bool, Errno> {
    // A time too far away to be told is none.
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut ended, left.as_ref()) {
            Err(Errno::INTR) => {}
            polled => return polled.map(|ready| ready > 0),
        }
    }
}
