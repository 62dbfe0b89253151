//! What a control group does for a container, besides limits (those are in `limits.rs`): on version 1, 2 or both, as this
//! machine has them.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use bulkhead_container::cgroup::Cgroup;
use bulkhead_container::spec::{DeviceKind, DeviceRule, Resources, Spec};
use bulkhead_container::{Container, Create, Error, Pipes, Rootfs, Stdio};
use common::*;

fn create_in(group: &Group, spec: &Spec, rootfs: Rootfs) -> Result<(Container, Pipes), Error> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let cgroup = Some(group.location());
    let create = Create {
        id: "test",
        spec,
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
    Ok((Container::create(create)?, pipes))
}

#[test]
fn container_when_in_a_group_then_all_its_processes_are() {
    let (root, group) = (rootfs(), Group::new("procs"));
    let (mut container, mut pipes) = create_in(
        &group,
        &spec("sleep 1000 & cat /proc/self/cgroup; echo; cat"),
        overlay(root.path()),
    )
    .unwrap();
    container.start().unwrap();
    // In each hierarchy where it has a group, that is the topmost to it.
    let mut lines = Vec::new();
    while let Some(line) = Some(read_line(&mut pipes)).filter(|line| !line.is_empty()) {
        lines.push(line);
    }
    let made = container.control_group().unwrap().location();
    for controller in group.counting() {
        assert!(made.directory_of(controller).unwrap().exists());
        let own = match controller {
            "" => "0::/".to_owned(),
            name => format!("{name}:/"),
        };
        assert!(
            lines.iter().any(|line| line.ends_with(&own)),
            "{own} of {lines:?}"
        );
    }
    let exec = container
        .exec(&spec("sleep 1000").process.unwrap(), Stdio::Null)
        .unwrap();
    wait_for(|| container.processes().unwrap().len() == 3);
    let processes = container.processes().unwrap();
    assert!(processes.contains(&(exec.pid().as_raw_pid() as u32)));
    assert!(container.stats().unwrap().cpu.usage_us > 0);
    container.delete().unwrap();
    assert!(!group.exists());
    assert_eq!(wait(exec.pid()).signal, Some(9));
    finish(container.pid(), pipes);
}

#[test]
fn container_when_paused_then_it_stands_still_until_resumed() {
    let (root, group) = (rootfs(), Group::new("pause"));
    let (mut container, pipes) =
        create_in(&group, &spec("while :; do :; done"), overlay(root.path())).unwrap();
    container.start().unwrap();
    let used = |container: &Container| container.stats().unwrap().cpu.usage_us;
    wait_for(|| used(&container) > 1000);
    container.pause().unwrap();
    let before = used(&container);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(&container), before);
    let error = container
        .exec(&spec("true").process.unwrap(), Stdio::Null)
        .unwrap_err();
    assert!(matches!(error, Error::Paused { .. }), "{error}");
    container.resume().unwrap();
    wait_for(|| used(&container) > before);
    container.delete().unwrap();
    finish(container.pid(), pipes);
}

#[test]
fn group_when_made_by_the_container_then_it_goes_with_it() {
    let (root, group) = (rootfs(), Group::new("nested"));
    let inside = group.inside();
    let mut spec = spec(&format!(
        "mkdir {inside}/a {inside}/a/b; echo $$ > {inside}/a/b/cgroup.procs; echo; cat",
    ));
    for mount in &mut spec.mounts {
        mount.options.retain(|option| option != "ro");
    }
    let (mut container, mut pipes) = create_in(&group, &spec, overlay(root.path())).unwrap();
    container.start().unwrap();
    read_line(&mut pipes);
    assert!(group.leading().join("a/b").exists());
    assert_eq!(container.processes().unwrap().len(), 1);
    container.delete().unwrap();
    assert!(!group.exists());
    finish(container.pid(), pipes);
}

#[test]
fn group_when_everywhere_then_in_each_hierarchy_and_gone_with_the_container() {
    let (root, group) = (rootfs(), Group::everywhere("everywhere"));
    let (mut container, pipes) = create_in(&group, &spec("cat"), overlay(root.path())).unwrap();
    container.start().unwrap();
    let pid = container.pid().as_raw_pid().to_string();
    let location = group.location();
    assert!(!location.directories().is_empty());
    for directory in location.directories() {
        let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        assert!(
            processes.lines().any(|line| line == pid),
            "{}",
            directory.display()
        );
    }
    container.delete().unwrap();
    assert!(!group.exists());
    finish(container.pid(), pipes);
}

#[test]
fn group_when_written_down_then_who_reads_it_can_do_the_same() {
    let (root, group) = (rootfs(), Group::new("written"));
    let command = "while :; do sleep 1000 & sleep 1000; done";
    let (mut container, pipes) = create_in(&group, &spec(command), overlay(root.path())).unwrap();
    container.start().unwrap();
    let location = container.control_group().unwrap().location();
    let text = serde_json::to_string(&location).unwrap();
    let found = Cgroup::open(&serde_json::from_str(&text).unwrap()).unwrap();
    wait_for(|| found.processes().unwrap().len() == 3);
    found.freeze(true).unwrap();
    assert!(found.is_frozen().unwrap());
    // A signal ends what stands still, too.
    found.kill().unwrap();
    assert_eq!(wait(container.pid()).signal, Some(9));
    wait_for(|| found.processes().unwrap().is_empty());
    found.remove().unwrap();
    assert!(!group.exists());
    assert!(Cgroup::open(&location).is_err());
    container.delete().unwrap();
    drop(pipes);
}

#[test]
fn group_when_shown_then_the_container_sees_its_own_and_cannot_change_it() {
    let (root, group) = (rootfs(), Group::everywhere("shown"));
    let inside = group.inside();
    let command = format!(
        "grep -c . {inside}/cgroup.procs; mkdir {inside}/a; ls /sys/fs/cgroup; mount | grep -c ' /sys/fs/cgroup.*(rw'"
    );
    let (mut container, pipes) = create_in(&group, &spec(&command), overlay(root.path())).unwrap();
    container.start().unwrap();
    let output = finish(container.pid(), pipes);
    container.delete().unwrap();
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    let mut lines = output.stdout.lines();
    let processes: u32 = lines.next().unwrap().parse().unwrap();
    assert!((1..4).contains(&processes), "{output:?}");
    assert_eq!(lines.next_back(), Some("0"));
    let names: Vec<&str> = lines.collect();
    for controller in group.counting().into_iter().filter(|name| !name.is_empty()) {
        assert!(names.contains(&controller), "{names:?}");
    }
}

#[test]
fn group_when_left_frozen_then_the_next_container_runs_in_it() {
    let (root, group) = (rootfs(), Group::new("frozen"));
    let (container, pipes) = create_in(&group, &spec("cat"), overlay(root.path())).unwrap();
    let left = Cgroup::open(&container.control_group().unwrap().location()).unwrap();
    container.kill(9).unwrap();
    finish(container.pid(), pipes);
    wait_for(|| left.processes().unwrap().is_empty());
    left.freeze(true).unwrap();
    drop(container);
    let (mut container, pipes) =
        create_in(&group, &spec("echo hello"), overlay(root.path())).unwrap();
    container.start().unwrap();
    assert_eq!(finish(container.pid(), pipes).stdout, "hello\n");
    container.delete().unwrap();
}

#[test]
fn group_when_it_has_processes_then_refused() {
    let (root, group) = (rootfs(), Group::new("busy"));
    let (mut first, pipes) = create_in(&group, &spec("cat"), overlay(root.path())).unwrap();
    let error = create_in(&group, &spec("cat"), overlay(root.path())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot make the control group"),
        "{error}"
    );
    first.delete().unwrap();
    finish(first.pid(), pipes);
}

#[test]
fn devices_when_denied_then_they_cannot_be_opened() {
    let (root, group) = (rootfs(), Group::new("devices"));
    let mut spec = spec(
        "mknod /tmp/kmsg c 1 11; cat /tmp/kmsg; mknod /tmp/loop b 7 0; dd if=/tmp/loop count=1; echo > /dev/null",
    );
    let rule = |allow, major, access: &str| DeviceRule {
        allow,
        kind: if major == 0 {
            DeviceKind::All
        } else {
            DeviceKind::Block
        },
        major: Some(major),
        minor: None,
        access: Some(access.into()),
    };
    let devices = vec![rule(false, 0, "rwm"), rule(true, 7, "w")];
    spec.linux.as_mut().unwrap().resources = Some(Resources {
        devices,
        ..Resources::default()
    });
    give_all_capabilities(&mut spec);
    let (mut container, pipes) = create_in(&group, &spec, overlay(root.path())).unwrap();
    container.start().unwrap();
    let output = finish(container.pid(), pipes);
    container.delete().unwrap();
    assert_eq!(
        output.stderr.matches("Operation not permitted").count(),
        2,
        "{output:?}"
    );
    assert_eq!(output.exit.code, 0);
}

#[test]
fn container_when_not_to_be_made_then_no_group_is_left() {
    let (root, group) = (rootfs(), Group::new("failed"));
    let mut spec = spec("true");
    spec.mounts.push(mount("/x", "nofs", "rw"));
    let error = create_in(&group, &spec, overlay(root.path())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot mount nofs on /x: No such device (os error 19)"
    );
    assert!(!group.exists());
}
