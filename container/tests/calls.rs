//! How many system calls it takes from a configuration to the program: each costs a guest on slow hardware more than all
//! else. Needs strace and root.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::process::Command;

use bulkhead_container::cgroup::Version;
use bulkhead_container::spec::Resources;
use bulkhead_container::{Container, Create, Stdio, defaults, seccomp};
use common::*;

/// Set in the process that is traced.
const TRACED: &str = "BULKHEAD_TRACED";
const BEGIN: &str = "/bulkhead-begin";
const END: &str = "/bulkhead-end";

/// More than this was not needed when the bounds were set; whoever adds a call lifts them, and says why.
const MOST_TO_START: usize = 172;
const MOST_TO_EXECUTE: usize = 60;

/// Where control groups are of version 1: each of six directories is made, entered and shown, and each rule about devices
/// is written.
const MORE_TO_START: usize = 63;
const MORE_TO_EXECUTE: usize = 6;

fn most(of_version_2: usize, more: usize) -> usize {
    match Group::new("version").location().version() {
        Version::One => of_version_2 + more,
        Version::Two => of_version_2,
    }
}

#[test]
fn container_when_created_and_started_then_few_calls() {
    if std::env::var_os(TRACED).is_some() {
        return create_and_start(false);
    }
    let calls = count(
        "container_when_created_and_started_then_few_calls",
        "unshare(CLONE_NEWCGROUP",
    );
    println!("{calls} from create to the program");
    assert!(
        calls.total() <= most(MOST_TO_START, MORE_TO_START),
        "{calls}"
    );
}

#[test]
fn program_when_executed_in_a_container_then_few_calls() {
    if std::env::var_os(TRACED).is_some() {
        return create_and_start(true);
    }
    let calls = count(
        "program_when_executed_in_a_container_then_few_calls",
        "setns(",
    );
    println!("{calls} from exec to the program");
    assert!(
        calls.total() <= most(MOST_TO_EXECUTE, MORE_TO_EXECUTE),
        "{calls}"
    );
}

/// How many calls parent and child made.
struct Calls {
    parent: Vec<String>,
    child: Vec<String>,
}

impl Calls {
    fn total(&self) -> usize {
        self.parent.len() + self.child.len()
    }
}

impl std::fmt::Display for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (parent, child) = (self.parent.len(), self.child.len());
        write!(
            f,
            "{} system calls, {parent} of the parent and {child} of the child,",
            self.total()
        )
    }
}

/// Traces a test of this program; the child is the first other process that makes a certain call after the first mark.
fn count(test: &str, child: &str) -> Calls {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-s", "64", "-o"])
        .arg(trace.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(TRACED, "1")
        .status()
        .expect("strace; run scripts/setup");
    assert!(status.success());
    let trace = fs::read_to_string(trace.path()).unwrap();
    let calls = sort(&trace, child);
    if std::env::var_os("BULKHEAD_SHOW_CALLS").is_some() {
        println!("{}\n\n{}", calls.parent.join("\n"), calls.child.join("\n"));
    }
    calls
}

/// As Docker would: an overlay, its default filesystems, capabilities, filter, hidden paths and devices, and pipes.
fn create_and_start(execute: bool) {
    let root = rootfs();
    let group = Group::new("calls");
    let mut spec = spec("");
    spec.mounts = defaults::mounts();
    let process = spec.process.as_mut().unwrap();
    let program = if execute { "/bin/cat" } else { "/bin/true" };
    process.args = vec![program.into()];
    let capabilities = defaults::capabilities();
    let linux = spec.linux.as_mut().unwrap();
    linux.seccomp = Some(seccomp::docker_default().filter(&capabilities.bounding));
    linux.masked_paths = defaults::masked_paths();
    linux.readonly_paths = defaults::readonly_paths();
    linux.resources = Some(Resources {
        devices: defaults::device_rules(),
        ..Resources::default()
    });
    process.capabilities = Some(capabilities);

    let mark = |path| rustix::fs::access(path, rustix::fs::Access::EXISTS).unwrap_err();
    let rootfs = overlay(root.path());
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let cgroup = Some(group.location());
    let create = Create {
        id: "count",
        spec: &spec,
        rootfs,
        cgroup,
        stdio,
        init: false,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    };
    if !execute {
        mark(BEGIN);
    }
    let mut container = Container::create(create).unwrap();
    container.start().unwrap();
    if execute {
        let mut process = spec.process.clone().unwrap();
        process.args = vec!["/bin/true".into()];
        // The first prepares what the others find.
        for begin in ["/", BEGIN] {
            let (stdio, _pipes) = Stdio::pipes().unwrap();
            if begin == BEGIN {
                mark(begin);
            }
            let exec = container.exec(&process, stdio).unwrap();
            if begin == BEGIN {
                mark(END);
            }
            assert_eq!(wait(exec.pid()).code, 0);
        }
    } else {
        mark(END);
    }
    drop(pipes);
    assert_eq!(wait(container.pid()).code, 0);
    container.delete().unwrap();
}

/// The parent's calls between the marks, and the child's up to the program.
fn sort(trace: &str, child: &str) -> Calls {
    let begin = trace.lines().position(|line| line.contains(BEGIN)).unwrap();
    let process_of = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    let thread = process_of(trace.lines().nth(begin).unwrap());
    let calls_of = |process: &str| {
        let prefix = format!("{process} ");
        let lines = trace
            .lines()
            .filter_map(move |line| Some(line.strip_prefix(&prefix)?.trim_start()));
        // A call that others interrupted has a second line, and signals are none.
        let first = lines.filter(|line| !line.starts_with("<...") && !line.starts_with(['-', '+']));
        first.map(str::to_owned).collect::<Vec<_>>()
    };
    let parent = calls_of(&thread);
    let first = parent.iter().position(|call| call.contains(BEGIN)).unwrap() + 1;
    let last = parent.iter().position(|call| call.contains(END)).unwrap();
    let is_child = |line: &&str| line.contains(child) && process_of(line) != thread;
    let child = calls_of(&process_of(
        trace.lines().skip(begin).find(is_child).unwrap(),
    ));
    let program = child
        .iter()
        .position(|call| call.starts_with("execve("))
        .unwrap();
    Calls {
        parent: parent[first..last].to_vec(),
        child: child[..=program].to_vec(),
    }
}
