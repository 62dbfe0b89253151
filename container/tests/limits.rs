//! Limits that bite, by the controllers that this machine has, of version 1 or 2. The end-to-end tests run this program in a
//! guest too (`limits_when...`), which has version 2. `BULKHEAD_CGROUP_ROOT` says where groups are made, `BULKHEAD_BUSYBOX` where
//! busybox lies.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use bulkhead_container::spec::{Cpu, HugepageLimit, LinuxPids, Memory, Resources, Spec};
use bulkhead_container::{Container, Create, Pipes, Stdio};
use common::*;
use rustix::event::{PollFd, Timespec, poll};

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
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
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

#[test]
fn memory_when_it_runs_out_then_whoever_watches_is_told() {
    let (root, group) = (rootfs(), Group::new("watched"));
    let memory = Memory {
        limit: Some(8 << 20),
        swap: Some(8 << 20),
        ..Memory::default()
    };
    let resources = Resources {
        memory: Some(memory),
        ..Resources::default()
    };
    let mut spec = spec("read x; x=0123456789; while :; do x=$x$x; done");
    let (mut container, pipes) = start(&group, &mut spec, resources, root.path());
    let mut events = container.memory_events().unwrap().unwrap();
    assert!(!events.ran_out());
    rustix::io::write(&pipes.stdin, b"\n").unwrap();
    let mut ready = [PollFd::from_borrowed_fd(events.as_fd(), events.interest())];
    let minute = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut ready, Some(&minute)).unwrap(), 1);
    let told = events.ran_out();
    assert_eq!(finish(container.pid(), pipes).exit.signal, Some(9));
    // It may have been read just before the kill was counted.
    assert!(events.ran_out() || told);
    assert!(events.kills() >= 1);
    container.delete().unwrap();
    assert!(!events.ran_out());
}

#[test]
fn limits_when_changed_up_and_down_then_the_last_ones_hold() {
    let (root, group) = (rootfs(), Group::new("changed"));
    let limited = |megabytes: i64, pids: i64| Resources {
        memory: Some(Memory {
            limit: Some(megabytes << 20),
            swap: Some(megabytes << 20),
            ..Memory::default()
        }),
        pids: Some(LinuxPids { limit: pids }),
        ..Resources::default()
    };
    let (mut container, pipes) = start(&group, &mut spec("cat"), limited(32, 10), root.path());
    // Memory and swap together cannot be less than memory, at no time.
    for (megabytes, pids) in [(64, 20), (16, 5), (128, 7)] {
        container.update(&limited(megabytes, pids)).unwrap();
        let stats = container.stats().unwrap();
        assert_eq!(stats.memory.unwrap().limit, Some((megabytes as u64) << 20));
        assert_eq!(stats.pids.unwrap().limit, Some(pids as u64));
    }
    let memory = Memory {
        limit: Some(-1),
        ..Memory::default()
    };
    let unlimited = Resources {
        memory: Some(memory),
        pids: Some(LinuxPids { limit: -1 }),
        ..Resources::default()
    };
    // What is used already is not taken away.
    let too_little = Memory {
        limit: Some(4096),
        swap: Some(4096),
        check_before_update: Some(true),
        ..Memory::default()
    };
    let too_little = Resources {
        memory: Some(too_little),
        ..Resources::default()
    };
    assert!(container.update(&too_little).is_err());
    assert_eq!(
        container.stats().unwrap().memory.unwrap().limit,
        Some(128 << 20)
    );
    container.update(&unlimited).unwrap();
    let stats = container.stats().unwrap();
    assert_eq!(
        (stats.memory.unwrap().limit, stats.pids.unwrap().limit),
        (None, None)
    );
    container.delete().unwrap();
    finish(container.pid(), pipes);
}

#[test]
fn processes_when_they_fork_without_end_then_all_end_at_once() {
    let (root, group) = (rootfs(), Group::new("bomb"));
    let resources = Resources {
        pids: Some(LinuxPids { limit: 60 }),
        ..Resources::default()
    };
    let mut spec = spec("for i in 1 2 3 4; do while :; do (:); done & done; cat");
    let (mut container, pipes) = start(&group, &mut spec, resources, root.path());
    wait_for(|| container.processes().unwrap().len() >= 6);
    container.kill_all(9).unwrap();
    assert_eq!(wait(container.pid()).signal, Some(9));
    wait_for(|| container.processes().unwrap().is_empty());
    container.delete().unwrap();
    assert!(!group.exists());
    drop(pipes);
}

#[test]
fn processors_when_listed_then_it_has_no_others() {
    let (root, group) = (rootfs(), Group::new("cpuset"));
    let resources = Resources {
        cpu: Some(Cpu {
            cpus: Some("0".into()),
            mems: Some("0".into()),
            ..Cpu::default()
        }),
        ..Resources::default()
    };
    let mut spec = spec("grep Cpus_allowed_list /proc/self/status");
    let (mut container, pipes) = start(&group, &mut spec, resources, root.path());
    let output = finish(container.pid(), pipes);
    container.delete().unwrap();
    assert_eq!(output.stdout, "Cpus_allowed_list:\t0\n", "{output:?}");
}

#[test]
fn huge_pages_when_limited_then_where_they_are_counted_or_refused() {
    let (root, group) = (rootfs(), Group::new("huge"));
    let limit = HugepageLimit {
        page_size: "2MB".into(),
        limit: 4 << 20,
    };
    let mut spec = spec("true");
    spec.linux.as_mut().unwrap().resources = Some(Resources {
        hugepage_limits: vec![limit],
        ..Resources::default()
    });
    // On a hybrid host that may be in the hierarchy of version 2, with the others in those of version 1.
    let (stdio, _pipes) = Stdio::pipes().unwrap();
    let created = Container::create(Create {
        id: "test",
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
    });
    match created {
        Ok(mut container) => {
            let location = container.control_group().unwrap().location();
            let read = |directory: &Path, file: &str| fs::read_to_string(directory.join(file)).ok();
            let limits = location.directories().into_iter().filter_map(|directory| {
                let v1 = read(directory, "hugetlb.2MB.limit_in_bytes");
                v1.or_else(|| read(directory, "hugetlb.2MB.max"))
            });
            assert_eq!(limits.collect::<Vec<_>>(), ["4194304\n"]);
            container.delete().unwrap();
            wait(container.pid());
        }
        Err(error) => assert!(error.to_string().contains("hugetlb"), "{error}"),
    }
    assert!(!group.exists());
}
