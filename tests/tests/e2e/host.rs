//! Containers from the command line on the host's own kernel: `--isolation container`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use bulkhead_tests::crash::{Life, Random, Tally, Victim};
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::note;
use bulkhead_tests::traces::{Traces, processes_with};
use rustix::process::{Pid, Signal, kill_process};

/// `run --isolation container` with these arguments.
fn run<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--isolation", "container"], arguments].concat()
}

#[test]
fn run_on_the_host_when_the_program_ends_then_its_streams_and_code_are_the_commands() {
    let home = Home::with_busybox();
    let script = "echo out; echo err >&2; cat; id -un; cat /proc/1/comm; exit 3";
    let arguments = run(&["--rm", "-i", "-u", "user", "busybox", "sh", "-c", script]);
    let mut child = home.spawn(&arguments, |command| {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    });
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"in\n").expect("type");
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout, "out\nin\nuser\nsh\n");
    assert_eq!(output.status.code(), Some(3));
    for (code, program) in [(127, "nosuch"), (126, "/etc/passwd"), (137, "kill -9 $$")] {
        let arguments = match code {
            137 => run(&["--rm", "--init", "busybox", "sh", "-c", program]),
            _ => run(&["--rm", "busybox", program]),
        };
        home.expect_code(code, &arguments);
    }
    home.expect_nothing_left();
}

#[test]
fn container_on_the_host_when_it_runs_then_every_command_treats_it_as_any_other() {
    let home = Home::with_busybox();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
    home.expect(&run(&[
        "-d", "--name", "box", "busybox", "sh", "-c", script,
    ]));
    home.wait_until("it has said that it is up", || {
        home.run(&["logs", "box"]).stdout == b"up\n"
    });
    let listed = home.expect(&["ps", "--format", "{{.Names}} {{.Isolation}} {{.State}}"]);
    assert_eq!(listed, "box container running\n");
    assert!(home.expect(&["ps"]).contains("ISOLATION"));
    assert_eq!(home.inspect("box", ".HostConfig.Isolation"), "container");

    let uname = home.expect(&["exec", "box", "cat", "/proc/sys/kernel/osrelease"]);
    let ours = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read");
    assert_eq!(uname, ours, "the kernel is the host's");
    home.expect_code(7, &["exec", "box", "sh", "-c", "exit 7"]);
    home.expect_code(127, &["exec", "box", "nosuch"]);
    // Only its own processes, and only its own loopback, which is up.
    let seen = home.expect(&["exec", "box", "sh", "-c", "ls -d /proc/[0-9]* | wc -l"]);
    assert!(seen.trim().parse::<u32>().expect("a number") <= 6, "{seen}");
    let interfaces = home.expect(&["exec", "box", "cat", "/proc/net/dev"]);
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");

    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("file");
    fs::write(&file, "there and back").expect("write");
    let file = file.to_str().expect("path");
    home.expect(&["cp", file, "box:/tmp/there"]);
    home.expect(&["cp", "box:/tmp/there", &format!("{file}.back")]);
    let back = fs::read_to_string(format!("{file}.back")).expect("read");
    assert_eq!(back, "there and back");

    home.expect(&["rename", "box", "crate"]);
    home.expect(&["stop", "crate"]);
    assert_eq!(home.expect(&["wait", "crate"]), "5\n");
    assert_eq!(home.expect(&["logs", "crate"]), "up\nbye\n");
    // What it wrote to memory is gone, and it can be started again.
    home.expect(&["start", "crate"]);
    home.expect_code(1, &["exec", "crate", "ls", "/tmp/there"]);
    home.expect(&["kill", "crate"]);
    assert_eq!(home.inspect("crate", ".State.ExitCode"), "137");
    home.expect(&["rm", "crate"]);
    home.expect_nothing_left();
}

#[test]
fn api_on_the_host_when_asked_about_the_machine_then_refuses_and_tells_the_truth() {
    let home = Home::with_busybox();
    home.expect(&run(&["-d", "--name", "box", "busybox", "sleep", "100000"]));
    let socket = home.inspect("box", ".Sandbox.ApiSocket");
    let ask = |method: &str, path: &str, body: &str| {
        let mut stream = UnixStream::connect(&socket).expect("connect");
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        answer
    };
    for (method, path, body) in [
        ("PUT", "/v1/clock", r#"{"unix_ns":1}"#),
        ("POST", "/v1/entropy", r#"{"base64":"AAAA"}"#),
        ("GET", "/v1/interfaces", ""),
        ("PUT", "/v1/interfaces/lo", r#"{"up":false}"#),
        ("PUT", "/v1/routes", r#"{"routes":[]}"#),
    ] {
        let answer = ask(method, path, body);
        assert!(
            answer.starts_with("HTTP/1.1 409 "),
            "{method} {path}: {answer}"
        );
    }
    assert!(ask("GET", "/v1/clock", "").starts_with("HTTP/1.1 200 "));
    assert!(ask("GET", "/v1/health", "").contains("\"ok\""));
    // The end of the sandbox is its containers', and not the host's.
    assert!(ask("POST", "/v1/shutdown", r#"{"grace_ms":0}"#).starts_with("HTTP/1.1 202 "));
    assert_eq!(home.expect(&["wait", "box"]), "137\n");
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
}

#[test]
fn container_on_the_host_when_limited_then_held_to_it_counted_and_paused() {
    let home = Home::with_busybox();
    let limits = ["--memory", "16M", "--pids-limit", "20", "--cpus", "0.5"];
    let run = [&run(&["-d", "--name", "box"])[..], &limits, &["busybox"]].concat();
    let script = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done";
    home.expect(&[&run[..], &["sh", "-c", script]].concat());
    let eats = "dd if=/dev/zero of=/dev/null bs=60M count=1";
    let killed = home.run(&["exec", "box", "sh", "-c", eats]);
    assert!(!killed.status.success(), "{killed:?}");
    let stats = home.expect(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.MemUsage}} {{.PIDs}}",
        "box",
    ]);
    assert!(stats.contains("/ 16MiB"), "{stats}");
    let top = home.expect(&["top", "box"]);
    assert!(top.contains("sh -c i=0"), "{top}");
    let forks = "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done; echo all";
    let (out, _) = home.expect_code(2, &["exec", "box", "sh", "-c", forks]);
    assert!(!out.contains("all"), "{out}");
    home.expect(&["pause", "box"]);
    assert_eq!(home.inspect("box", ".State.Status"), "paused");
    home.expect_code(125, &["exec", "box", "true"]);
    home.expect(&["unpause", "box"]);
    home.expect(&["rm", "--force", "box"]);
    home.expect_nothing_left();
}

#[test]
fn volumes_on_the_host_when_shared_then_both_sides_see_what_the_other_writes() {
    let home = Home::with_busybox();
    let before = Traces::now();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().display();
    let (writable, readable) = (format!("{path}:/w"), format!("{path}:/r:ro"));
    let script = "echo in > /w/file; cat /r/file; echo x > /r/file";
    let arguments = run(&["--rm", "-v", &writable, "-v", &readable, "busybox"]);
    let (out, err) = home.expect_code(1, &[&arguments[..], &["sh", "-c", script]].concat());
    assert_eq!(out, "in\n");
    assert!(err.contains("Read-only file system"), "{err}");
    let written = fs::read_to_string(folder.path().join("file")).expect("file");
    assert_eq!(written, "in\n");
    // A volume keeps what one container wrote for the next one.
    for (script, said) in [("echo kept > /v/a", ""), ("cat /v/a", "kept\n")] {
        let arguments = run(&["--rm", "-v", "vol:/v", "busybox", "sh", "-c", script]);
        assert_eq!(home.expect(&arguments), said);
    }
    // What is on a disk outlives a stop, and is seen by nobody else.
    let arguments = ["--name", "box", "--storage", "8M", "busybox", "sh", "-c"];
    home.expect(&[&run(&arguments)[..], &["cat /kept; echo 1 >> /kept; true"]].concat());
    assert_eq!(home.expect(&["start", "--attach", "box"]), "1\n");
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
    before.expect_gone();
}

#[test]
fn volume_that_is_a_disk_when_on_the_host_then_its_containers_share_it() {
    let home = Home::with_busybox();
    let before = Traces::now();
    let volume = home.root().join("volumes/vol");
    fs::create_dir_all(&volume).expect("folder");
    // As one is that was first used where there is no file server.
    let disk = volume.join("disk.ext4");
    let made = fs::File::create(&disk).and_then(|file| file.set_len(16 << 20));
    made.expect("disk");
    let contents = tempfile::tempdir().expect("folder");
    fs::create_dir(contents.path().join("_data")).expect("folder");
    let mkfs = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .args([contents.path(), &disk])
        .status();
    assert!(mkfs.expect("mkfs.ext4, of e2fsprogs").success());
    let arguments = [
        "-d", "--name", "box", "-v", "vol:/v", "busybox", "sleep", "100000",
    ];
    home.expect(&run(&arguments));
    let both = "echo both > /v/file";
    home.expect(&run(&["--rm", "-v", "vol:/v", "busybox", "sh", "-c", both]));
    assert_eq!(home.expect(&["exec", "box", "cat", "/v/file"]), "both\n");
    home.expect(&["rm", "--force", "box"]);
    let again = run(&["--rm", "-v", "vol:/v", "busybox", "cat", "/v/file"]);
    assert_eq!(home.expect(&again), "both\n");
    home.expect_nothing_left();
    before.expect_gone();
}

#[test]
fn containers_on_the_host_when_started_one_after_the_other_and_at_once_then_none_fails_or_leaks() {
    let home = Home::with_busybox();
    // What all of them share is made by the first.
    home.expect(&run(&["--rm", "busybox", "true"]));
    let before = Traces::now();
    for _ in 0..300 {
        home.expect(&run(&["--rm", "busybox", "true"]));
    }
    let children: Vec<_> = (0..50)
        .map(|n| {
            let script = format!("echo {n}; exit {n}");
            home.spawn(&run(&["--rm", "busybox", "sh", "-c", &script]), |command| {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            })
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("wait");
        let said = String::from_utf8_lossy(&output.stdout);
        let code = output.status.code();
        assert_eq!(
            (said.trim_end(), code),
            (&*n.to_string(), i32::try_from(n).ok()),
            "{output:?}"
        );
    }
    home.expect_nothing_left();
    before.expect_gone();
}

#[test]
fn monitor_on_the_host_when_killed_then_its_container_goes_and_the_next_command_cleans_up() {
    let home = Home::with_busybox();
    let before = Traces::now();
    let word = &*format!("31415.{}", std::process::id());
    home.expect(&run(&["-d", "--name", "box", "busybox", "sleep", word]));
    assert_eq!(processes_with(word).len(), 1);
    let monitor = home.inspect("box", ".State.MonitorPid");
    let monitor = monitor.parse().ok().and_then(Pid::from_raw).expect("pid");
    kill_process(monitor, Signal::KILL).expect("kill");
    // Without any command's help.
    home.wait_until("the container has ended", || {
        processes_with(word).is_empty()
    });
    assert_eq!(home.inspect("box", ".State.ExitCode"), "255");
    home.expect(&["start", "box"]);
    home.expect(&["kill", "box"]);
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
    before.expect_gone();
}

#[test]
fn anything_on_the_host_when_killed_at_any_moment_then_the_next_command_works_and_nothing_is_left()
{
    let home = Home::with_busybox();
    let word = &*format!("27182.{}", std::process::id());
    let service = format!("trap 'exit 0' TERM; echo up; sleep {word} & wait");
    let attached = run(&["--rm", "--name", "box", "busybox", "echo", "hello"]);
    let detached = run(&[
        "-d", "--name", "box", "--memory", "64M", "busybox", "sh", "-c", &service,
    ]);
    let stored = run(&[
        "-d",
        "--name",
        "box",
        "--storage",
        "8M",
        "busybox",
        "sh",
        "-c",
        &service,
    ]);
    let lives = [
        Life(&[&attached]),
        Life(&[
            &detached,
            &["exec", "box", "echo", "hello"],
            &["pause", "box"],
            &["unpause", "box"],
            &["stop", "--time", "1", "box"],
            &["rm", "box"],
        ]),
        Life(&[
            &stored,
            &["kill", "box"],
            &["start", "box"],
            &["rm", "-f", "box"],
        ]),
    ];
    let lives = lives.map(|life| (life, life.measure(&home)));
    let before = Traces::now();
    let mut random = Random::new("anything_on_the_host_when_killed");
    let mut tally = Tally::default();
    while tally.kills() < 25 {
        let (life, whole) = lives[random.below(lives.len())];
        let victim = [Victim::Command, Victim::Monitor][random.below(2)];
        let step = life.live(&home, Some((victim, random.part_of(whole))));
        tally.count(victim, life, step);
        home.expect(&["ps", "--all"]);
        home.expect(&["rm", "--force", "box"]);
        home.expect_nothing_left();
        home.wait_until("no program is left", || processes_with(word).is_empty());
    }
    note(&format!("killed: {tally}"));
    before.expect_gone();
}

/// Ways to the host's devices that the container crate alone does not close: they are in how the engine uses it.
#[test]
fn container_on_the_host_when_hostile_then_it_finds_no_way_to_the_hosts_devices() {
    let home = Home::with_busybox();
    // A device that is in a folder, as a guest could have made it there, and one that is asked for.
    let folder = tempfile::tempdir().expect("folder");
    let node = folder.path().join("node");
    let kind = rustix::fs::FileType::CharacterDevice;
    let number = rustix::fs::makedev(1, 7);
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, 0o666.into(), number).expect("mknod");
    let (folder, node) = (folder.path().display(), node.display());
    let read = "head -c 1 /given/node | wc -c; head -c 1 /node | wc -c";
    let (given, named) = (format!("{folder}:/given"), format!("{node}:/node"));
    let volumes = ["--rm", "-v", &given, "-v", &named];
    let program = ["busybox", "sh", "-c", read];
    let output = home.expect(&run(&[&volumes[..], &program].concat()));
    assert_eq!(output, "0\n1\n");

    // All devices, for who may mount. A disk could be that of its own image.
    let mount = "mkdir -p /tmp/dev; mount -t devtmpfs none /tmp/dev && head -c 1 /tmp/dev/kvm 2>&1";
    let program = ["busybox", "sh", "-c", mount];
    let admin = ["--rm", "--cap-add", "SYS_ADMIN"];
    let output = home.run(&run(&[&admin[..], &program].concat()));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Operation not permitted"), "{output:?}");
    home.expect_nothing_left();
}
