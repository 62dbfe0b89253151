//! From a configuration to the plan of what the child does: everything is read and checked here, before anything is started.
//!
//! The order of the operations, and why it is that order, is told in docs/containers.md.

mod cgroup;
mod devices;
mod layout;
mod mounts;
mod numa;
mod options;
mod process;
mod rootfs;
mod scheduling;
mod sysctl;

use std::ffi::{CString, c_ulong};
use std::os::fd::{OwnedFd, RawFd};

use crate::cgroup::{Limits, Location, Version};
use crate::create::{Create, Stdio};
use crate::error::Error;
use crate::gate;
use crate::hooks::{self, Hooks};
use crate::namespaces::Namespaces;
use crate::plan::{Operation as O, Plan};
use crate::rootless;
use crate::seccomp::{self, Filter, Listener};
use crate::spec::{Linux, NamespaceKind, Process, Spec};

pub(crate) use cgroup::place;
pub(crate) use numa::affinity;
pub(crate) use options::names as mount_options;
pub(crate) use process::{Ending, Tail, available_capabilities};

/// A configuration that was read.
pub(crate) struct Prepared {
    pub plan: Plan,
    pub namespaces: Namespaces,
    /// The compiled filter, for programs executed later.
    pub seccomp: Option<Filter>,
    pub listener: Option<Listener>,
    pub limits: Limits,
    pub hooks: Option<Hooks>,
    pub may_trace: bool,
    /// For programs executed later.
    pub personality: Option<c_ulong>,
}

/// Reads and checks all of the configuration.
pub(crate) fn container(create: &mut Create) -> Result<Prepared, Error> {
    let spec = create.spec;
    let no_linux = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&no_linux);
    check(spec, linux)?;
    // What has no program is never started.
    let none = no_process();
    let process = spec.process.as_ref().unwrap_or(&none);
    let namespaces = Namespaces::read(linux)?;
    let stdio = std::mem::replace(&mut create.stdio, Stdio::Null);
    check_terminal(process, &stdio)?;
    let version = create
        .cgroup
        .as_ref()
        .map_or(Version::Two, Location::version);
    let limits = match &linux.resources {
        // The first process mounts its root when it is in its group already.
        Some(resources) if !resources.devices.is_empty() => {
            let mut resources = resources.clone();
            resources
                .devices
                .append(&mut rootfs::devices(&create.rootfs)?);
            Limits::read(&resources, version)?
        }
        Some(resources) => Limits::read(resources, version)?,
        None => Limits::none(version),
    };
    if create.cgroup.is_none() && !limits.is_empty() {
        let problem = "there are limits, but no control group to set them for";
        return Err(Error::invalid("linux.resources", problem));
    }

    let mut operations = Vec::with_capacity(128);
    if version == Version::One {
        operations.push(O::EnterGroups { tasks: Vec::new() });
    }
    enter_namespaces(&namespaces, linux, &mut operations)?;
    oom_score(process, &mut operations);
    if namespaces.joined(NamespaceKind::Pid).is_none() {
        // Programs can be executed in the container while its first process still waits. Only now: what is undumpable may not
        // write to its own files in /proc, unless it is root outside, too.
        operations.push(O::Undumpable);
    }
    let personality = personality(linux)?;
    operations.extend(personality.map(O::Personality));
    if let Some(policy) = &linux.memory_policy {
        operations.push(numa::memory_policy(policy)?);
    }
    operations.push(O::Umask(0));
    let mut inside = Vec::with_capacity(128);
    let layout = mounts::mount(spec, &namespaces, version, &mut inside)?;
    let hooks = hooks::read(create.id, spec, create.bundle.as_ref())?;
    let interrupted = hooks.as_ref().is_some_and(Hooks::interrupt_creation);
    // In a user namespace the kernel shows no more of /proc and /sys than can be seen already, so that new ones are mounted
    // before the old ones are left.
    let mapped = namespaces.is_new(NamespaceKind::User);
    let confined = mapped || !rootless::is_initial();
    let way = rootfs::Way {
        interrupted,
        confined,
    };
    rootfs::enter(&create.rootfs, spec, way, &mut operations)?;
    operations.append(&mut inside);
    devices::make(linux, process.terminal, confined, &layout, &mut operations)?;
    if interrupted {
        operations.push(O::AwaitHooks);
    }
    if way.is_later() {
        rootfs::leave_runtime(&mut operations);
    }
    // In a user namespace of its own it has all.
    let available = match mapped {
        true => crate::capabilities::ALL,
        false => available_capabilities()?,
    };
    if let (Some(bundle), Some(wanted)) = (&create.bundle, &process.capabilities) {
        let unavailable = crate::capabilities::unavailable(wanted, available);
        unavailable.iter().for_each(bundle.warn);
    }
    let seccomp = linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    let listener = Listener::read(create.id, spec, create.bundle.as_ref())?;
    let mut tail = Tail::prepare(process, seccomp.clone(), available)?;
    tail.open_terminal(&stdio, true, &mut operations);
    sysctl::set(spec, linux, &namespaces, &layout, &mut operations)?;
    if let Some(name) = host_name("hostname", spec.hostname.as_deref(), &namespaces)? {
        operations.push(O::Hostname(name));
    }
    if let Some(name) = host_name("domainname", spec.domainname.as_deref(), &namespaces)? {
        operations.push(O::Domainname(name));
    }
    tail.enter_directory(&mut operations);
    for (i, path) in linux.readonly_paths.iter().enumerate() {
        let place = layout.place(&format!("linux.readonlyPaths[{i}]"), path)?;
        operations.push(O::ReadOnly { place });
    }
    for (i, path) in linux.masked_paths.iter().enumerate() {
        let place = layout.place(&format!("linux.maskedPaths[{i}]"), path)?;
        operations.push(O::Mask { place });
    }
    layout.finish(&mut operations);
    rootfs::finish(spec, linux, &mut operations)?;
    let may_trace = tail.may_trace();
    tail.dies_with_parent = create.dies_with_parent;
    let gate = create.gate.as_deref().map(gate::listen).transpose()?;
    let mut preserved = std::mem::take(&mut create.preserved);
    preserved.retain(|&number| number > 2);
    preserved.sort_unstable();
    preserved.dedup();
    let ending = Ending {
        stdio,
        gate: true,
        // Whoever starts it later is not the one who asks now.
        find_program: gate.is_some() && spec.process.is_some(),
        init: create.init,
    };
    let (program, identity) = tail.become_program(ending, &mut operations)?;
    let gate = gate
        .map(|gate| out_of_the_way(gate, &preserved))
        .transpose()?;
    let plan = Plan {
        operations,
        program,
        identity,
        gate,
        preserved,
    };
    Ok(Prepared {
        plan,
        namespaces,
        seccomp,
        listener,
        limits,
        hooks,
        may_trace,
        personality,
    })
}

fn no_process() -> Process {
    Process {
        args: vec!["/".into()],
        cwd: "/".into(),
        ..Process::default()
    }
}

/// The configuration and its caller must agree about the terminal.
pub(crate) fn check_terminal(process: &Process, stdio: &Stdio) -> Result<(), Error> {
    match (process.terminal, matches!(stdio, Stdio::Terminal(_))) {
        (true, false) => Err(Error::invalid(
            "process.terminal",
            "is true, but no terminal is given",
        )),
        (false, true) => Err(Error::invalid(
            "process.terminal",
            "is false, but a terminal is given",
        )),
        _ => Ok(()),
    }
}

/// Written through the host's /proc, before that is left behind.
pub(crate) fn oom_score(process: &Process, operations: &mut Vec<O>) {
    if let Some(score) = process.oom_score_adj {
        let data = score.to_string().into_bytes();
        operations.push(O::Write {
            path: c"/proc/self/oom_score_adj".into(),
            data,
            // Only root may make a process less likely to be ended than its parent.
            may_be_refused: !rootless::is_initial(),
        });
    }
}

/// What is wrong whatever else is said.
fn check(spec: &Spec, linux: &Linux) -> Result<(), Error> {
    let version = spec.oci_version.as_str();
    if !version.starts_with("1.") {
        return Err(Error::invalid(
            "ociVersion",
            format!("{version:?} is not a version 1 of the specification"),
        ));
    }
    refuse("linux.mountLabel", linux.mount_label.as_deref(), "SELinux")?;
    if !linux.net_devices.is_empty() {
        let problem = "moving interfaces into the container is not supported";
        return Err(Error::invalid("linux.netDevices", problem));
    }
    if linux.intel_rdt.is_some() {
        return Err(Error::invalid(
            "linux.intelRdt",
            "Intel RDT is not supported",
        ));
    }
    Ok(())
}

/// What is asked for by a name that is not empty, and not to be had.
fn refuse(field: &str, name: Option<&str>, what: &str) -> Result<(), Error> {
    match name {
        None | Some("") => Ok(()),
        Some(_) => Err(Error::invalid(field, format!("{what} is not supported"))),
    }
}

/// What programs take the machine for, as the kernel numbers it.
pub(crate) fn personality(linux: &Linux) -> Result<Option<c_ulong>, Error> {
    let Some(personality) = &linux.personality else {
        return Ok(None);
    };
    let field = |member: &str| format!("linux.personality.{member}");
    if let Some(flag) = personality.flags.first() {
        let problem = format!("there is no flag {flag:?}");
        return Err(Error::invalid(field("flags"), problem));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(Some(0)),
        "LINUX32" => Ok(Some(8)),
        other => {
            let problem = format!("{other:?} is neither LINUX nor LINUX32");
            Err(Error::invalid(field("domain"), problem))
        }
    }
}

fn enter_namespaces(
    namespaces: &Namespaces,
    linux: &Linux,
    operations: &mut Vec<O>,
) -> Result<(), Error> {
    if namespaces.is_new(NamespaceKind::User) {
        operations.push(O::AwaitParent);
    }
    if namespaces.joined(NamespaceKind::Pid).is_some() {
        operations.push(O::Undumpable);
    }
    // The process namespace is the parent's to join, for its children.
    for joined in namespaces
        .joined
        .iter()
        .filter(|joined| joined.kind != NamespaceKind::Pid)
    {
        let namespace = joined.namespace.clone();
        let name = joined.path.clone();
        operations.push(O::Join {
            namespace,
            flags: joined.kind.flag(),
            name,
        });
    }
    let unshare = |kind: NamespaceKind, name, operations: &mut Vec<O>| {
        if namespaces.is_new(kind) {
            operations.push(O::Unshare {
                flags: kind.flag(),
                name,
            });
        }
    };
    // Who has become another user may not write to its own files in /proc.
    unshare(NamespaceKind::Time, "clocks", operations);
    if !linux.time_offsets.is_empty() {
        let line = |(clock, offset): (&String, &crate::spec::TimeOffset)| {
            format!("{clock} {} {}\n", offset.secs, offset.nanosecs)
        };
        let data = linux
            .time_offsets
            .iter()
            .map(line)
            .collect::<String>()
            .into_bytes();
        operations.push(O::Write {
            path: c"/proc/self/timens_offsets".into(),
            data,
            may_be_refused: false,
        });
    }
    if namespaces.is_new(NamespaceKind::User) {
        operations.push(O::BecomeRoot);
    }
    unshare(NamespaceKind::Cgroup, "the control groups", operations);
    if namespaces.is_new(NamespaceKind::Network) {
        operations.push(O::Loopback);
    }
    Ok(())
}

fn host_name(
    field: &str,
    name: Option<&str>,
    namespaces: &Namespaces,
) -> Result<Option<Vec<u8>>, Error> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    if !namespaces.has(NamespaceKind::Uts) {
        return Err(Error::invalid(
            field,
            "there is no UTS namespace, so the name would be the host's",
        ));
    }
    if name.len() > 64 || name.contains('\0') {
        return Err(Error::invalid(
            field,
            "a name has at most 64 bytes, none of them NUL",
        ));
    }
    Ok(Some(name.as_bytes().to_vec()))
}

/// An absolute path, without `.`, `..` and double slashes. `..` cannot lead out of a root, and where it stands for the parent of
/// what a link leads to nobody means it.
fn absolute(field: &str, path: &str) -> Result<String, Error> {
    if !path.starts_with('/') {
        return Err(Error::invalid(
            field,
            format!("{path:?} is not an absolute path"),
        ));
    }
    if path.len() >= libc::PATH_MAX as usize {
        return Err(Error::invalid(field, "the path is longer than 4095 bytes"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part if part.len() > 255 => {
                return Err(Error::invalid(
                    field,
                    "a name in the path is longer than 255 bytes",
                ));
            }
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

fn c_string(field: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::invalid(field, "it holds a NUL"))
}

/// A descriptor that is not one of those the child gives a new meaning to: the standard ones, those that the program keeps, and
/// two more.
pub(crate) fn out_of_the_way(fd: OwnedFd, preserved: &[RawFd]) -> Result<OwnedFd, Error> {
    use std::os::fd::AsRawFd;
    let first = preserved.last().map_or(5, |last| last.saturating_add(3));
    if fd.as_raw_fd() >= first {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, first).map_err(|e| Error::step("copy", "a descriptor", e))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::create::{Bundle, Rootfs};

    fn prepare(spec: &Spec) -> Result<Prepared, Error> {
        container(&mut Create {
            id: "test",
            spec,
            rootfs: Rootfs::Directory("/".into()),
            cgroup: None,
            stdio: Stdio::Null,
            init: false,
            borrows: false,
            dies_with_parent: false,
            gate: None,
            spare: None,
            preserved: Vec::new(),
            bundle: Some(Bundle {
                path: "/".into(),
                warn: |_| {},
            }),
        })
    }

    /// A small configuration that is valid, as JSON.
    fn valid() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 1, "gid": 2},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
                "capabilities": {"bounding": ["CAP_KILL"]},
                "scheduler": {"policy": "SCHED_FIFO", "nice": 0, "priority": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"],
                    "runtime": 0, "deadline": 0, "period": 0},
                "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1}},
            "hooks": {"createContainer": [{"path": "/x", "args": ["x"], "env": ["A=b"], "timeout": 1}]},
            "hostname": "a",
            "mounts": [
                {"destination": "/proc", "type": "proc"},
                {"destination": "/dev", "type": "tmpfs", "options": ["mode=755"]},
                {"destination": "/x", "source": "/etc", "options": ["rbind", "ro"]}],
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "pid"}],
                "devices": [{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229}],
                "sysctl": {"kernel.shmmni": "1"},
                "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
                "personality": {"domain": "LINUX32"},
                "rootfsPropagation": "rslave"}
        })
    }

    #[test]
    fn valid_configuration_when_read_then_prepared() {
        let spec: Spec = serde_json::from_value(valid()).expect("valid");
        prepare(&spec).expect("valid");
        let again: Spec =
            serde_json::from_str(&serde_json::to_string(&spec).expect("JSON")).expect("valid");
        assert_eq!(again, spec);
    }

    /// Values that somebody might try in place of the right one.
    fn hostile() -> impl Strategy<Value = serde_json::Value> {
        let texts = proptest::sample::select(vec![
            "",
            "/",
            "//",
            ".",
            "/..",
            "/../../etc",
            "relative",
            "a\0b",
            "/a\0b",
            "-1",
            "=",
            "=x",
            "/proc",
            "/proc/self/fd/3",
            "/dev",
            "/dev/null",
            "bind",
            "rbind",
            "remount",
            "ro",
            "idmap",
            "shared",
            "proc",
            "CAP_",
            "mount",
            "user",
            "\u{202e}",
        ]);
        let long = (1..3usize).prop_map(|n| "x/".repeat(n * 2500));
        prop_oneof![
            4 => texts.prop_map(|text| serde_json::json!(text)),
            1 => long.prop_map(|text| serde_json::json!(text)),
            1 => any::<i64>().prop_map(|n| serde_json::json!(n)),
            1 => any::<u64>().prop_map(|n| serde_json::json!(n)),
            1 => Just(serde_json::json!(null)),
            1 => Just(serde_json::json!([])),
            1 => Just(serde_json::json!({})),
            1 => any::<bool>().prop_map(|b| serde_json::json!(b)),
        ]
    }

    /// All places in a document where there is a single value.
    fn leaves(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) => {
                members
                    .iter()
                    .for_each(|(name, member)| leaves(member, &format!("{path}/{name}"), found));
            }
            serde_json::Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(i, item)| leaves(item, &format!("{path}/{i}"), found));
            }
            _ => found.push(path.to_owned()),
        }
    }

    proptest! {
        #[test]
        fn configuration_when_hostile_then_an_error_that_names_something_and_no_panic(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), hostile()), 1..4),
        ) {
            let mut document = valid();
            let mut places = Vec::new();
            leaves(&document, "", &mut places);
            for (place, value) in changes {
                let place: &String = place.get(&places[..]);
                let place = document.pointer_mut(place).expect("a leaf");
                *place = value;
            }
            let Ok(spec) = serde_json::from_value::<Spec>(document) else { return Ok(()) };
            match prepare(&spec) {
                Ok(prepared) => for i in 0..prepared.plan.operations.len() {
                    prop_assert!(!prepared.plan.failure(i, rustix::io::Errno::PERM).to_string().is_empty());
                },
                Err(Error::Invalid { field, problem }) => prop_assert!(!field.is_empty() && !problem.is_empty()),
                Err(Error::Step { object, .. }) => prop_assert!(!object.is_empty()),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
