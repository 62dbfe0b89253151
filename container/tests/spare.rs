//! Containers whose first process was made before.
//!
//! A single test: whoever makes such a process has one thread, since what it opens is its own meanwhile.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_container::cgroup::Location;
use bulkhead_container::spec::{Process, Resources, Spec};
use bulkhead_container::{
    Container, Create, Error, Lower, NewFile, Pipes, Rootfs, Spare, Stdio, Upper, defaults,
};
use common::{Output, bind, creation, finish, give, mount, overlay, rootfs, spec};

/// All that a program can see of what was made for it, but when that was.
const LOOK: &str = "cut -d' ' -f4- /proc/self/mountinfo | sort; stat -c '%N %f %u %g %t:%T %s' /dev /dev/* /dev/pts/*; cat /proc/self/cgroup; hostname; \
    umask; ls -la /proc/self/fd | wc -l; grep -E 'Seccomp|NoNewPrivs|Cap|Groups' /proc/self/status; readlink /proc/self/root; \
    echo x > /proc/sysrq-trigger; ls /proc/scsi; cat /proc/kcore; echo $$; ls -d /proc/[0-9]*; cat /etc/new; echo y > /tmp/y; \
    echo >/dev/null; head -c 8 /dev/urandom | wc -c; cat /proc/1/oom_score_adj; ls /sys/fs/cgroup | wc -l; \
    for i in mnt uts ipc cgroup; do readlink /proc/self/ns/$i | cut -d: -f1; done";

/// A new group of version 2.
fn group() -> PathBuf {
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
    let root = roots
        .into_iter()
        .find(|root| root.join("cgroup.procs").exists());
    let root = root.expect("no control groups of version 2 are mounted");
    root.join(format!("bulkhead-test-{}-spare", std::process::id()))
}

/// As Docker has it.
fn usual(command: &str) -> Spec {
    let mut spec = spec(command);
    give(&mut spec, &["CAP_CHOWN", "CAP_SYS_CHROOT"]);
    let linux = spec.linux.as_mut().unwrap();
    linux.masked_paths = defaults::masked_paths();
    linux.readonly_paths = defaults::readonly_paths();
    spec
}

fn create(
    spec: &Spec,
    root: &Path,
    group: &Path,
    spare: Option<Spare>,
) -> Result<(Container, Pipes), Error> {
    create_in(spec, overlay(root), group, spare)
}

fn create_in(
    spec: &Spec,
    rootfs: Rootfs,
    group: &Path,
    spare: Option<Spare>,
) -> Result<(Container, Pipes), Error> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let create = Create {
        cgroup: Some(Location::Directory(group.to_owned())),
        spare,
        ..creation(spec, rootfs, stdio)
    };
    Ok((Container::create(create)?, pipes))
}

fn run(spec: &Spec, root: &Path, group: &Path, spare: Option<Spare>) -> Output {
    let (mut container, pipes) = create(spec, root, group, spare).unwrap_or_else(|e| panic!("{e}"));
    container.start().unwrap_or_else(|e| panic!("{e}"));
    let output = finish(container.pid(), pipes);
    container.delete().unwrap_or_else(|e| panic!("{e}"));
    output
}

fn descriptors() -> Vec<String> {
    let mut all: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .filter(|path| !path.contains("/proc/"))
        .collect();
    all.sort();
    all
}

/// The only process in a group.
fn only_process(group: &Path) -> String {
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert_eq!(processes.lines().count(), 1, "{processes:?}");
    processes.trim().to_owned()
}

#[test]
fn spare_process_when_made_before_then_the_container_is_the_same_and_nothing_is_left() {
    let group = group();
    let root = rootfs();
    let location = Location::Directory(group.clone());
    let spare = |spec: &Spec| Spare::new(spec, &location).unwrap_or_else(|e| panic!("{e}"));
    let usually = usual("true");

    // Once, for what is kept for good: memory for stacks.
    run(&usually, root.path(), &group, None);
    let before = descriptors();

    // Whatever the program, limits and mounts elsewhere, in the writable layer that was made before and in another one.
    let mut looks = usual(LOOK);
    looks.mounts.push(mount("/tmp", "tmpfs", "size=1m"));
    looks.mounts.push(bind(root.path(), "/host", "rbind,ro"));
    looks.hostname = Some("another".into());
    looks.linux.as_mut().unwrap().resources = Some(Resources::default());
    let unlimited = Rootfs::Overlay {
        lower: Lower::Directory(root.path().into()),
        upper: Upper::Tmpfs { size_bytes: None },
        files: vec![NewFile {
            path: "/etc/new".into(),
            data: b"new\n".into(),
        }],
        devices: true,
    };
    // Fewer capabilities can be had later, too, and an image need not have the places of the kernel's filesystems.
    let mut fewer = looks.clone();
    give(&mut fewer, &["CAP_CHOWN"]);
    fs::remove_dir(root.path().join("sys")).unwrap();
    for (looks, rootfs) in [(looks, overlay(root.path())), (fewer, unlimited)] {
        let (mut container, pipes) =
            create_in(&looks, rootfs.clone(), &group, None).unwrap_or_else(|e| panic!("{e}"));
        container.start().unwrap();
        let expected = finish(container.pid(), pipes);
        container.delete().unwrap();
        drop(container);
        assert!(expected.stdout.contains("another"), "{expected:?}");
        let one = spare(&usually);
        let process = only_process(&group);
        let (mut container, pipes) =
            create_in(&looks, rootfs, &group, Some(one)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(container.pid().as_raw_pid().to_string(), process);
        container.start().unwrap();
        let output = finish(container.pid(), pipes);
        container.delete().unwrap();
        drop(container);
        assert_eq!(output, expected);
        assert!(!group.exists());
        assert_eq!(descriptors(), before);
    }

    // A program that is nowhere is said so, and an operation of the second part that fails has its name.
    let mut nowhere = usual("");
    nowhere.process = Some(Process {
        args: vec!["/nowhere".into()],
        ..nowhere.process.unwrap()
    });
    let (mut container, pipes) =
        create(&nowhere, root.path(), &group, Some(spare(&usually))).unwrap();
    let error = container.start().expect_err("there is no such program");
    assert!(error.to_string().contains("/nowhere"), "{error}");
    assert_eq!(finish(container.pid(), pipes).exit.code, 127);
    container.delete().unwrap();
    drop(container);
    let mut wrong = usual("");
    wrong.mounts.push(mount("/x", "no-such-filesystem", ""));
    let error = create(&wrong, root.path(), &group, Some(spare(&usually))).expect_err("no mount");
    assert!(error.to_string().contains("/x"), "{error}");
    assert!(!group.exists());
    assert_eq!(descriptors(), before);

    // What does not fit gets a process of its own, and the other is gone.
    let mut others = [(); 5].map(|()| usual(LOOK));
    let [less, over, sysctl, shared, more] = &mut others;
    give(more, &["CAP_CHOWN", "CAP_SYS_CHROOT", "CAP_SYS_TIME"]);
    less.linux.as_mut().unwrap().readonly_paths.pop();
    over.mounts.push(mount("/dev/shm", "tmpfs", "size=2m"));
    let sysctls = &mut sysctl.linux.as_mut().unwrap().sysctl;
    sysctls.insert("kernel.shmmni".into(), "7".into());
    shared
        .linux
        .as_mut()
        .unwrap()
        .namespaces
        .retain(|n| n.kind != bulkhead_container::spec::NamespaceKind::Uts);
    shared.hostname = None;
    for other in &others {
        let expected = run(other, root.path(), &group, None);
        let one = spare(&usually);
        let process = only_process(&group);
        assert_eq!(run(other, root.path(), &group, Some(one)), expected);
        assert!(!Path::new("/proc").join(process).exists());
    }
    let error = Spare::new(&others[2], &location).expect_err("it comes too late for that");
    assert!(matches!(error, Error::Invalid { .. }), "{error}");

    // One that nobody wants ends, and one that was killed is no container's.
    drop(spare(&usually));
    assert!(!group.exists());
    let one = spare(&usually);
    let process = only_process(&group).parse().unwrap();
    let process = rustix::process::Pid::from_raw(process).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    let error = create(&usually, root.path(), &group, Some(one)).expect_err("it is dead");
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(!group.exists());
    assert_eq!(descriptors(), before);
}
