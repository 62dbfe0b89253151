//! Containers through the API, on this machine's kernel: programs, streams and files, without a VM and
//! without control groups. Needs root and busybox-static.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bulkhead_protocol::frame::Kind;
use common::{Agent, Brought, Stream, read_head};
use serde_json::{Value, json};

/// What the containers are made of, and an agent.
struct World {
    agent: Agent,
}

fn world() -> World {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "making containers takes root");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .expect("busybox, of the package busybox-static");
    let agent = Agent::start();
    let root = agent.dir.path().join("rootfs");
    for folder in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(folder)).expect("mkdir");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    for applet in [
        "cat", "chmod", "cut", "ln", "mkdir", "dd", "echo", "head", "kill", "ls", "md5sum",
        "printf", "seq", "sh", "sleep", "stat", "stty", "tee", "test", "true", "trap", "wc", "yes",
    ] {
        symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    fs::write(root.join("etc/greeting"), "hello\n").expect("write");
    World { agent }
}

fn process(args: &[&str]) -> Value {
    json!({"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
}

impl World {
    fn create(&self, id: &str, args: &[&str]) -> Value {
        self.create_with(id, args, |_| {})
    }

    fn create_with(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Value {
        let mut wanted = self.wanted(id, args);
        change(&mut wanted);
        self.agent.must("POST", "/v1/containers", &wanted)
    }

    fn wanted(&self, id: &str, args: &[&str]) -> Value {
        json!({
            "id": id,
            "rootfs": {"lower": {"directory": self.agent.dir.path().join("rootfs")}},
            "spec": {
                "ociVersion": "1.2.0",
                "process": process(args),
                "root": {"path": "rootfs"},
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                    {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                     "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
                ],
                "linux": {"namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
                ]},
            },
        })
    }

    /// A running container to execute programs in.
    fn running(&self, id: &str) {
        self.create(id, &["sleep", "1000"]);
        self.agent
            .must("POST", &format!("/v1/containers/{id}/start"), &Value::Null);
    }

    fn exec(&self, id: &str, args: &[&str], stdin: bool) -> Stream {
        let wanted = json!({"process": process(args), "stdin": stdin});
        self.agent
            .upgrade(&format!("/v1/containers/{id}/exec"), &wanted)
    }

    fn sh(&self, id: &str, script: &str) -> Brought {
        self.exec(id, &["sh", "-c", script], false).read_to_end()
    }
}

#[test]
fn container_when_attached_and_started_then_its_output_and_its_end_arrive() {
    let world = world();
    let agent = &world.agent;
    let script = "echo out; echo err >&2; exit 3";
    let state = world.create("web", &["sh", "-c", script]);
    assert_eq!(
        (&state["status"], &state["id"]),
        (&json!("created"), &json!("web"))
    );
    assert!(state["pid"].as_u64().expect("pid") > 1);
    let mut both = agent.upgrade("/v1/containers/web/attach", &Value::Null);
    let mut only_err = agent.upgrade("/v1/containers/web/attach?stdout=false", &Value::Null);
    agent.must("POST", "/v1/containers/web/start", &Value::Null);
    let brought = both.read_to_end();
    assert_eq!(
        (brought.out().as_str(), &brought.stderr[..]),
        ("out\n", &b"err\n"[..])
    );
    assert_eq!(brought.code(), 3);
    let brought = only_err.read_to_end();
    assert_eq!(
        (brought.out().as_str(), &brought.stderr[..]),
        ("", &b"err\n"[..])
    );
    let exit = agent.must("GET", "/v1/containers/web/wait", &Value::Null);
    assert_eq!(exit["code"], 3);
    let state = agent.must("GET", "/v1/containers/web", &Value::Null);
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&json!("stopped"), &json!(0))
    );
    assert!(state["finished_ns"].as_u64() >= state["started_ns"].as_u64());
    agent.must("DELETE", "/v1/containers/web", &Value::Null);
    assert_eq!(agent.ask("GET", "/v1/containers/web", &Value::Null).0, 404);
}

#[test]
fn start_when_asked_for_in_a_stream_then_told_there_and_once() {
    let world = world();
    let agent = &world.agent;
    world.create("a", &["sh", "-c", "echo out"]);
    let mut starts = agent.upgrade("/v1/containers/a/attach", &Value::Null);
    let mut looks_on = agent.upgrade("/v1/containers/a/attach", &Value::Null);
    starts.send(Kind::Start, b"");
    let (started, seen) = (starts.read_to_end(), looks_on.read_to_end());
    assert_eq!((started.out(), started.code()), ("out\n".to_owned(), 0));
    assert_eq!((started.started, seen.started), (true, false));
    // What comes behind it counts as well, and who cannot be started is told how that ended.
    world.create_with("b", &["cat"], |wanted| wanted["stdin"] = json!(true));
    let mut starts = agent.upgrade("/v1/containers/b/attach?stdin=true", &Value::Null);
    starts.send(Kind::Start, b"");
    starts.send(Kind::Stdin, b"in");
    starts.send(Kind::Stdin, b"");
    let brought = starts.read_to_end();
    assert_eq!((brought.out(), brought.code()), ("in".to_owned(), 0));
    world.create("c", &["/bin/nothing"]);
    let mut starts = agent.upgrade("/v1/containers/c/attach", &Value::Null);
    starts.send(Kind::Start, b"");
    let brought = starts.read_to_end();
    assert_eq!((brought.code(), brought.started), (127, false));
    assert!(brought.error.expect("reason").contains("/bin/nothing"));
    world.running("d");
    for mut late in [
        agent.upgrade("/v1/containers/d/attach", &Value::Null),
        world.exec("d", &["cat"], true),
    ] {
        late.send(Kind::Start, b"");
        let brought = late.read_to_end();
        assert!(brought.error.is_some() && brought.exit.is_none());
    }
}

#[test]
fn output_when_nobody_was_there_then_kept_for_who_comes() {
    let world = world();
    let agent = &world.agent;
    world.create("a", &["sh", "-c", "seq 1 1000"]);
    agent.must("POST", "/v1/containers/a/start", &Value::Null);
    agent.must("GET", "/v1/containers/a/wait", &Value::Null);
    let brought = agent
        .upgrade("/v1/containers/a/attach", &Value::Null)
        .read_to_end();
    assert_eq!((brought.out().lines().count(), brought.code()), (1000, 0));
}

#[test]
fn output_when_several_are_attached_then_each_has_all_of_it() {
    let world = world();
    let agent = &world.agent;
    world.create("a", &["sh", "-c", "seq 1 200000"]);
    let streams: Vec<_> = (0..3)
        .map(|_| agent.upgrade("/v1/containers/a/attach", &Value::Null))
        .collect();
    agent.must("POST", "/v1/containers/a/start", &Value::Null);
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut s| std::thread::spawn(move || s.read_to_end()))
        .collect();
    let wanted: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    for reader in readers {
        let brought = reader.join().expect("reader");
        assert!(brought.out() == wanted && brought.code() == 0);
    }
}

#[test]
fn start_when_there_is_no_such_program_then_refused_and_the_end_is_127() {
    let world = world();
    let agent = &world.agent;
    for (id, program, code) in [("a", "/bin/nothing", 127), ("b", "/etc/greeting", 126)] {
        world.create(id, &[program]);
        let mut attached = agent.upgrade(&format!("/v1/containers/{id}/attach"), &Value::Null);
        let (status, error) =
            agent.ask("POST", &format!("/v1/containers/{id}/start"), &Value::Null);
        assert_eq!((status, &error["code"]), (422, &json!("unprocessable")));
        assert!(
            error["message"].as_str().expect("text").contains(program),
            "{error}"
        );
        let brought = attached.read_to_end();
        assert_eq!(brought.code(), code);
        assert!(brought.error.expect("reason").contains(program));
        let exit = agent.must("GET", &format!("/v1/containers/{id}/wait"), &Value::Null);
        assert_eq!(exit["code"], code);
    }
}

#[test]
fn configuration_when_it_cannot_be_then_422_names_the_field_and_nothing_is_left() {
    let world = world();
    let agent = &world.agent;
    let mut wanted = world.wanted("a", &["true"]);
    wanted["spec"]["process"]["cwd"] = json!("relative");
    let (status, error) = agent.ask("POST", "/v1/containers", &wanted);
    assert_eq!(status, 422, "{error}");
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("process.cwd"),
        "{error}"
    );
    wanted = world.wanted("a", &["true"]);
    wanted["rootfs"]["lower"] = json!({"serial": "nowhere"});
    let (status, error) = agent.ask("POST", "/v1/containers", &wanted);
    assert_eq!(status, 422);
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("rootfs.lower.serial"),
        "{error}"
    );
    for bad in ["", "..", "a/b", "-a"] {
        let (status, _) = agent.ask("POST", "/v1/containers", &world.wanted(bad, &["true"]));
        assert_eq!(status, 422);
    }
    let list = agent.must("GET", "/v1/containers", &Value::Null);
    assert_eq!(list["containers"], json!([]));
    world.create("a", &["true"]);
    let (status, error) = agent.ask("POST", "/v1/containers", &world.wanted("a", &["true"]));
    assert_eq!((status, &error["code"]), (409, &json!("conflict")));
}

#[test]
fn exec_when_streamed_then_its_output_code_and_reason() {
    let world = world();
    world.running("a");
    let brought = world.sh("a", "echo $((6*7)); echo no >&2; exit 42");
    assert_eq!((brought.out().as_str(), brought.code()), ("42\n", 42));
    assert_eq!(brought.stderr, b"no\n");
    let brought = world.exec("a", &["nothing"], false).read_to_end();
    assert_eq!(brought.code(), 127);
    assert!(brought.error.expect("reason").contains("nothing"));
    let brought = world.exec("a", &["/etc/greeting"], false).read_to_end();
    assert_eq!(brought.code(), 126);
    let brought = world.sh("a", "kill -9 $$");
    let exit = brought.exit.expect("exit");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    // A child that goes on holds nobody up.
    assert_eq!(world.sh("a", "echo before; sleep 500 & exit 7").code(), 7);
}

#[test]
fn exec_when_detached_then_can_be_waited_for_and_killed() {
    let world = world();
    let agent = &world.agent;
    world.running("a");
    let wanted = json!({"process": process(&["sleep", "500"])});
    let exec = agent.must("POST", "/v1/containers/a/exec", &wanted);
    let id = exec["exec_id"].as_str().expect("id").to_owned();
    assert!(exec["pid"].as_u64().expect("pid") > 1);
    let path = format!("/v1/containers/a/execs/{id}");
    assert_eq!(agent.must("GET", &path, &Value::Null)["exit"], Value::Null);
    let mut waiting = agent.connect();
    let request = format!("GET {path}/wait HTTP/1.0\r\n\r\n");
    waiting.write_all(request.as_bytes()).expect("request");
    waiting.shutdown(Shutdown::Write).expect("half-close");
    agent.must("POST", &format!("{path}/kill"), &json!({"signal": 15}));
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("answer");
    assert!(answer.contains("\"code\":143,\"signal\":15"), "{answer}");
    assert_eq!(agent.must("GET", &path, &Value::Null)["exit"]["code"], 143);
    let (status, _) = agent.ask("POST", &format!("{path}/kill"), &json!({"signal": 15}));
    assert_eq!(status, 409);
    let wanted = json!({"process": process(&["nothing"])});
    assert_eq!(agent.ask("POST", "/v1/containers/a/exec", &wanted).0, 422);
}

#[test]
fn stdin_when_ended_by_a_frame_or_by_the_socket_then_the_program_sees_the_end() {
    let world = world();
    world.running("a");
    let mut stream = world.exec("a", &["cat"], true);
    stream.send(Kind::Stdin, b"by a frame");
    stream.send(Kind::Stdin, b"");
    let brought = stream.read_to_end();
    assert_eq!((brought.out().as_str(), brought.code()), ("by a frame", 0));
    let mut stream = world.exec("a", &["cat"], true);
    stream.send(Kind::Stdin, b"by the socket");
    stream.socket.shutdown(Shutdown::Write).expect("half-close");
    let brought = stream.read_to_end();
    assert_eq!(
        (brought.out().as_str(), brought.code()),
        ("by the socket", 0)
    );
    let mut stream = world.exec("a", &["cat"], false);
    assert_eq!(stream.read_to_end().code(), 0);
    // A program that does not read its input ends all the same, however much there is of it.
    let mut stream = world.exec("a", &["true"], true);
    let _ = stream.socket.write_all(&bulkhead_protocol::frame::encode(
        Kind::Stdin,
        &[0; 200_000],
    ));
    assert_eq!(stream.read_to_end().code(), 0);
}

#[test]
fn data_when_much_goes_through_a_program_then_whole() {
    let world = world();
    world.running("a");
    let data: Vec<u8> = (0..32u32 << 20)
        .map(|n| (n ^ n >> 9 ^ n >> 17) as u8)
        .collect();
    let mut stream = world.exec("a", &["cat"], true);
    let mut writer = Stream {
        socket: stream.socket.try_clone().expect("clone"),
        exec: String::new(),
    };
    let sent = data.clone();
    let writer = std::thread::spawn(move || {
        for piece in sent.chunks(1 << 20) {
            writer.send(Kind::Stdin, piece);
        }
        writer.send(Kind::Stdin, b"");
    });
    let brought = stream.read_to_end();
    writer.join().expect("writer");
    assert!(brought.stdout == data, "{} bytes", brought.stdout.len());
    assert_eq!(brought.code(), 0);
}

#[test]
fn clients_when_they_stall_then_others_go_on_and_the_agent_stays_small() {
    let world = world();
    world.running("a");
    // One that does not read, and one whose program does not.
    let _silent: Vec<_> = (0..8).map(|_| world.exec("a", &["yes"], false)).collect();
    let mut stuffed = world.exec("a", &["sleep", "500"], true);
    stuffed.socket.set_nonblocking(true).expect("nonblocking");
    let frame = bulkhead_protocol::frame::encode(Kind::Stdin, &[0; 1 << 20]);
    while stuffed.socket.write(&frame).is_ok() {}
    for n in 0..5 {
        let brought = world.sh("a", &format!("echo {n}"));
        assert_eq!((brought.out(), brought.code()), (format!("{n}\n"), 0));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", world.agent.process.id()));
    let status = status.expect("status");
    let resident = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib: u64 = resident
        .and_then(|r| r.trim().strip_suffix(" kB")?.parse().ok())
        .expect("RssAnon");
    assert!(kib < 8 << 10, "{kib} KiB");
}

#[test]
fn client_when_it_stalls_then_let_go_unless_it_keeps_the_output() {
    let world = world();
    let agent = &world.agent;
    let wanted = 4 << 20;
    for keeps in [false, true] {
        let id = if keeps { "kept" } else { "lost" };
        world.create(id, &["sh", "-c", &format!("yes | head -c {wanted}")]);
        let path = format!("/v1/containers/{id}/attach");
        let mut slow = agent.upgrade(&format!("{path}?keeps={keeps}"), &Value::Null);
        let mut other = agent.upgrade(&path, &Value::Null);
        agent.must("POST", &format!("/v1/containers/{id}/start"), &Value::Null);
        let reader = std::thread::spawn(move || other.read_to_end());
        // Longer than anybody is waited for.
        std::thread::sleep(std::time::Duration::from_secs(12));
        // With the headers of frames, of which the last may be cut off.
        let mut all_of_it = Vec::new();
        slow.socket.read_to_end(&mut all_of_it).expect("read");
        assert_eq!(reader.join().expect("reader").stdout.len(), wanted);
        assert_eq!(all_of_it.len() > wanted, keeps, "{}", all_of_it.len());
    }
}

#[test]
fn client_when_it_leaves_then_its_program_is_hung_up_and_an_attached_one_goes_on() {
    let world = world();
    let agent = &world.agent;
    world.running("a");
    let stream = world.exec("a", &["yes"], false);
    let path = format!("/v1/containers/a/execs/{}/wait", stream.exec);
    drop(stream);
    let exit = agent.must("GET", &path, &Value::Null);
    assert_eq!(exit["signal"], 13);
    let mut wanted = world.wanted("b", &["cat"]);
    wanted["stdin"] = json!(true);
    agent.must("POST", "/v1/containers", &wanted);
    agent.must("POST", "/v1/containers/b/start", &Value::Null);
    for _ in 0..3 {
        let mut stream = agent.upgrade("/v1/containers/b/attach?stdin=true", &Value::Null);
        stream.send(Kind::Stdin, b"again\n");
        assert_eq!(stream.read_until(|b| b.stdout.len() == 6).out(), "again\n");
    }
    let mut stream = agent.upgrade("/v1/containers/b/attach?stdin=true", &Value::Null);
    stream.send(Kind::Stdin, b"");
    assert_eq!(stream.read_to_end().code(), 0);
}

#[test]
fn terminal_when_asked_for_then_sized_resized_and_ended() {
    let world = world();
    let agent = &world.agent;
    world.running("a");
    let mut process = process(&["sh", "-c", "stty size; read x; stty size; read y; exit 5"]);
    process["terminal"] = json!(true);
    let wanted = json!({"process": process, "terminal": {"rows": 30, "columns": 100}});
    let mut stream = agent.upgrade("/v1/containers/a/exec", &wanted);
    let first = stream.read_until(|b| b.out().contains("\r\n"));
    assert_eq!(first.out(), "30 100\r\n");
    stream.send(Kind::Resize, br#"{"rows":40,"columns":120}"#);
    stream.send(Kind::Stdin, b"x\n");
    let second = stream.read_until(|b| b.out().contains("40 120\r\n"));
    assert!(second.stderr.is_empty());
    let path = format!("/v1/containers/a/execs/{}/resize", stream.exec);
    agent.must("POST", &path, &json!({"rows": 1, "columns": 2}));
    // The end of the input is a character here.
    stream.send(Kind::Stdin, b"");
    assert_eq!(stream.read_to_end().code(), 5);
    assert_eq!(
        agent
            .ask("POST", &path, &json!({"rows": 1, "columns": 2}))
            .0,
        409
    );
}

#[test]
fn stream_when_broken_then_refused_and_the_others_live() {
    let world = world();
    world.running("a");
    for broken in [
        &b"\x09\0\0\0\0\0\0\0"[..],
        b"\0\0\x01\0\0\0\0\0",
        b"\x01\0\0\0\0\0\0\x01x",
        b"\x05\0\0\0\0\0\0\x01{",
    ] {
        let mut stream = world.exec("a", &["cat"], true);
        stream.socket.write_all(broken).expect("write");
        let brought = stream.read_to_end();
        assert!(
            brought.error.is_some() && brought.exit.is_none(),
            "{brought:?}"
        );
    }
    assert_eq!(world.sh("a", "exit 9").code(), 9);
}

#[test]
fn execs_when_fifty_run_at_once_then_each_has_its_own_output_and_code() {
    let world = world();
    world.running("a");
    let mut streams: Vec<_> = (0..50)
        .map(|n| {
            let script = format!("read x; echo {n}-$x; exit {n}");
            world.exec("a", &["sh", "-c", &script], true)
        })
        .collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.send(Kind::Stdin, format!("in{n}\n").as_bytes());
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let brought = stream.read_to_end();
        assert_eq!(
            (brought.out(), brought.code()),
            (format!("{n}-in{n}\n"), n as u8)
        );
    }
}

#[test]
fn container_when_killed_or_deleted_by_force_then_it_ends() {
    let world = world();
    let agent = &world.agent;
    world.running("a");
    assert_eq!(agent.ask("DELETE", "/v1/containers/a", &Value::Null).0, 409);
    agent.must("POST", "/v1/containers/a/kill", &json!({"signal": 9}));
    let exit = agent.must("GET", "/v1/containers/a/wait", &Value::Null);
    assert_eq!((&exit["code"], &exit["signal"]), (&json!(137), &json!(9)));
    assert_eq!(
        agent
            .ask("POST", "/v1/containers/a/kill", &json!({"signal": 9}))
            .0,
        409
    );
    assert_eq!(
        agent.ask("POST", "/v1/containers/a/start", &Value::Null).0,
        409
    );
    let wanted = json!({"process": process(&["true"])});
    assert_eq!(agent.ask("POST", "/v1/containers/a/exec", &wanted).0, 409);
    world.running("b");
    let mut attached = agent.upgrade("/v1/containers/b/attach", &Value::Null);
    let path = "/v1/containers/b?force=true";
    agent.must("DELETE", path, &Value::Null);
    assert_eq!(attached.read_to_end().code(), 137);
    world.create("c", &["true"]);
    agent.must("DELETE", "/v1/containers/c", &Value::Null);
    let list = agent.must("GET", "/v1/containers", &Value::Null);
    assert_eq!(list["containers"].as_array().expect("list").len(), 1);
}

#[test]
fn events_when_a_container_lives_then_told_in_order() {
    let world = world();
    let agent = &world.agent;
    let mut stream = agent.connect();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\n\r\n")
        .expect("request");
    read_head(&mut stream);
    world.create("a", &["sh", "-c", "read x; exit 4"]);
    world.create("b", &["sleep", "500"]);
    agent.must("POST", "/v1/containers/b/start", &Value::Null);
    assert_eq!(world.sh("b", "exit 6").code(), 6);
    agent.must("DELETE", "/v1/containers/b?force=true", &Value::Null);
    agent.must("POST", "/v1/containers/a/start", &Value::Null);
    let mut text = String::new();
    while !text.contains("\"code\":4") {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).expect("events");
        text += &String::from_utf8_lossy(&buffer[..n]);
    }
    let events: Vec<Value> = text
        .lines()
        .filter(|l| l.starts_with('{'))
        .map(|l| serde_json::from_str(l).expect("event"))
        .collect();
    let told: Vec<String> = events
        .iter()
        .map(|e| {
            format!(
                "{} {}",
                e["event"].as_str().unwrap_or(""),
                e["container_id"].as_str().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "listening -",
            "created a",
            "created b",
            "started b",
            "exec_started b",
            "exec_exited b",
            "exited b",
            "deleted b",
            "started a",
            "exited a",
        ]
    );
}

#[test]
fn files_when_taken_then_what_tar_reads_and_when_put_then_what_it_wrote() {
    let world = world();
    let agent = &world.agent;
    world.running("a");
    let script = "mkdir -p /tmp/t/deep/er && cd /tmp/t && seq 1 100000 >numbers && ln numbers twin && \
        ln -s /etc/greeting link && : >empty && printf x >deep/er/x && chmod 4751 deep/er/x && dd if=/dev/zero of=zeros bs=1 count=1 seek=999999 2>/dev/null";
    let made = world.sh("a", script);
    assert_eq!(made.code(), 0, "{made:?}");

    let archive = take(agent, "a", "/tmp/t");
    let out = agent.dir.path().join("out");
    fs::create_dir(&out).expect("mkdir");
    untar(&archive, &out);
    let at = |p: &str| out.join("t").join(p);
    assert!(
        fs::read_to_string(at("numbers"))
            .expect("numbers")
            .ends_with("\n100000\n")
    );
    assert_eq!(
        fs::read_link(at("link")).expect("link"),
        Path::new("/etc/greeting")
    );
    assert_eq!(fs::metadata(at("zeros")).expect("zeros").len(), 1_000_000);
    let mode = fs::metadata(at("deep/er/x"))
        .expect("x")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o4751);
    use std::os::unix::fs::MetadataExt;
    let inode = |p: &str| fs::metadata(at(p)).expect(p).ino();
    assert_eq!(inode("numbers"), inode("twin"));

    // The same way back, and over what is there.
    for _ in 0..2 {
        assert_eq!(put(agent, "a", "/tmp", &archive).0, 200);
    }
    let check = "cd /tmp/t && md5sum numbers twin zeros deep/er/x; stat -c %a deep/er/x; cat link";
    let sums = world.sh("a", check);
    assert_eq!(sums.code(), 0, "{sums:?}");
    assert!(sums.out().ends_with("4751\nhello\n"), "{}", sums.out());

    let (status, error) = get(agent, "a", "/nowhere");
    assert_eq!((status, &error["code"]), (404, &json!("not_found")));
    assert_eq!(put(agent, "a", "/etc/greeting", &archive).0, 404);
    assert_eq!(
        put(
            agent,
            "a",
            "/tmp",
            b"not a tar archive, but long enough?".repeat(20).as_slice()
        )
        .0,
        422
    );
    assert_eq!(get(agent, "a", "relative").0, 400);
}

#[test]
fn files_when_links_lead_outwards_then_they_stay_inside() {
    let world = world();
    let agent = &world.agent;
    world.running("a");
    let outside = agent.dir.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("secret"), "secret").expect("write");
    let outside = outside.to_str().expect("UTF-8");
    let script = format!(
        "ln -s {outside} /tmp/absolute && ln -s ../../../../../..{outside} /tmp/upwards && \
         ln -s /proc/1/root /tmp/magic"
    );
    assert_eq!(world.sh("a", &script).code(), 0);
    for link in ["absolute", "upwards", "magic"] {
        let (status, _) = get(agent, "a", &format!("/tmp/{link}/secret"));
        assert_ne!(status, 200, "{link}");
        let archive = tar_of(&agent.dir.path().join("rootfs/etc"), "greeting");
        let (status, _) = put(agent, "a", &format!("/tmp/{link}"), &archive);
        assert_ne!(status, 200, "{link}");
    }
    // An archive whose own links lead outwards.
    let hostile = agent.dir.path().join("hostile");
    fs::create_dir(&hostile).expect("mkdir");
    symlink(outside, hostile.join("d")).expect("symlink");
    let mut archive = tar_of(&hostile, "d");
    archive.truncate(512);
    fs::remove_file(hostile.join("d")).expect("rm");
    fs::create_dir(hostile.join("d")).expect("mkdir");
    fs::write(hostile.join("d/planted"), "x").expect("write");
    archive.extend(tar_of(&hostile, "d/planted"));
    let _ = put(agent, "a", "/tmp", &archive);
    assert!(!Path::new(outside).join("planted").exists());
    assert_eq!(fs::read_dir(outside).expect("outside").count(), 1);
}

#[test]
fn shutdown_when_containers_run_then_they_end_first_and_their_clients_hear_of_it() {
    let mut world = world();
    world.create(
        "a",
        &[
            "sh",
            "-c",
            "trap 'exit 12' TERM; echo ready; while true; do sleep 1; done",
        ],
    );
    world.create("never-started", &["true"]);
    let agent = &mut world.agent;
    let mut attached = agent.upgrade("/v1/containers/a/attach", &Value::Null);
    agent.must("POST", "/v1/containers/a/start", &Value::Null);
    attached.read_until(|b| b.out() == "ready\n");
    agent.must("POST", "/v1/shutdown", &json!({"grace_ms": 60_000}));
    assert_eq!(attached.read_to_end().code(), 12);
    assert!(agent.process.wait().expect("wait").success());
}

fn take(agent: &Agent, id: &str, path: &str) -> Vec<u8> {
    let request = format!("GET /v1/containers/{id}/files?path={path} HTTP/1.1\r\n\r\n");
    let answer = agent.exchange(request.as_bytes());
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("head")
        + 4;
    assert!(
        answer.starts_with(b"HTTP/1.1 200 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let mut rest = &answer[end..];
    let mut archive = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").expect("size");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).expect("hex"), 16)
            .expect("hex");
        rest = &rest[line + 2..];
        if size == 0 {
            assert_eq!(rest, b"\r\n");
            return archive;
        }
        archive.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

fn get(agent: &Agent, id: &str, path: &str) -> (u16, Value) {
    let path = bulkhead_protocol::path::files(id, path);
    agent.ask("GET", &path, &Value::Null)
}

fn put(agent: &Agent, id: &str, path: &str, archive: &[u8]) -> (u16, Value) {
    let path = bulkhead_protocol::path::files(id, path);
    let mut request =
        format!("PUT {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for piece in archive.chunks(100_000) {
        request.extend(format!("{:x}\r\n", piece.len()).bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let answer = String::from_utf8(agent.exchange(&request)).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    (
        status.expect("status"),
        serde_json::from_str(body).expect("JSON"),
    )
}

fn tar_of(dir: &Path, name: &str) -> Vec<u8> {
    let tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["-cf", "-", name])
        .output();
    tar.expect("tar").stdout
}

fn untar(archive: &[u8], to: &Path) {
    let file = to.with_extension("tar");
    fs::write(&file, archive).expect("write");
    let status = std::process::Command::new("tar")
        .arg("-C")
        .arg(to)
        .arg("-xpf")
        .arg(&file)
        .status();
    assert!(status.expect("tar").success());
}
