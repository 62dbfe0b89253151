//! The commands that the specification has no word about, as Podman, Docker and containerd use them.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use common::{Runtime, config, wait_for};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

fn output(runtime: &Runtime, arguments: &[&str]) -> (Option<i32>, String) {
    let output = runtime.run(arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text)
}

/// A container that sleeps.
fn sleeping() -> Runtime {
    let runtime = Runtime::new();
    runtime.configure(&config("exec sleep 1000"));
    runtime.succeed(&["run", "--detach", "a"]);
    runtime
}

#[test]
fn run_when_the_program_ends_then_its_code_and_no_container() {
    let runtime = Runtime::new();
    runtime.configure(&config("echo out; exit 3"));
    assert_eq!(output(&runtime, &["run", "a"]), (Some(3), "out\n".into()));
    assert_eq!(output(&runtime, &["list", "--quiet"]).1, "");
    runtime.configure(&config("kill -9 $$"));
    // The first process of its namespace cannot kill itself.
    assert_eq!(output(&runtime, &["run", "a"]).0, Some(0));
    let mut missing = config("");
    missing["process"]["args"] = json!(["/nothing"]);
    runtime.configure(&missing);
    assert_eq!(output(&runtime, &["run", "a"]).0, Some(127));
    assert_eq!(output(&runtime, &["list", "--quiet"]).1, "");
}

#[test]
fn run_when_it_gets_a_signal_then_the_program_does() {
    let runtime = Runtime::new();
    runtime.configure(&config(
        "trap 'exit 9' TERM; echo > /ready; while :; do sleep 0.01; done",
    ));
    let mut child = runtime.command(&["run", "a"]).spawn().unwrap();
    wait_for(|| runtime.inside("ready").exists());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn exec_when_asked_for_in_words_then_so() {
    let runtime = sleeping();
    let exec = |arguments: &[&str]| output(&runtime, &[&["exec"], arguments].concat());
    assert_eq!(exec(&["a", "sh", "-c", "exit 4"]).0, Some(4));
    assert_eq!(exec(&["a", "nothing"]).0, Some(127));
    let options = [
        "--cwd",
        "/tmp",
        "-e",
        "A=b",
        "-e",
        "PATH=/bin:/x",
        "-u",
        "7:8",
    ];
    let show = "echo $PWD $A $PATH $(id -u):$(id -g)";
    let (_, shown) = exec(&[&options[..], &["a", "sh", "-c", show]].concat());
    assert_eq!(shown, "/tmp b /bin:/x 7:8\n");
    let status = [
        "a",
        "sh",
        "-c",
        "while read l; do echo $l; done < /proc/self/status",
    ];
    let (_, status) = exec(&[&["--cap", "CAP_KILL", "--no-new-privs"], &status[..]].concat());
    assert!(status.contains("CapEff: 0000000000000020"), "{status}");
    assert!(status.contains("NoNewPrivs: 1"), "{status}");
}

#[test]
fn exec_when_a_file_says_what_then_that_and_its_number_is_told() {
    let runtime = sleeping();
    let process = json!({"args": ["sh", "-c", "echo here > /output; exec sleep 1000"],
        "cwd": "/tmp", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    let (file, pid) = (runtime.inside("../process.json"), runtime.inside("../pid"));
    fs::write(&file, process.to_string()).unwrap();
    let [file, pid] = [&file, &pid].map(|path| path.to_str().unwrap());
    runtime.succeed(&["exec", "-d", "-p", file, "--pid-file", pid, "a"]);
    wait_for(|| runtime.inside("output").exists());
    let pid = fs::read_to_string(pid).unwrap();
    let (_, listed) = output(&runtime, &["ps", "--format", "json", "a"]);
    let listed: Vec<u32> = serde_json::from_str(&listed).unwrap();
    assert!(listed.contains(&pid.parse().unwrap()), "{listed:?}");
    assert_eq!(listed.len(), 2);
}

/// The descriptor that comes through a console socket.
fn take(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 64];
    let mut parts = [IoSliceMut::new(&mut text)];
    recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().unwrap();
        }
    }
    panic!("no terminal");
}

#[test]
fn terminal_when_a_socket_is_named_then_its_master_comes_through_it() {
    let runtime = Runtime::new();
    let mut with_terminal = config("tty; exec sleep 1000");
    with_terminal["process"]["terminal"] = json!(true);
    runtime.configure(&with_terminal);
    let refused = runtime.fail(&["create", "a"]);
    assert!(refused.contains("--console-socket"), "{refused}");
    let socket = runtime.inside("../console");
    let listener = UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    let read = |master: OwnedFd| {
        let mut shown = [0; 64];
        let length = fs::File::from(master).read(&mut shown).unwrap();
        String::from_utf8_lossy(&shown[..length]).into_owned()
    };
    runtime.succeed(&["create", "--console-socket", socket, "a"]);
    let master = take(&listener);
    runtime.succeed(&["start", "a"]);
    assert!(read(master).starts_with("/dev/pts/0"));
    // The program lost its terminal, and ended or not: another one is executed in another container.
    runtime.configure(&config("exec sleep 1000"));
    runtime.succeed(&["run", "-d", "b"]);
    let words = ["exec", "-d", "-t", "--console-socket", socket, "b", "tty"];
    runtime.succeed(&words);
    assert!(read(take(&listener)).starts_with("/dev/pts/0"));
}

#[test]
fn descriptors_when_they_are_to_be_preserved_then_those_that_are_open_and_no_other() {
    let runtime = Runtime::new();
    runtime.configure(&config(
        "cat <&3; ls /proc/self/fd; echo $LISTEN_FDS $LISTEN_PID",
    ));
    // A shell gives the runtime descriptors 3 and 5.
    let file = runtime.inside("../given");
    fs::write(&file, "given\n").unwrap();
    let through = |options: &str, env: &str| {
        let command = runtime.command(&["run"]);
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let words: Vec<&str> = words.filter_map(|word| word.to_str()).collect();
        let (words, file) = (words.join(" "), file.display());
        let line = format!("exec 3<{file} 5<{file}; {env} {words} {options} a");
        let mut shell = std::process::Command::new("sh");
        let output = shell
            .args(["-c", &line])
            .current_dir(runtime.bundle())
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    // The shell has further ones of its own from 10 on.
    let numbers = |shown: &str| -> Vec<String> {
        let lines = shown
            .lines()
            .filter(|line| line.parse::<u32>().is_ok_and(|n| n < 10));
        lines.map(str::to_owned).collect()
    };
    let shown = through("--preserve-fds 9", "");
    assert!(shown.starts_with("given\n"), "{shown}");
    // 4 is the directory that is listed.
    assert_eq!(numbers(&shown), ["0", "1", "2", "3", "4", "5"], "{shown}");
    let shown = through("--preserve-fds 1", "");
    assert_eq!(numbers(&shown), ["0", "1", "2", "3", "4"], "{shown}");
    let shown = through("", "LISTEN_FDS=1");
    assert!(shown.ends_with("1 1\n"), "{shown}");
}

#[test]
fn list_when_asked_then_table_names_and_json() {
    let runtime = sleeping();
    runtime.configure(&config("true"));
    runtime.succeed(&["create", "b"]);
    assert_eq!(output(&runtime, &["list", "-q"]).1, "a\nb\n");
    let (_, table) = output(&runtime, &["list"]);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    assert_eq!((rows[1][0], rows[1][2]), ("a", "running"));
    assert_eq!((rows[2][0], rows[2][2]), ("b", "created"));
    let (_, text) = output(&runtime, &["list", "--format", "json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(all[0]["id"], "a");
    assert_eq!(all[1]["status"], "created");
}

#[test]
fn container_when_paused_then_it_says_so_and_goes_on_when_resumed() {
    let runtime = sleeping();
    runtime.succeed(&["pause", "a"]);
    assert_eq!(runtime.status("a"), "paused");
    let refused = runtime.fail(&["exec", "a", "true"]);
    assert!(refused.contains("paused"), "{refused}");
    runtime.fail(&["pause", "a"]);
    runtime.succeed(&["resume", "a"]);
    assert_eq!(runtime.status("a"), "running");
    runtime.succeed(&["exec", "a", "true"]);
}

#[test]
fn limits_when_updated_then_the_container_has_them_and_the_figures_say_so() {
    let runtime = sleeping();
    runtime.succeed(&["update", "--memory", "64M", "--pids-limit", "20", "a"]);
    let (_, text) = output(&runtime, &["events", "--stats", "a"]);
    let stats: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(stats["data"]["pids"], json!({"current": 1, "limit": 20}));
    let file = runtime.inside("../resources.json");
    fs::write(&file, json!({"pids": {"limit": 30}}).to_string()).unwrap();
    runtime.succeed(&["update", "--resources", file.to_str().unwrap(), "a"]);
    let (_, text) = output(&runtime, &["events", "--stats", "a"]);
    let stats: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 30);
}

#[test]
fn error_when_there_is_a_log_then_a_line_of_json_in_it() {
    let runtime = Runtime::new();
    let log = runtime.inside("../log");
    let options = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    runtime.fail(&[&options[..], &["state", "nobody"]].concat());
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container nobody does not exist");
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
    let error = runtime.fail(&["--log", "/no/such/place", "list"]);
    assert!(error.contains("/no/such/place"), "{error}");
}

#[test]
fn group_when_systemd_could_not_have_it_then_refused_in_a_sentence() {
    let runtime = Runtime::new();
    let mut config = config("true");
    config["linux"]["cgroupsPath"] = json!("/a/b");
    runtime.configure(&config);
    let error = runtime.fail(&["--systemd-cgroup", "create", "a"]);
    assert!(error.contains("SLICE:PREFIX:NAME"), "{error}");
}

#[test]
fn template_when_written_then_a_container_can_be_made_of_it() {
    let runtime = Runtime::new();
    runtime.succeed(&["spec"]);
    let path = runtime.inside("../config.json");
    let mut written: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    written["process"]["terminal"] = json!(false);
    written["process"]["args"] = json!(["echo", "made"]);
    runtime.configure(&written);
    assert_eq!(output(&runtime, &["run", "a"]), (Some(0), "made\n".into()));
    let again = runtime.fail(&["spec"]);
    assert!(again.contains("config.json"), "{again}");
}

#[test]
fn features_when_asked_for_then_the_specifications_members() {
    let runtime = Runtime::new();
    let features: Value = serde_json::from_str(&output(&runtime, &["features"]).1).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    for pointer in [
        "/hooks/5",
        "/mountOptions/0",
        "/linux/namespaces/0",
        "/linux/capabilities/40",
        "/linux/seccomp/actions/0",
        "/linux/seccomp/operators/0",
        "/linux/seccomp/archs/0",
    ] {
        let member = features.pointer(pointer);
        assert!(member.is_some_and(Value::is_string), "{pointer}");
    }
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
}

#[test]
fn kill_when_of_all_then_those_too_that_outlive_the_first() {
    let runtime = Runtime::new();
    let mut shared = config("sleep 1000 & echo > /ready; read line < /wait");
    let namespaces = shared["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    runtime.configure(&shared);
    let wait = runtime.inside("wait");
    rustix::fs::mkfifoat(rustix::fs::CWD, &wait, rustix::fs::Mode::RWXU).unwrap();
    runtime.succeed(&["run", "-d", "a"]);
    wait_for(|| runtime.inside("ready").exists());
    let (_, listed) = output(&runtime, &["ps", "-f", "json", "a"]);
    let listed: Vec<u32> = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.len(), 2);
    fs::write(wait, "\n").unwrap();
    runtime.await_end("a");
    runtime.succeed(&["kill", "--all", "a", "KILL"]);
    wait_for(|| listed.iter().all(|pid| common::has_ended(&pid.to_string())));
}
