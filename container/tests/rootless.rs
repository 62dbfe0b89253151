//! Containers of a user that is not root. Needs root, to be that user, and uidmap.
//!
//! Each test is a process of its own: this program, executed as nobody where /etc/subuid and /etc/subgid are as the test
//! wants them.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::process::{Command, ExitCode};

use bulkhead_container::cgroup::Hierarchies;
use bulkhead_container::rootless::{self, Ids};
use bulkhead_container::spec::{Memory, NamespaceKind, Resources, Spec};
use bulkhead_container::{Container, Create, Rootfs, Stdio, defaults, seccomp};
use common::*;

const NOBODY: u32 = 65_534;

/// What is done before, as root; the place of the root filesystem is `$1`.
const WITHOUT_GROUPS: &str = "";
/// A host with version 2 alone, which has given a group to nobody.
const DELEGATED: &str = "
    umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit
    given=/sys/fs/cgroup/bulkhead-test-$$
    leave() { echo $$ >/sys/fs/cgroup/cgroup.procs; echo 1 >$given/cgroup.kill; rmdir $given/* $given 2>/dev/null; }
    trap leave EXIT
    mkdir $given $given/own && chown -R nobody $given && echo $$ >$given/own/cgroup.procs || exit
";

struct Test {
    name: &'static str,
    /// Lines of /etc/subuid and /etc/subgid.
    ranges: &'static str,
    groups: &'static str,
    /// Done in a directory of nobody's with a root filesystem.
    run: fn(&Path),
}

const RANGES: &str = "nobody:300000:10\nnobody:200000:65536\n";
const NO_RANGES: &str = "";
macro_rules! tests {
    ($($name:ident: $ranges:ident, $groups:ident;)*) => {
        const TESTS: &[Test] = &[$(Test {
            name: stringify!($name),
            ranges: $ranges,
            groups: $groups,
            run: $name,
        }),*];
    };
}

tests! {
    container_when_of_a_user_with_ranges_then_as_roots: RANGES, WITHOUT_GROUPS;
    program_when_executed_in_a_users_container_then_in_there: RANGES, WITHOUT_GROUPS;
    container_when_of_a_user_without_ranges_then_root_is_the_only_one: NO_RANGES, WITHOUT_GROUPS;
    network_when_the_hosts_then_sys_is_the_hosts_and_read_only: RANGES, WITHOUT_GROUPS;
    limits_when_there_is_no_group_to_delegate_then_refused_in_a_sentence: RANGES, WITHOUT_GROUPS;
    namespace_when_there_are_threads_then_refused_in_a_sentence: RANGES, WITHOUT_GROUPS;
    group_when_delegated_then_the_container_is_in_it: RANGES, DELEGATED;
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("--as-nobody") => {
            let (name, root) = (args.next().unwrap(), args.next().unwrap());
            let test = TESTS.iter().find(|test| test.name == name).unwrap();
            (test.run)(Path::new(&root));
            ExitCode::SUCCESS
        }
        Some("--list") => ExitCode::SUCCESS,
        filter => run_all(filter.filter(|filter| !filter.starts_with('-'))),
    }
}

fn run_all(filter: Option<&str>) -> ExitCode {
    let mut failed = false;
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    for test in TESTS.iter().filter(|test| wanted(test.name)) {
        let passed = run_as_nobody(test);
        println!(
            "test {} ... {}",
            test.name,
            if passed { "ok" } else { "FAILED" }
        );
        failed |= !passed;
    }
    ExitCode::from(u8::from(failed))
}

fn run_as_nobody(test: &Test) -> bool {
    let root = rootfs();
    let directory = root.path();
    // Nobody may not see where this program lies.
    fs::copy(std::env::current_exe().unwrap(), directory.join("test")).unwrap();
    fs::write(directory.join("ranges"), test.ranges).unwrap();
    fs::create_dir(directory.join("volume")).unwrap();
    give(directory);
    // In a mount namespace of its own, so that nothing of the machine is changed.
    let script = format!(
        "mount --bind $1/ranges /etc/subuid && mount --bind $1/ranges /etc/subgid || exit
        {}
        setpriv --reuid nobody --regid nogroup --clear-groups $1/test --as-nobody {} $1",
        test.groups, test.name,
    );
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(directory)
        .current_dir("/")
        .status();
    status
        .expect("unshare and setpriv; run scripts/setup")
        .success()
}

/// With all that is in it, to nobody.
fn give(path: &Path) {
    lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        fs::read_dir(path)
            .unwrap()
            .for_each(|entry| give(&entry.unwrap().path()));
    }
}

/// As Docker would have it.
fn confined(command: &str) -> Spec {
    let mut spec = spec(command);
    let capabilities = defaults::capabilities();
    let linux = spec.linux.as_mut().unwrap();
    linux.seccomp = Some(seccomp::docker_default().filter(&capabilities.bounding));
    linux.masked_paths = defaults::masked_paths();
    linux.readonly_paths = defaults::readonly_paths();
    spec.process.as_mut().unwrap().capabilities = Some(capabilities);
    spec
}

fn words(spec: &Spec, rootfs: Rootfs) -> Vec<String> {
    let output = succeed(spec, rootfs);
    output.split_whitespace().map(str::to_owned).collect()
}

fn container_when_of_a_user_with_ranges_then_as_roots(root: &Path) {
    let ids = Ids::of_this_user();
    assert!(!ids.is_single());
    rootless::enter(&ids).unwrap_or_else(|e| panic!("{e}"));
    assert!(!rootless::is_initial());
    let command = "id -u; touch /x; chown 1000:1001 /x; stat -c %u:%g /x; rm /etc/passwd; ls /etc; \
        echo > /dev/null; head -c 1 /dev/zero | wc -c; ls /sys/class/net; hostname; cat /proc/self/uid_map";
    let said = words(&confined(command), overlay(root));
    let expected = [
        "0",
        "1000:1001",
        "group",
        "1",
        "lo",
        "box",
        "0",
        "65534",
        "1",
        "1",
        "300000",
        "10",
        "11",
        "200000",
        "65536",
    ];
    assert_eq!(said, expected);
    // The image is not changed.
    assert!(root.join("etc/passwd").exists() && !root.join("x").exists());

    let mut alices =
        confined("id -u; id -G; cat /proc/self/status | grep CapEff; touch /home/x; echo $?");
    alices.process.as_mut().unwrap().user.username = Some("alice".into());
    let output = run(&alices, overlay(root)).unwrap_or_else(|e| panic!("{e}"));
    let said: Vec<_> = output.stdout.split_whitespace().collect();
    assert_eq!(
        said,
        [
            "1000",
            "1001",
            "4",
            "10",
            "CapEff:",
            "0000000000000000",
            "1"
        ]
    );

    // A directory as it is, whose files are the user's.
    succeed(
        &confined("echo hello > /volume/x"),
        Rootfs::Directory(root.into()),
    );
    assert_eq!(fs::metadata(root.join("volume/x")).unwrap().uid(), 0);
}

fn program_when_executed_in_a_users_container_then_in_there(root: &Path) {
    rootless::enter(&Ids::of_this_user()).unwrap();
    let (mut container, pipes) =
        create(&confined("cat"), overlay(root)).unwrap_or_else(|e| panic!("{e}"));
    container.start().unwrap();
    // There is no control group to tell.
    let only = [container.pid().as_raw_pid().unsigned_abs()];
    assert_eq!(container.processes().unwrap(), only);
    let (stdio, mut theirs) = Stdio::pipes().unwrap();
    let mut process = confined("hostname; cat /proc/1/comm").process.unwrap();
    // That only root may have.
    process.oom_score_adj = Some(-500);
    let exec = container
        .exec(&process, stdio)
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read_line(&mut theirs), "box");
    assert_eq!(read_line(&mut theirs), "cat");
    assert_eq!(wait(exec.pid()).code, 0);
    assert_eq!(finish(container.pid(), pipes).exit.code, 0);
}

fn container_when_of_a_user_without_ranges_then_root_is_the_only_one(root: &Path) {
    let ids = Ids::of_this_user();
    assert!(ids.is_single());
    rootless::enter(&ids).unwrap_or_else(|e| panic!("{e}"));
    let mut spec = confined(
        "id -u; echo x > /volume/x; stat -c %u /volume/x; chown 1 /volume/x || echo no; ls /dev/pts",
    );
    spec.mounts
        .push(bind(&root.join("volume"), "/volume", "bind"));
    let output = run(&spec, overlay(root)).unwrap_or_else(|e| panic!("{e}"));
    let said: Vec<_> = output.stdout.split_whitespace().collect();
    assert_eq!(said, ["0", "0", "no", "ptmx"], "{output:?}");
    // To the host it is the user's.
    assert_eq!(fs::metadata(root.join("volume/x")).unwrap().uid(), 0);
}

fn network_when_the_hosts_then_sys_is_the_hosts_and_read_only(root: &Path) {
    let interfaces = || {
        let all = fs::read_dir("/sys/class/net").unwrap();
        all.map(|entry| entry.unwrap().file_name().into_string().unwrap())
    };
    rootless::enter(&Ids::of_this_user()).unwrap();
    let mut spec = confined("ls /sys/class/net; mkdir /sys/x 2>/dev/null || echo no");
    let linux = spec.linux.as_mut().unwrap();
    linux
        .namespaces
        .retain(|namespace| namespace.kind != NamespaceKind::Network);
    let mut said = words(&spec, overlay(root));
    assert_eq!(said.pop().as_deref(), Some("no"));
    let mut expected: Vec<_> = interfaces().collect();
    expected.sort();
    said.sort();
    assert_eq!(said, expected);
}

fn limits_when_there_is_no_group_to_delegate_then_refused_in_a_sentence(root: &Path) {
    rootless::enter(&Ids::of_this_user()).unwrap();
    let mut spec = confined("true");
    spec.linux.as_mut().unwrap().resources = Some(Resources {
        memory: Some(Memory {
            limit: Some(64 << 20),
            ..Memory::default()
        }),
        ..Resources::default()
    });
    let error = create(&spec, overlay(root)).unwrap_err().to_string();
    assert!(
        error
            .starts_with("linux.resources: there are limits, but no control group to set them for"),
        "{error}"
    );
}

fn namespace_when_there_are_threads_then_refused_in_a_sentence(_root: &Path) {
    let (done, waits) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || waits.recv());
    let error = rootless::enter(&Ids::of_this_user()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot enter a user namespace with 2 threads; it is done before the second begins"
    );
    drop(done);
    thread.join().unwrap().unwrap_err();
    assert!(rootless::is_initial());
}

fn group_when_delegated_then_the_container_is_in_it(root: &Path) {
    rootless::enter(&Ids::of_this_user()).unwrap();
    let host = Hierarchies::of_this_host().unwrap();
    let location = host.delegated("box").expect("a place");
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let spec = confined("sleep 1000 & cat; grep ^0: /proc/self/cgroup");
    let mut container = Container::create(Create {
        id: "test",
        spec: &spec,
        rootfs: overlay(root),
        cgroup: Some(location.clone()),
        stdio,
        init: false,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    })
    .unwrap_or_else(|e| panic!("{e}"));
    container.start().unwrap();
    wait_for(|| container.processes().unwrap().len() == 3);
    container.pause().unwrap();
    container.resume().unwrap();
    let output = finish(container.pid(), pipes);
    assert_eq!(output.stdout, "0::/\n", "{output:?}");
    container.delete().unwrap();
    assert!(!location.directories()[0].exists());
}
