//! How many system calls it takes from a configuration to the program: each costs a guest on slow hardware more than all
//! else. Needs strace and root.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::process::Command;

use bulkhead_container::spec::Resources;
use bulkhead_container::{Container, Create, Stdio, defaults, seccomp};
use common::*;

/// Set in the process that is traced.
const TRACED: &str = "BULKHEAD_TRACED";
const BEGIN: &str = "/bulkhead-begin";
const END: &str = "/bulkhead-end";

/// More than this was not needed when the bound was set; whoever adds a call lifts it, and says why.
const MOST: usize = 175;

#[test]
fn container_when_created_and_started_then_few_calls() {
    if std::env::var_os(TRACED).is_some() {
        return create_and_start();
    }
    let trace = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-s", "64", "-o"])
        .arg(trace.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "container_when_created_and_started_then_few_calls",
        ])
        .env(TRACED, "1")
        .status()
        .expect("strace; run scripts/setup");
    assert!(status.success());
    let trace = fs::read_to_string(trace.path()).unwrap();
    let (parent, child) = count(&trace);
    println!(
        "{} system calls from create to the program: {} of the parent, {} of the child",
        parent.len() + child.len(),
        parent.len(),
        child.len()
    );
    if std::env::var_os("BULKHEAD_SHOW_CALLS").is_some() {
        println!("{}\n\n{}", parent.join("\n"), child.join("\n"));
    }
    assert!(
        parent.len() + child.len() <= MOST,
        "{} and {}",
        parent.len(),
        child.len()
    );
}

/// As Docker would: an overlay, its default filesystems, capabilities, filter, hidden paths and devices, and pipes.
fn create_and_start() {
    let root = rootfs();
    let group = Group::new("calls");
    let mut spec = spec("");
    spec.mounts = defaults::mounts();
    let process = spec.process.as_mut().unwrap();
    process.args = vec!["/bin/true".into()];
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
    let (stdio, _pipes) = Stdio::pipes().unwrap();
    let cgroup = Some(group.path().to_owned());
    let create = Create {
        id: "count",
        spec: &spec,
        rootfs,
        cgroup,
        stdio,
        init: false,
    };
    mark(BEGIN);
    let mut container = Container::create(create).unwrap();
    container.start().unwrap();
    mark(END);
    assert_eq!(wait(container.pid()).code, 0);
    container.delete().unwrap();
}

/// The parent's calls between the marks, and the child's up to the program.
fn count(trace: &str) -> (Vec<&str>, Vec<&str>) {
    let begin = trace.lines().find(|line| line.contains(BEGIN)).unwrap();
    let thread = begin.split_whitespace().next().unwrap();
    let calls_of = |process: &str| {
        let prefix = format!("{process} ");
        let lines = trace
            .lines()
            .filter_map(move |line| Some(line.strip_prefix(&prefix)?.trim_start()));
        // A call that others interrupted has a second line, and signals are none.
        lines
            .filter(|line| !line.starts_with("<...") && !line.starts_with(['-', '+']))
            .collect::<Vec<_>>()
    };
    let parent = calls_of(thread);
    let first = parent.iter().position(|call| call.contains(BEGIN)).unwrap() + 1;
    let last = parent.iter().position(|call| call.contains(END)).unwrap();
    let parent = parent[first..last].to_vec();
    let channel = trace
        .lines()
        .position(|line| line.contains("clone3("))
        .unwrap();
    let child = trace.lines().skip(channel).find_map(|line| {
        let (process, _) = line.split_once(' ')?;
        (process != thread && line.contains("exec") || line.contains("unshare(CLONE_NEWCGROUP"))
            .then_some(process)
    });
    let child = calls_of(child.unwrap());
    let program = child
        .iter()
        .position(|call| call.starts_with("execve("))
        .unwrap();
    (parent, child[..=program].to_vec())
}
