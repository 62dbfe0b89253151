//! Limits that bite, by the controllers that this machine has, of version 1 or 2. The end-to-end tests run this program in a
//! guest too (`limits_when...`), which has version 2. `BULKHEAD_CGROUP_ROOT` says where groups are made, `BULKHEAD_BUSYBOX` where
//! busybox lies.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use bulkhead_container::spec::{Cpu, LinuxPids, Memory, Resources, Spec};
use bulkhead_container::{Container, Create, Pipes, Stdio};
use common::*;

fn start(
    group: &Group,
    spec: &mut Spec,
    resources: Resources,
    root: &std::path::Path,
) -> (Container, Pipes) {
    spec.linux.as_mut().unwrap().resources = Some(resources);
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let cgroup = Some(group.location());
    let create = Create {
        id: "test",
        spec,
        rootfs: overlay(root),
        cgroup,
        stdio,
        init: false,
        bundle: None,
        gate: None,
        preserved: 0,
    };
    let mut container = Container::create(create).unwrap_or_else(|e| panic!("{e}"));
    container.start().unwrap();
    (container, pipes)
}

#[test]
fn memory_when_used_up_then_killed_and_said() {
    let (root, group) = (rootfs(), Group::new("memory"));
    let memory = Memory {
        limit: Some(8 << 20),
        swap: Some(8 << 20),
        ..Memory::default()
    };
    let resources = Resources {
        memory: Some(memory),
        ..Resources::default()
    };
    // By the program's own work: guests whose kernel is emulated are slow to clear what is read from /dev/zero.
    let mut spec = spec("x=0123456789; while :; do x=$x$x; done");
    let (mut container, pipes) = start(&group, &mut spec, resources, root.path());
    let output = finish(container.pid(), pipes);
    assert_eq!(output.exit.signal, Some(9), "{output:?}");
    assert!(container.oom_kills().unwrap() >= 1);
    let memory = container.stats().unwrap().memory.unwrap();
    assert_eq!((memory.limit, memory.oom_kills), (Some(8 << 20), 1));
    container.delete().unwrap();
}

#[test]
fn processes_when_too_many_then_no_more_are_forked() {
    let (root, group) = (rootfs(), Group::new("pids"));
    let pids = Some(LinuxPids { limit: 5 });
    let mut spec = spec("for i in 1 2 3 4; do sleep 1000 & done; wait");
    let resources = Resources {
        pids,
        ..Resources::default()
    };
    let (mut container, pipes) = start(&group, &mut spec, resources, root.path());
    wait_for(|| container.stats().unwrap().pids.unwrap().current == 5);
    assert_eq!(container.stats().unwrap().pids.unwrap().limit, Some(5));
    // Whoever is to look after it gets in, and does not fork either: a shell ends with 2 then.
    let program = common::spec("sleep 1000 & exit 0").process.unwrap();
    let exec = container.exec(&program, Stdio::Null).unwrap();
    assert_eq!(wait(exec.pid()).code, 2);
    container.delete().unwrap();
    finish(container.pid(), pipes);
}

#[test]
fn processor_when_halved_then_throttled() {
    let (root, group) = (rootfs(), Group::new("cpu"));
    let cpu = Some(Cpu {
        quota: Some(20_000),
        period: Some(100_000),
        shares: Some(512),
        ..Cpu::default()
    });
    let mut spec = spec("while :; do :; done");
    let resources = Resources {
        cpu,
        ..Resources::default()
    };
    let (mut container, pipes) = start(&group, &mut spec, resources, root.path());
    wait_for(|| container.stats().unwrap().cpu.periods >= 10);
    let used = container.stats().unwrap().cpu;
    // A fifth of each period, and what the kernel is late with.
    assert!(
        used.usage_us < used.periods * 50_000 && used.throttled_periods > 0,
        "{used:?}"
    );
    container
        .update(&Resources {
            cpu: Some(Cpu {
                quota: Some(-1),
                ..Cpu::default()
            }),
            ..Resources::default()
        })
        .unwrap();
    container.delete().unwrap();
    finish(container.pid(), pipes);
}
