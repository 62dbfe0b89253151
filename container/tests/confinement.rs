//! What a container may do, and what it must not. Run as root.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use bulkhead_container::spec::{
    Capabilities, DeviceKind, IoPriority, Personality, Process, Rlimit, Scheduler, Spec, User,
};
use bulkhead_container::{Container, Create, Rootfs, Stdio, TerminalSize, defaults, seccomp};
use common::*;

fn process(spec: &mut Spec) -> &mut Process {
    spec.process.as_mut().unwrap()
}

/// As Docker confines it.
fn confined(command: &str) -> Spec {
    let mut spec = spec(command);
    let capabilities = defaults::capabilities();
    let linux = spec.linux.as_mut().unwrap();
    linux.seccomp = Some(seccomp::docker_default().filter(&capabilities.bounding));
    linux.masked_paths = defaults::masked_paths();
    linux.readonly_paths = defaults::readonly_paths();
    process(&mut spec).capabilities = Some(capabilities);
    spec
}

fn confined_sh(command: &str) -> String {
    let root = rootfs();
    succeed(&confined(command), overlay(root.path()))
}

#[test]
fn capabilities_when_dockers_then_the_kernel_shows_them() {
    let text = confined_sh("grep -E 'Cap|NoNew|Seccomp:' /proc/self/status");
    let expected = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
        CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    assert_eq!(text, expected);
}

#[test]
fn capabilities_when_none_then_none() {
    let text = sh("grep -E 'Cap' /proc/self/status | sort -u -k2");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.ends_with(":\t0000000000000000\n"), "{text}");
}

#[test]
fn capabilities_when_ambient_then_a_user_has_them() {
    let root = rootfs();
    let mut spec = confined("grep -E 'CapEff|CapAmb' /proc/self/status; id -u");
    let one = vec!["CAP_NET_BIND_SERVICE".to_owned()];
    process(&mut spec).capabilities = Some(Capabilities {
        bounding: one.clone(),
        effective: one.clone(),
        permitted: one.clone(),
        inheritable: one.clone(),
        ambient: one,
    });
    process(&mut spec).user.uid = 1000;
    let text = succeed(&spec, overlay(root.path()));
    assert_eq!(
        text,
        "CapEff:\t0000000000000400\nCapAmb:\t0000000000000400\n1000\n"
    );
}

#[test]
fn calls_when_the_profile_denies_them_then_they_fail() {
    let root = rootfs();
    for new_privileges in [false, true] {
        let mut spec = confined(
            "mount -t tmpfs none /tmp; echo $?; hostname x; echo $?; sysctl -w kernel.shmmax=1; echo $?",
        );
        process(&mut spec).no_new_privileges = !new_privileges;
        let output = run(&spec, overlay(root.path())).unwrap();
        assert_eq!(output.stdout, "1\n1\n1\n", "{output:?}");
    }
}

#[test]
fn user_when_not_root_and_filtered_then_no_capabilities_are_left() {
    let root = rootfs();
    let mut spec = confined("id -u; id -g; id -G; grep CapEff /proc/self/status; echo $HOME");
    process(&mut spec).user.username = Some("alice".into());
    let text = succeed(&spec, overlay(root.path()));
    assert_eq!(
        text,
        "1000\n1001\n1001 4 10\nCapEff:\t0000000000000000\n/home/alice\n"
    );
}

#[test]
fn user_when_named_in_all_ways_then_as_docker_finds_them() {
    let root = rootfs();
    for (name, expected) in [
        ("1000", "1000 1001 1001 4 10 /home/alice"),
        ("alice:adm", "1000 4 4 /home/alice"),
        ("1234:77", "1234 77 77 /"),
        ("1234", "1234 0 0 /"),
        ("root:alice", "0 1001 1001 /root"),
    ] {
        let mut spec = spec("echo $(id -u) $(id -g) $(id -G) $HOME");
        process(&mut spec).user.username = Some(name.into());
        assert_eq!(
            succeed(&spec, overlay(root.path())).trim(),
            expected,
            "{name}"
        );
    }
    for name in ["bob", "alice:nogroup"] {
        let mut spec = spec("true");
        process(&mut spec).user.username = Some(name.into());
        let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
        assert!(error.contains("/etc/passwd"), "{name}: {error}");
    }
}

#[test]
fn user_when_by_number_then_the_groups_given_and_nothing_more() {
    let root = rootfs();
    let mut spec = spec("id -u; id -G; umask; echo x > /dev/stdout");
    process(&mut spec).user = User {
        uid: 1000,
        gid: 5,
        umask: Some(0o27),
        additional_gids: vec![7, 8, 7],
        ..User::default()
    };
    assert_eq!(
        succeed(&spec, overlay(root.path())),
        "1000\n5 7 7 8\n0027\nx\n"
    );
}

#[test]
fn user_database_when_hostile_then_an_error_or_nobody() {
    let big = "x".repeat(100_000);
    for passwd in ["", "\n\n::::\n", "alice:x:99999999999:1::\n", &big] {
        let root = rootfs();
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let mut spec = spec("echo $HOME");
        assert_eq!(succeed(&spec, overlay(root.path())), "/\n");
        process(&mut spec).user.username = Some("alice".into());
        assert!(run(&spec, overlay(root.path())).is_err());
    }
}

#[test]
fn user_database_when_a_link_out_or_no_file_then_the_host_is_not_read() {
    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("passwd"), "alice:x:7:7::/secret:\n").unwrap();
    let root = rootfs();
    let passwd = root.path().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    symlink(secret.path().join("passwd"), &passwd).unwrap();
    let mut spec = spec("echo $HOME");
    assert_eq!(succeed(&spec, overlay(root.path())), "/\n");
    process(&mut spec).user.username = Some("alice".into());
    assert!(run(&spec, overlay(root.path())).is_err());
    std::fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .unwrap();
    assert!(run(&spec, overlay(root.path())).is_err());
}

#[test]
fn paths_when_masked_then_empty_and_when_read_only_then_read_only() {
    let root = rootfs();
    std::fs::create_dir(root.path().join("secret")).unwrap();
    std::fs::write(root.path().join("secret/file"), "x").unwrap();
    let mut spec = confined(
        "ls /secret /sys/firmware; cat /proc/kcore /proc/timer_list /etc/group; touch /secret/x; \
         echo 1 > /proc/sys/kernel/ns_last_pid; touch /home/x; cat /etc/passwd | wc -l; echo b > /proc/sysrq-trigger",
    );
    let linux = spec.linux.as_mut().unwrap();
    linux.masked_paths.extend([
        "/secret".to_owned(),
        "/etc/group".to_owned(),
        "/not/there".to_owned(),
    ]);
    linux
        .readonly_paths
        .extend(["/home".to_owned(), "/nor/this".to_owned()]);
    let output = run(&spec, overlay(root.path())).unwrap();
    assert_eq!(
        output.stdout.replace("/secret:\n\n/sys/firmware:\n", ""),
        "2\n",
        "{output:?}"
    );
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        3,
        "{output:?}"
    );
}

#[test]
fn root_when_read_only_then_only_mounts_can_be_written() {
    let root = rootfs();
    let mut spec = spec("touch /x; touch /dev/shm/x && echo ok; touch /tmp/x && echo ok");
    spec.root = Some(bulkhead_container::spec::Root {
        readonly: true,
        ..Default::default()
    });
    spec.mounts
        .push(mount("/tmp", "tmpfs", "size=1m,nr_inodes=16,mode=1777"));
    let output = run(&spec, overlay(root.path())).unwrap();
    assert_eq!(output.stdout, "ok\nok\n");
    assert!(
        output.stderr.contains("/x: Read-only file system"),
        "{output:?}"
    );
}

#[test]
fn tmpfs_when_copied_up_then_it_holds_what_was_there() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let root = rootfs();
    let home = root.path().join("home");
    std::fs::create_dir_all(home.join("a/b")).unwrap();
    std::fs::write(home.join("a/b/big"), "x".repeat(3 << 20)).unwrap();
    std::fs::set_permissions(
        home.join("a/b/big"),
        std::fs::Permissions::from_mode(0o4711),
    )
    .unwrap();
    chown(home.join("a/b"), Some(7), Some(8)).unwrap();
    chown(home.join("a/b/big"), Some(7), Some(8)).unwrap();
    std::fs::set_permissions(
        home.join("a/b/big"),
        std::fs::Permissions::from_mode(0o4711),
    )
    .unwrap();
    symlink("/nowhere", home.join("link")).unwrap();
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o1750)).unwrap();
    let mut spec = spec(
        "cd /home; stat -c '%n %a %u %g %s' a/b/big; stat -c '%a' .; stat -c '%u' a/b; readlink link; \
         touch a/new; grep -c ' /home tmpfs' /proc/mounts",
    );
    spec.mounts
        .push(mount("/home", "tmpfs", "tmpcopyup,size=8m"));
    let expected = "a/b/big 4711 7 8 3145728\n1750\n7\n/nowhere\n1\n";
    assert_eq!(succeed(&spec, overlay(root.path())), expected);
    // What does not fit is an error.
    *spec.mounts.last_mut().unwrap() = mount("/home", "tmpfs", "tmpcopyup,size=1m");
    let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot mount tmpfs on /home: No space left"),
        "{error}"
    );
}

#[test]
fn limits_when_set_then_the_shell_sees_them() {
    let root = rootfs();
    let mut spec = spec("ulimit -n; ulimit -Hn; ulimit -c");
    let limit = |kind: &str, soft, hard| Rlimit {
        kind: kind.into(),
        soft,
        hard,
    };
    process(&mut spec).rlimits = vec![limit("RLIMIT_NOFILE", 77, 99), limit("RLIMIT_CORE", 0, 0)];
    assert_eq!(succeed(&spec, overlay(root.path())), "77\n99\n0\n");
}

#[test]
fn sysctls_when_of_its_namespaces_then_set_there() {
    let root = rootfs();
    let before = std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let mut spec = confined("cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward");
    let sysctl = &mut spec.linux.as_mut().unwrap().sysctl;
    sysctl.insert("kernel.shmmni".into(), "77".into());
    sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
    assert_eq!(succeed(&spec, overlay(root.path())), "77\n1\n");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(),
        before
    );
    spec.linux
        .as_mut()
        .unwrap()
        .sysctl
        .insert("kernel.panic".into(), "1".into());
    let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
    assert!(
        error.starts_with("linux.sysctl[\"kernel.panic\"]: "),
        "{error}"
    );
}

#[test]
fn devices_when_listed_then_the_default_ones_and_links() {
    let text =
        sh("cd /dev; ls; stat -c '%a %t,%T' null tty urandom; readlink ptmx; stat -c %a . || true");
    let expected = "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\
        666 1,3\n666 5,0\n666 1,9\npts/ptmx\n755\n";
    assert_eq!(text, expected);
}

#[test]
fn device_when_something_else_is_at_its_place_then_refused() {
    let root = rootfs();
    std::fs::write(root.path().join("home/same"), "").unwrap();
    let mut spec = spec("stat -c '%F %a %u %t,%T' /home/new /dev/random");
    let device = |path: &str| bulkhead_container::spec::Device {
        kind: DeviceKind::Character,
        path: path.into(),
        major: Some(1),
        minor: Some(9),
        file_mode: Some(0o640),
        uid: Some(7),
        gid: None,
    };
    // Somebody's wish for another /dev/random is no error.
    spec.mounts
        .push(bind(Path::new("/dev/urandom"), "/dev/random", "bind"));
    let linux = spec.linux.as_mut().unwrap();
    linux.devices = vec![device("/home/new"), device("/dev/ptmx")];
    let seen = succeed(&spec, overlay(root.path()));
    assert_eq!(
        seen,
        "character special file 640 7 1,9\ncharacter special file 666 0 1,9\n"
    );
    spec.linux.as_mut().unwrap().devices = vec![device("/home/same")];
    let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot make device /home/same: File exists (os error 17)"
    );
}

#[test]
fn scheduling_when_asked_for_then_the_program_has_it() {
    let root = rootfs();
    let mut spec = spec("cut -d' ' -f19,41 /proc/$$/stat; busybox ionice -p $$; uname -m");
    let process = process(&mut spec);
    process.scheduler = Some(Scheduler {
        policy: "SCHED_BATCH".into(),
        nice: 5,
        ..Scheduler::default()
    });
    process.io_priority = Some(IoPriority {
        class: "IOPRIO_CLASS_BE".into(),
        priority: 6,
    });
    spec.linux.as_mut().unwrap().personality = Some(Personality {
        domain: "LINUX32".into(),
        ..Personality::default()
    });
    let seen = succeed(&spec, overlay(root.path()));
    // Nice, and the number of SCHED_BATCH.
    assert_eq!(seen, "5 3\nbest-effort: prio 6\ni686\n");
}

#[test]
fn program_when_started_then_signals_are_as_by_default() {
    let root = rootfs();
    let mut spec = spec("");
    // No shell: those change signals themselves.
    process(&mut spec).args = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
        .map(str::to_owned)
        .to_vec();
    let text = succeed(&spec, overlay(root.path()));
    assert_eq!(
        text,
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

#[test]
fn directory_when_it_leads_through_our_descriptors_then_refused() {
    for number in 3..20 {
        let root = rootfs();
        let mut spec = spec("pwd; ls");
        process(&mut spec).cwd = format!("/proc/self/fd/{number}/work");
        assert!(run(&spec, overlay(root.path())).is_err(), "{number}");
        symlink(format!("/proc/self/fd/{number}"), root.path().join("out")).unwrap();
        process(&mut spec).cwd = "/out/work".into();
        assert!(run(&spec, overlay(root.path())).is_err(), "{number}");
    }
}

#[test]
fn paths_when_there_is_a_working_directory_then_still_from_the_root() {
    let root = rootfs();
    std::fs::create_dir_all(root.path().join("home/etc")).unwrap();
    std::fs::write(root.path().join("home/etc/passwd"), "alice:x:0:0::/evil:\n").unwrap();
    let mut spec = confined("id -u; cat /etc/group; ls /home/etc; echo $HOME");
    spec.linux.as_mut().unwrap().masked_paths = vec!["/etc/group".into()];
    process(&mut spec).cwd = "/home".into();
    process(&mut spec).user.username = Some("alice:5".into());
    assert_eq!(
        succeed(&spec, overlay(root.path())),
        "1000\npasswd\n/home/alice\n"
    );
}

#[test]
fn directory_when_missing_then_made() {
    let root = rootfs();
    symlink("/tmp", root.path().join("link")).unwrap();
    let mut spec = spec("pwd; ls -d /tmp/a/b");
    process(&mut spec).cwd = "/link/a/../a//b".into();
    assert_eq!(succeed(&spec, overlay(root.path())), "/tmp/a/b\n/tmp/a/b\n");
}

#[test]
fn mount_when_its_place_is_a_link_out_then_it_stays_inside() {
    let outside = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "inside").unwrap();
    let root = rootfs();
    let there = outside.path().strip_prefix("/").unwrap();
    symlink(outside.path(), root.path().join("absolute")).unwrap();
    symlink(
        Path::new("../../../../../..").join(there),
        root.path().join("relative"),
    )
    .unwrap();
    symlink("/proc/self/fd/5/evil", root.path().join("magic")).unwrap();
    std::fs::create_dir_all(root.path().join(there)).unwrap();
    for link in ["/absolute", "/relative"] {
        let mut spec = spec(&format!(
            "cat {}/file; mkdir {link}/made",
            outside.path().display()
        ));
        spec.mounts.push(bind(source.path(), link, "rbind"));
        assert_eq!(
            succeed(&spec, Rootfs::Directory(root.path().into())),
            "inside"
        );
        std::fs::remove_dir(source.path().join("made")).unwrap();
        // What is missing below is made inside too.
        spec.mounts
            .push(bind(source.path(), &format!("{link}/new/deep"), "rbind,ro"));
        std::fs::create_dir(source.path().join("new")).unwrap();
        succeed(&spec, Rootfs::Directory(root.path().into()));
        std::fs::remove_dir_all(source.path().join("new")).unwrap();
        std::fs::remove_dir(source.path().join("made")).unwrap();
    }
    let mut spec = spec("true");
    spec.mounts
        .push(bind(source.path(), "/magic/deeper", "rbind"));
    assert!(run(&spec, Rootfs::Directory(root.path().into())).is_err());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn proc_when_its_place_is_a_link_then_refused() {
    let root = rootfs();
    std::fs::remove_dir(root.path().join("proc")).unwrap();
    symlink("/tmp", root.path().join("proc")).unwrap();
    let error = run(&spec("true"), overlay(root.path()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("must be mounted on ordinary directory"),
        "{error}"
    );
}

#[test]
fn binds_when_with_options_then_they_hold() {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "text").unwrap();
    let root = rootfs();
    let file = source.path().join("file");
    let mut spec = spec(
        "cat /a/b/c /etc/one; echo x > /a/b/c; touch /d/x; touch /e/y && echo ok; grep ' /d ' /proc/mounts | grep -c nosuid,nodev,noexec",
    );
    spec.mounts.push(bind(&file, "/a/b/c", "bind,ro"));
    spec.mounts.push(bind(&file, "/etc/one", "bind"));
    spec.mounts.push(bind(
        source.path(),
        "/d",
        "rbind,rro,nosuid,nodev,noexec,private",
    ));
    spec.mounts
        .push(bind(source.path(), "/e", "bind,rw,rslave"));
    let output = run(&spec, overlay(root.path())).unwrap();
    assert_eq!(output.stdout, "texttextok\n1\n", "{output:?}");
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        2,
        "{output:?}"
    );
}

#[test]
fn terminal_when_asked_for_then_the_container_has_its_own() {
    let root = rootfs();
    let mut spec =
        spec("tty; stty size; readlink /proc/self/fd/0; test -c /dev/console && echo console; cat");
    process(&mut spec).terminal = true;
    let stdio = Stdio::Terminal(TerminalSize {
        rows: 33,
        columns: 77,
    });
    let create = Create {
        id: "tty",
        spec: &spec,
        rootfs: overlay(root.path()),
        cgroup: None,
        stdio,
        init: false,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    };
    let mut container = Container::create(create).unwrap();
    let master = container.take_terminal().unwrap();
    container.start().unwrap();
    let mut text = read_until(&master, "console\r\n");
    rustix::io::write(&master, b"typed\n").unwrap();
    text += &read_until(&master, "typed\r\ntyped\r\n");
    rustix::io::write(&master, b"\x04").unwrap();
    assert_eq!(wait(container.pid()).code, 0);
    assert_eq!(
        text,
        "/dev/pts/0\r\n33 77\r\n/dev/pts/0\r\nconsole\r\ntyped\r\ntyped\r\n"
    );
}

#[test]
fn terminal_when_of_an_exec_then_its_own() {
    let root = rootfs();
    let (mut container, pipes) = create(&spec("cat"), overlay(root.path())).unwrap();
    container.start().unwrap();
    let mut process = spec("tty; stty size").process.unwrap();
    process.terminal = true;
    let mut exec = container
        .exec(
            &process,
            Stdio::Terminal(TerminalSize {
                rows: 5,
                columns: 9,
            }),
        )
        .unwrap();
    let master = exec.take_terminal().unwrap();
    assert_eq!(read_until(&master, "5 9\r\n"), "/dev/pts/0\r\n5 9\r\n");
    assert_eq!(wait(exec.pid()).code, 0);
    container.kill(9).unwrap();
    finish(container.pid(), pipes);
}

#[test]
fn exec_when_in_a_confined_container_then_as_confined() {
    let root = rootfs();
    let (mut container, pipes) = create(&confined("cat"), overlay(root.path())).unwrap();
    container.start().unwrap();
    let mut process = confined("grep -E 'CapBnd|Seccomp:' /proc/self/status; id -u; pwd; exit 7")
        .process
        .unwrap();
    process.user.username = Some("alice".into());
    process.cwd = "/tmp".into();
    let (stdio, exec_pipes) = Stdio::pipes().unwrap();
    let exec = container.exec(&process, stdio).unwrap();
    let output = finish(exec.pid(), exec_pipes);
    assert_eq!(
        output.stdout,
        "CapBnd:\t00000000a80425fb\nSeccomp:\t2\n1000\n/tmp\n"
    );
    assert_eq!(output.exit.code, 7);
    process.args = vec!["nothing".into()];
    assert_eq!(
        container
            .exec(&process, Stdio::Null)
            .unwrap_err()
            .exit_code(),
        127
    );
    assert_eq!(finish(container.pid(), pipes).exit.code, 0);
    let error = container
        .exec(&process, Stdio::Null)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("No such process") || error.contains("cannot start"),
        "{error}"
    );
}

#[test]
fn init_when_asked_for_then_it_reaps_forwards_and_ends_alike() {
    let root = rootfs();
    let spec = confined(
        "trap 'echo term; exit 5' TERM; (sleep 0.01 &) ; cat /proc/1/status | grep -c bulk; echo $$; while :; do sleep 0.01; done",
    );
    let (stdio, mut pipes) = Stdio::pipes().unwrap();
    let create = Create {
        id: "init",
        spec: &spec,
        rootfs: overlay(root.path()),
        cgroup: None,
        stdio,
        init: true,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    };
    let mut container = Container::create(create).unwrap();
    container.start().unwrap();
    read_line(&mut pipes);
    assert_eq!(read_line(&mut pipes), "2");
    container.kill(15).unwrap();
    let output = finish(container.pid(), pipes);
    assert_eq!(
        (output.stdout.as_str(), output.exit.code),
        ("term\n", 5),
        "{output:?}"
    );
}

#[test]
fn init_when_the_program_is_missing_then_said() {
    let root = rootfs();
    let mut spec = spec("");
    process(&mut spec).args = vec!["nothing".into()];
    let create = Create {
        id: "init",
        spec: &spec,
        rootfs: overlay(root.path()),
        cgroup: None,
        stdio: Stdio::Null,
        init: true,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    };
    let mut container = Container::create(create).unwrap();
    assert_eq!(container.start().unwrap_err().exit_code(), 127);
    assert_eq!(wait(container.pid()).code, 127);
}

#[test]
fn time_when_offset_then_the_clock_is() {
    use bulkhead_container::spec::{Namespace, NamespaceKind, TimeOffset};
    let root = rootfs();
    let mut spec = spec("cut -d. -f1 /proc/uptime; cat");
    let linux = spec.linux.as_mut().unwrap();
    linux.namespaces.push(Namespace {
        kind: NamespaceKind::Time,
        path: None,
    });
    linux.time_offsets.insert(
        "boottime".into(),
        TimeOffset {
            secs: 1_000_000,
            nanosecs: 0,
        },
    );
    let (mut container, mut pipes) = create(&spec, overlay(root.path())).unwrap();
    container.start().unwrap();
    // Of programs executed later too.
    let process = crate::spec("cut -d. -f1 /proc/uptime").process.unwrap();
    let (stdio, exec_pipes) = Stdio::pipes().unwrap();
    let exec = container.exec(&process, stdio).unwrap();
    let later = finish(exec.pid(), exec_pipes).stdout;
    for uptime in [read_line(&mut pipes), later] {
        let uptime: u64 = uptime.trim().parse().unwrap();
        assert!(uptime > 1_000_000, "{uptime}");
    }
    finish(container.pid(), pipes);
}

#[test]
fn users_when_mapped_then_root_is_somebody_else_outside() {
    use bulkhead_container::spec::{IdMapping, Namespace, NamespaceKind};
    let root = rootfs();
    let mut spec = confined(
        "id -u; cat /proc/self/uid_map; echo x > /dev/null; touch /tmp/x; cat /proc/self/gid_map | wc -l",
    );
    let linux = spec.linux.as_mut().unwrap();
    linux.namespaces.push(Namespace {
        kind: NamespaceKind::User,
        path: None,
    });
    let mapping = vec![IdMapping {
        container_id: 0,
        host_id: 100_000,
        size: 65_536,
    }];
    (linux.uid_mappings, linux.gid_mappings) = (mapping.clone(), mapping);
    for path in ["", "tmp"] {
        std::os::unix::fs::chown(root.path().join(path), Some(100_000), Some(100_000)).unwrap();
    }
    let text = succeed(&spec, Rootfs::Directory(root.path().into()));
    assert_eq!(
        text.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "100000", "65536", "1"]
    );
    let made = std::fs::metadata(root.path().join("tmp/x")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
    // Over an image it can change everything that is its own.
    std::fs::remove_file(root.path().join("tmp/x")).unwrap();
    let text = succeed(&spec, overlay(root.path()));
    assert!(text.starts_with("0\n"), "{text}");
    assert!(!root.path().join("tmp/x").exists());
}

#[test]
fn namespace_when_joined_then_it_is_the_other_containers() {
    use bulkhead_container::spec::NamespaceKind;
    let root = rootfs();
    let (mut first, pipes) = create(&spec("cat"), overlay(root.path())).unwrap();
    first.start().unwrap();
    let mut second = spec("hostname; cat /proc/1/comm; readlink /proc/self/ns/net");
    second.hostname = None;
    let ns = format!("/proc/{}/ns", first.pid().as_raw_pid());
    for namespace in &mut second.linux.as_mut().unwrap().namespaces {
        namespace.path = match namespace.kind {
            NamespaceKind::Pid => Some(format!("{ns}/pid")),
            NamespaceKind::Uts => Some(format!("{ns}/uts")),
            NamespaceKind::Network => Some(format!("{ns}/net")),
            _ => None,
        };
    }
    let net = std::fs::read_link(format!("{ns}/net")).unwrap();
    assert_eq!(
        succeed(&second, overlay(root.path())),
        format!("box\ncat\n{}\n", net.display())
    );
    first.kill(9).unwrap();
    finish(first.pid(), pipes);
}
