//! Containers from the command line, each in a microVM of its own.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use bulkhead_tests::home::Home;
use bulkhead_tests::lane::Lane;

#[test]
fn run_when_the_program_ends_then_its_streams_and_code_are_the_commands() {
    let home = Home::with_busybox();
    let script = "echo out; echo err >&2; cat; id -un; cat /proc/1/comm; exit 3";
    let mut run = home.spawn(
        &[
            "run", "--rm", "-i", "-u", "user", "busybox", "sh", "-c", script,
        ],
        |command| {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        },
    );
    // Typed before there is anybody to read it, and then the end.
    run.stdin
        .take()
        .expect("stdin")
        .write_all(b"in\n")
        .expect("type");
    let output = run.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "out\nin\nuser\nsh\n"
    );
    assert_eq!(output.status.code(), Some(3));
    home.expect_nothing_left();
}

#[test]
fn run_when_the_program_is_not_there_or_no_program_then_127_and_126() {
    let home = Home::with_busybox();
    for (code, program) in [(127, "nosuch"), (126, "/etc/passwd")] {
        let (stdout, stderr) = home.expect_code(code, &["run", "--rm", "busybox", program]);
        assert_eq!(stdout, "");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("bulkhead: "), "{stderr}");
    }
    home.expect_nothing_left();
}

#[test]
fn run_when_read_only_then_the_container_still_knows_its_name() {
    let home = Home::with_busybox();
    let script = "cat /etc/hostname /etc/hosts; ls /etc; (echo x > /etc/hosts) 2>&1";
    let run = ["run", "--rm", "--read-only", "--hostname", "web.example"];
    let run = [&run[..], &["busybox", "sh", "-c", script]].concat();
    let (stdout, _) = home.expect_code(1, &run);
    let (hosts, rest) = stdout
        .split_once("127.0.0.1\tweb.example web\n")
        .expect("its own address");
    assert!(hosts.starts_with("web.example\n127.0.0.1\tlocalhost\n::1\tlocalhost "));
    assert!(
        rest.starts_with("group\nhostname\nhosts\npasswd\n")
            && rest.ends_with("Read-only file system\n"),
        "{rest}"
    );
    home.expect_nothing_left();
}

#[test]
fn run_when_told_nonsense_then_one_sentence_and_125_and_no_container() {
    let home = Home::with_busybox();
    for arguments in [
        &["busybox@sha256:1"][..],
        &["--pull", "never", "no/such/image"],
        &["--memory", "1M", "busybox"],
        &["--name", "a/b", "busybox"],
        &["--workdir", "relative", "busybox"],
        &["--cap-add", "FLY", "busybox"],
        &["--volume", "/:/", "busybox"],
        &["--volume", "/host", "busybox"],
        &["--mount", "type=bind,src=/a,dst=/b,y=1", "busybox"],
        &["--entrypoint", "", "busybox"],
    ] {
        let (_, stderr) = home.expect_code(125, &[&["run"], arguments].concat());
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("bulkhead: "), "{arguments:?}: {stderr}");
    }
    for arguments in [
        &["exec", "nosuch", "true"][..],
        &["stop", "nosuch"],
        &["rm", "nosuch"],
        &["logs", "../../etc"],
        &["inspect", "nosuch"],
        &["rmi", "nosuch"],
    ] {
        let (_, stderr) = home.expect_code(125, arguments);
        assert!(
            stderr.contains("no such container") || stderr.contains("there is no"),
            "{stderr}"
        );
    }
    home.expect_nothing_left();
}

#[test]
fn container_when_it_is_up_can_be_asked_fed_held_and_stopped() {
    let home = Home::with_busybox();
    let script = "echo begun; trap 'echo over >&2; exit 7' TERM; while :; do sleep 1; done";
    let id = home.expect(&[
        "run",
        "-d",
        "--name",
        "box",
        "--label",
        "tier=front",
        "-e",
        "COLOUR=blue",
        "-w",
        "/tmp",
        "--hostname",
        "hull",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let id = id.trim_end();

    let exec = |code, script: &str| home.expect_code(code, &["exec", "box", "sh", "-c", script]);
    assert_eq!(
        exec(0, "hostname; pwd; echo $COLOUR").0,
        "hull\n/tmp\nblue\n"
    );
    assert_eq!(exec(3, "exit 3").0, "");
    assert_eq!(home.expect_code(127, &["exec", "box", "nosuch"]).0, "");
    assert_eq!(home.expect_code(126, &["exec", "box", "/etc"]).0, "");
    let uid = home.expect(&[
        "exec",
        "-u",
        "1000",
        "-e",
        "X=1",
        "box",
        "sh",
        "-c",
        "id -u; echo $X",
    ]);
    assert_eq!(uid, "1000\n1\n");

    let ids = home.expect(&[
        "ps",
        "--quiet",
        "--no-trunc",
        "--filter",
        "label=tier=front",
    ]);
    assert_eq!(ids.trim_end(), id);
    assert_eq!(home.inspect("box", ".State.Status"), "running");
    assert!(home.expect(&["top", "box"]).contains("sh -c"));
    let stats = home.expect(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.PIDs}}",
        "box",
    ]);
    assert!(stats.starts_with("box "), "{stats}");

    files_go_in_and_come_out(&home);
    input_of_an_exec_comes_back_whole(&home);

    home.expect(&["pause", "box"]);
    assert_eq!(home.inspect("box", ".State.Status"), "paused");
    home.expect_code(125, &["exec", "box", "true"]);
    home.expect(&["unpause", "box"]);

    home.expect(&["rename", "box", "chest"]);
    home.expect_code(125, &["inspect", "box"]);
    home.expect_code(125, &["rm", "chest"]);
    let waiting = home.spawn(&["wait", "chest"], |command| {
        command.stdout(Stdio::piped());
    });
    let following = home.spawn(&["logs", "--follow", "chest"], |command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    });
    home.expect(&["stop", "--time", "-1", "chest"]);
    let waited = waiting.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&waited.stdout), "7\n");
    let followed = following.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&followed.stdout), "begun\n");
    assert_eq!(String::from_utf8_lossy(&followed.stderr), "over\n");
    assert_eq!(home.inspect("chest", ".State.ExitCode"), "7");

    // Once more: its log goes on, and SIGKILL is what ends it.
    home.expect(&["start", "chest"]);
    home.expect(&["kill", "chest"]);
    home.wait_for("chest", ".State.ExitCode", "137");
    let (stdout, _) = home.expect_code(0, &["logs", "--timestamps", "chest"]);
    assert!(stdout.contains("Z begun\n"), "{stdout}");
    home.expect(&["rm", "chest"]);
    home.expect_nothing_left();
}

fn files_go_in_and_come_out(home: &Home) {
    let dir = tempfile::tempdir().expect("folder");
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::create_dir(path("in")).expect("folder");
    fs::write(path("in/file"), "hello").expect("file");
    std::os::unix::fs::symlink("file", path("in/link")).expect("link");
    home.expect(&["cp", &path("in"), "box:/tmp"]);
    home.expect(&["cp", &path("in/file"), "box:/tmp/in/other"]);
    let listed = home.expect(&["exec", "box", "cat", "in/link", "in/other"]);
    assert_eq!(listed, "hellohello");
    home.expect(&["cp", "box:/tmp/in", &path("out")]);
    assert_eq!(fs::read(path("out/link")).expect("read"), b"hello");
    assert_eq!(fs::read(path("out/other")).expect("read"), b"hello");
    home.expect_code(125, &["cp", "box:/no/such", &path("nothing")]);
}

fn input_of_an_exec_comes_back_whole(home: &Home) {
    let data: Vec<u8> = (0..Lane::pick(1 << 20, 16 << 20))
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut exec = home.spawn(&["exec", "-i", "box", "cat"], |command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    });
    let mut stdin = exec.stdin.take().expect("stdin");
    let sent = data.clone();
    let sending = std::thread::spawn(move || stdin.write_all(&sent));
    let output = exec.wait_with_output().expect("wait");
    sending.join().expect("thread").expect("send");
    assert!(output.status.success());
    assert!(
        output.stdout == data,
        "{} bytes came back of {}",
        output.stdout.len(),
        data.len()
    );
}

#[test]
fn storage_when_it_is_a_disk_then_it_outlives_the_machine() {
    let home = Home::with_busybox();
    let script = "cat /kept || date > /kept";
    home.expect(&[
        "run",
        "--name",
        "disk",
        "--storage",
        "64M",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let (stdout, _) = home.expect_code(0, &["start", "--attach", "disk"]);
    assert!(stdout.contains(':'), "{stdout}");
    home.expect(&["rm", "disk"]);
    home.expect_nothing_left();
}
