//! Device files that a container makes for itself.

use bulkhead_container::spec::Resources;
use bulkhead_container::{Container, Create, Stdio};

use super::*;

/// Runs a command with Docker's capabilities, of which CAP_MKNOD is one.
fn in_group(name: &str, rules: bool, command: &str) -> Output {
    let root = rootfs();
    let group = Group::new(name);
    let mut spec = spec(command);
    confine(&mut spec);
    if rules {
        spec.linux.as_mut().unwrap().resources = Some(Resources {
            devices: defaults::device_rules(),
            ..Resources::default()
        });
    }
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let mut container = Container::create(Create {
        id: name,
        spec: &spec,
        rootfs: overlay(root.path()),
        cgroup: Some(group.location()),
        stdio,
        init: false,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    })
    .unwrap();
    container.start().unwrap();
    finish(container.pid(), pipes)
}

#[test]
fn device_of_the_host_when_made_then_it_cannot_be_opened() {
    let read = |device: &str| {
        format!("set -- {device}; mknod /tmp/disk b $1 $2 && head -c 512 /tmp/disk | wc -c")
    };
    let refused = |output: &Output| output.stderr.contains("Operation not permitted");
    let free = in_group("mknod-free", false, &read("7 0"));
    assert!(!refused(&free), "{free:?}");
    // That one, and the first disk that the kernel knows.
    for device in ["7 0", "$(grep -E '^ +[0-9]' /proc/partitions) 7 0"] {
        let walled = in_group("mknod", true, &read(device));
        assert!(walled.stdout == "0\n" && refused(&walled), "{walled:?}");
    }
}
