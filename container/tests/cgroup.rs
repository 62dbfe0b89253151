//! What a control group does for a container without any controller: every Linux with cgroup v2 can run these. The limits
//! themselves are in `limits.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use bulkhead_container::spec::{DeviceKind, DeviceRule, Resources, Spec};
use bulkhead_container::{Container, Create, Error, Pipes, Rootfs, Stdio};
use common::*;

fn create_in(group: &Group, spec: &Spec, rootfs: Rootfs) -> Result<(Container, Pipes), Error> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let cgroup = Some(group.path().to_owned());
    let create = Create {
        id: "test",
        spec,
        rootfs,
        cgroup,
        stdio,
        init: false,
        bundle: None,
    };
    Ok((Container::create(create)?, pipes))
}

#[test]
fn container_when_in_a_group_then_all_its_processes_are() {
    let (root, group) = (rootfs(), Group::new("procs"));
    let (mut container, mut pipes) = create_in(
        &group,
        &spec("sleep 1000 & grep ^0: /proc/self/cgroup; cat"),
        overlay(root.path()),
    )
    .unwrap();
    container.start().unwrap();
    assert_eq!(read_line(&mut pipes).trim_end(), "0::/");
    let exec = container
        .exec(&spec("sleep 1000").process.unwrap(), Stdio::Null)
        .unwrap();
    wait_for(|| container.processes().unwrap().len() == 3);
    let processes = container.processes().unwrap();
    assert!(processes.contains(&(exec.pid().as_raw_pid() as u32)));
    assert!(container.stats().unwrap().cpu.usage_us > 0);
    container.delete().unwrap();
    assert!(!group.path().exists());
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
    let mut spec = spec(
        "mkdir /sys/fs/cgroup/a /sys/fs/cgroup/a/b; echo $$ > /sys/fs/cgroup/a/b/cgroup.procs; echo; cat",
    );
    for mount in &mut spec.mounts {
        mount.options.retain(|option| option != "ro");
    }
    let (mut container, mut pipes) = create_in(&group, &spec, overlay(root.path())).unwrap();
    container.start().unwrap();
    read_line(&mut pipes);
    assert!(group.path().join("a/b").exists());
    assert_eq!(container.processes().unwrap().len(), 1);
    container.delete().unwrap();
    assert!(!group.path().exists());
    finish(container.pid(), pipes);
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
    assert!(!group.path().exists());
}
