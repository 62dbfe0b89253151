//! Containers in a VM that go on from a checkpoint.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use bulkhead_tests::crash::Random;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::{Lane, note};

use crate::warm::vm;

/// Counts, and ends when it is asked to with a code of its own.
const COUNTER: &str =
    "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 1 & wait $!; done";

fn start(home: &Home, options: &[&str], script: &str) {
    let run = ["run", "-d", "--name", "box"];
    let program = ["busybox", "sh", "-c", script];
    home.expect(&[&run, options, &program[..]].concat());
}

/// What a counter has counted to.
fn counted(home: &Home, container: &str) -> Vec<u64> {
    let log = home.expect(&["logs", container]);
    let number = |line: &str| line.parse().unwrap_or_else(|_| panic!("{line:?} in {log}"));
    log.lines().map(number).collect()
}

fn wait_for_more(home: &Home, container: &str, than: usize) {
    home.wait_until("it counts", || counted(home, container).len() > than);
}

/// None is missing, and none is there twice.
fn expect_contiguous(numbers: &[u64]) {
    for pair in numbers.windows(2) {
        assert_eq!(pair[0] + 1, pair[1], "among {} numbers", numbers.len());
    }
}

fn checkpoints(home: &Home, container: &str) -> String {
    home.expect(&["checkpoint", "ls", container, "--format", "{{.Name}}"])
}

/// The folder with the checkpoints of a container.
fn folder(home: &Home, container: &str) -> PathBuf {
    let id = home.inspect(container, ".Id");
    home.root().join("containers").join(id).join("checkpoints")
}

fn exec(home: &Home, container: &str, script: &str) -> String {
    home.expect(&["exec", container, "sh", "-c", script])
}

#[test]
fn container_when_started_from_a_checkpoint_then_counts_on_and_is_as_it_was() {
    let home = Home::with_busybox();
    start(&home, &[], COUNTER);
    exec(&home, "box", "echo kept >/tmp/file; echo kept >/file");
    wait_for_more(&home, "box", 2);
    assert_eq!(
        home.expect(&["checkpoint", "create", "box", "one"]),
        "one\n"
    );
    assert_eq!(home.inspect("box", ".State.Status"), "exited");
    assert_eq!(home.inspect("box", ".State.ExitCode"), "0");
    assert_eq!(home.inspect("box", ".State.Error"), "");
    assert_eq!(home.inspect("box", ".State.Checkpointed"), "one");
    assert_eq!(home.expect(&["wait", "box"]), "0\n");
    assert_eq!(checkpoints(&home, "box"), "one\n");
    let before = counted(&home, "box");

    // As often as wanted. Time goes on meanwhile.
    std::thread::sleep(Duration::from_secs(2));
    let begin = Instant::now();
    assert_eq!(
        home.expect(&["start", "--checkpoint", "one", "box"]),
        "box\n"
    );
    note(&format!("start --checkpoint: {:?}", begin.elapsed()));
    wait_for_more(&home, "box", before.len() + 1);
    let after = counted(&home, "box");
    assert_eq!(after[0], 1);
    expect_contiguous(&after);
    assert_eq!(
        exec(&home, "box", "cat /tmp/file /file; hostname"),
        format!("kept\nkept\n{}\n", &home.inspect("box", ".Id")[..12])
    );
    let there: u64 = exec(&home, "box", "date +%s").trim().parse().expect("time");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    assert!(now.abs_diff(there) <= 5, "{there} there, {now} here");
    assert_eq!(home.inspect("box", ".State.Checkpointed"), "");

    // Its end is its own.
    home.expect(&["stop", "box"]);
    assert_eq!(home.inspect("box", ".State.ExitCode"), "7");
    home.expect(&["start", "--checkpoint", "one", "box"]);
    home.expect(&["kill", "box"]);
    assert_eq!(home.expect(&["wait", "box"]), "137\n");

    assert_eq!(home.expect(&["checkpoint", "rm", "box", "one"]), "one\n");
    assert_eq!(checkpoints(&home, "box"), "");
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
}

#[test]
fn output_when_it_never_stops_then_nothing_of_it_is_lost_or_twice() {
    let home = Home::with_busybox();
    let flood = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; done";
    start(&home, &[], flood);
    wait_for_more(&home, "box", 100);
    for round in 0..Lane::pick(1, 5) {
        let name = format!("round{round}");
        home.expect(&["checkpoint", "create", "box", &name]);
        let before = counted(&home, "box").last().copied();
        home.expect(&["start", "--checkpoint", &name, "box"]);
        home.wait_until("it counts on", || {
            counted(&home, "box").last().copied() > before
        });
    }
    let stop = home.run(&["exec", "box", "sh", "-c", "touch /stop"]);
    // The container may end before this has, and take it along.
    assert!(matches!(stop.status.code(), Some(0 | 137)), "{stop:?}");
    assert_eq!(home.expect(&["wait", "box"]), "0\n");
    let numbers = counted(&home, "box");
    note(&format!("{} numbers", numbers.len()));
    expect_contiguous(&numbers);
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
}

#[test]
fn client_when_attached_then_sees_the_end_and_another_can_attach_to_what_goes_on() {
    let home = Home::with_busybox();
    let attached = |home: &Home, arguments: &[&str]| {
        home.spawn(arguments, |command| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        })
    };
    let run = ["run", "--name", "box", "busybox", "sh", "-c", COUNTER];
    let run = attached(&home, &run);
    home.wait_for("box", ".State.Status", "running");
    let other = attached(&home, &["attach", "--no-stdin", "box"]);
    wait_for_more(&home, "box", 2);
    home.expect(&["checkpoint", "create", "box", "one"]);
    for client in [run, other] {
        let output = client.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let before = counted(&home, "box").len();
    let again = attached(&home, &["start", "-a", "--checkpoint", "one", "box"]);
    wait_for_more(&home, "box", before + 1);
    home.expect(&["stop", "box"]);
    let output = again.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let first = counted(&home, "box")[before].to_string();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.lines().next(), Some(&*first));
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
}

#[test]
fn disk_when_it_was_written_to_since_is_the_checkpoints_again() {
    let home = Home::with_busybox();
    start(&home, &["--storage", "64M"], COUNTER);
    exec(&home, "box", "echo kept >/file");
    home.expect(&["checkpoint", "create", "--leave-running", "box", "one"]);
    assert_eq!(home.inspect("box", ".State.Status"), "running");
    exec(&home, "box", "echo changed >/file; echo new >/new");
    home.expect(&["checkpoint", "create", "box", "two"]);
    assert_eq!(checkpoints(&home, "box"), "one\ntwo\n");

    // A start of the usual kind has the disk that was unmounted with the checkpoint.
    home.expect(&["start", "box"]);
    assert_eq!(exec(&home, "box", "cat /file /new"), "changed\nnew\n");
    exec(&home, "box", "echo lost >/file");
    home.expect(&["stop", "box"]);

    home.expect(&["start", "--checkpoint", "one", "box"]);
    assert_eq!(
        exec(&home, "box", "cat /file; ls /new 2>&1 | wc -l"),
        "kept\n1\n"
    );
    exec(&home, "box", "! test -e /new && echo more >/more");
    home.expect(&["start", "--checkpoint", "two", "--copy", "copy", "box"]);
    assert_eq!(exec(&home, "copy", "cat /file /new"), "changed\nnew\n");
    exec(&home, "copy", "! test -e /more && echo theirs >/file");
    assert_eq!(exec(&home, "box", "cat /file /more"), "kept\nmore\n");
    for name in ["box", "copy"] {
        home.expect(&["stop", name]);
        assert_eq!(home.inspect(name, ".State.ExitCode"), "7");
        let id = home.inspect(name, ".Id");
        let left = home.root().join("containers").join(id);
        for name in ["upper.before", "upper.new"] {
            assert!(!left.join(name).exists(), "{name}");
        }
        // On its own disk, and by a boot.
        home.expect(&["start", name]);
    }
    assert_eq!(exec(&home, "copy", "cat /file"), "theirs\n");
    assert_eq!(exec(&home, "box", "cat /file /more"), "kept\nmore\n");
    for name in ["box", "copy"] {
        home.expect(&["rm", "--force", name]);
    }
    home.expect_nothing_left();
}

#[test]
fn copies_when_two_go_on_at_once_then_nobody_takes_one_for_the_other() {
    let home = Home::with_busybox();
    start(&home, &[], COUNTER);
    wait_for_more(&home, "box", 2);
    home.expect(&["checkpoint", "create", "--leave-running", "box", "one"]);
    for name in ["first", "second"] {
        let started = home.expect(&["start", "--checkpoint", "one", "--copy", name, "box"]);
        assert_eq!(started.trim_end(), name);
    }
    let names = ["box", "first", "second"];
    for name in names {
        let before = counted(&home, name);
        wait_for_more(&home, name, before.len() + 1);
        let after = counted(&home, name);
        assert!(after[0] == 1 || after[0] > 2, "{name}: {after:?}");
        expect_contiguous(&after);
    }
    let cid = |name| {
        let cid = &vm(&home, name)["config"]["vsock"]["cid"];
        cid.as_u64().expect("a CID")
    };
    let cids: BTreeSet<u64> = names.into_iter().map(cid).collect();
    assert_eq!(cids.len(), names.len(), "{cids:?}");
    for what in [
        "head -c 32 /dev/urandom | sha256sum",
        "cat /proc/sys/kernel/random/uuid",
    ] {
        let values = names.map(|name| exec(&home, name, what));
        let values = BTreeSet::from(values);
        assert_eq!(values.len(), names.len(), "{values:?}");
    }
    // All that goes to the agent finds a copy by the name it has there.
    home.expect(&["top", "first"]);
    home.expect(&["stats", "--no-stream", "first"]);
    home.expect(&["pause", "first"]);
    home.expect(&["unpause", "first"]);
    home.expect(&["cp", "first:/etc/passwd", "-"]);

    // The one that it was taken of is not needed any more, and a copy can be saved as any other.
    home.expect(&["rm", "--force", "box"]);
    home.expect(&["checkpoint", "create", "second", "two"]);
    home.expect(&["start", "--checkpoint", "two", "second"]);
    home.expect(&["start", "--checkpoint", "two", "--copy", "third", "second"]);
    home.expect(&["stop", "first", "second", "third"]);
    for name in ["first", "second", "third"] {
        assert_eq!(home.inspect(name, ".State.ExitCode"), "7", "{name}");
    }
    // Begun anew, it is a container like any other.
    home.expect(&["start", "third"]);
    exec(&home, "third", "true");
    home.expect(&["rm", "--force", "first", "second", "third"]);
    home.expect_nothing_left();
}

#[test]
fn container_when_it_was_paused_then_stays_so_until_its_user_lets_it_go() {
    let home = Home::with_busybox();
    start(&home, &[], COUNTER);
    wait_for_more(&home, "box", 1);
    home.expect(&["pause", "box"]);
    home.expect(&["checkpoint", "create", "--leave-running", "box", "one"]);
    assert_eq!(home.inspect("box", ".State.Status"), "paused");
    home.expect(&["checkpoint", "create", "box", "two"]);
    assert_eq!(home.inspect("box", ".State.Status"), "exited");
    home.expect(&["start", "--checkpoint", "two", "box"]);
    assert_eq!(home.inspect("box", ".State.Status"), "paused");
    let before = counted(&home, "box").len();
    home.expect(&["unpause", "box"]);
    wait_for_more(&home, "box", before + 1);
    expect_contiguous(&counted(&home, "box"));
    home.expect(&["rm", "--force", "box"]);
    home.expect_nothing_left();
}

#[test]
fn checkpoint_when_it_cannot_be_made_or_used_is_refused_with_one_sentence() {
    let home = Home::with_busybox();
    let refused = |arguments: &[&str], said: &str| {
        let (_, stderr) = home.expect_code(125, arguments);
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    };
    for (name, options) in [
        ("host", &["--isolation", "container"][..]),
        ("volume", &["-v", "vol:/vol"]),
        ("idle", &[]),
    ] {
        let create = ["create", "--name", name];
        home.expect(&[&create, options, &["busybox", "sleep", "100"]].concat());
    }
    for (name, said) in [
        ("host", "--isolation vm"),
        ("volume", "has volumes"),
        ("idle", "start it first"),
        ("nobody", "no such container"),
    ] {
        refused(&["checkpoint", "create", name, "one"], said);
    }
    refused(
        &["start", "--checkpoint", "one", "idle"],
        "there is no checkpoint one (`bulkhead checkpoint ls idle` lists them)",
    );
    refused(
        &["checkpoint", "rm", "idle", "one"],
        "there is no checkpoint",
    );

    start(&home, &["--storage", "64M"], COUNTER);
    refused(
        &["checkpoint", "create", "box", "../one"],
        "cannot be a checkpoint's name",
    );
    exec(&home, "box", "echo kept >/file");
    home.expect(&["checkpoint", "create", "--leave-running", "box", "one"]);
    refused(
        &["checkpoint", "create", "box", "one"],
        "there is a checkpoint one already",
    );
    refused(&["start", "--checkpoint", "one", "box"], "is running");
    refused(
        &["start", "--checkpoint", "one", "--copy", "idle", "box"],
        "in use",
    );
    exec(&home, "box", "echo changed >/file");
    home.expect(&["stop", "box"]);

    // What is damaged is not used: the container is what it was, and there is no copy.
    let state = folder(&home, "box").join("one").join("state.json");
    let file = OpenOptions::new().read(true).write(true).open(state);
    let file = file.expect("open");
    let middle = file.metadata().expect("stat").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("read");
    file.write_all_at(&[byte[0] ^ 1], middle).expect("write");
    let copy = ["start", "--checkpoint", "one", "--copy", "other", "box"];
    for arguments in [&["start", "--checkpoint", "one", "box"][..], &copy] {
        refused(arguments, "cannot start the container");
    }
    refused(&["rm", "other"], "no such container");
    assert_eq!(home.inspect("box", ".State.Status"), "exited");
    home.expect(&["start", "box"]);
    assert_eq!(exec(&home, "box", "cat /file"), "changed\n");
    home.expect(&["rm", "--force", "box", "host", "volume", "idle"]);

    home.expect(&[
        "run", "-d", "--rm", "--name", "box", "busybox", "sleep", "100",
    ]);
    refused(&["checkpoint", "create", "box", "one"], "--leave-running");
    home.expect(&["rm", "--force", "box"]);
    home.expect_nothing_left();
}

#[test]
fn command_when_killed_while_it_makes_a_checkpoint_then_nothing_is_left_and_the_container_runs() {
    let home = Home::with_busybox();
    start(&home, &[], COUNTER);
    let create = |name: &str| {
        let create = ["checkpoint", "create", "--leave-running", "box", name];
        home.spawn(&create, |command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        })
    };
    let begin = Instant::now();
    assert!(create("whole").wait().expect("wait").success());
    let whole = begin.elapsed();
    note(&format!("checkpoint create --leave-running: {whole:?}"));
    let mut random = Random::new("command_when_killed_while_it_makes_a_checkpoint");
    for round in 0..Lane::pick(3, 20) {
        let name = format!("round{round}");
        let mut command = create(&name);
        std::thread::sleep(random.part_of(whole));
        command.kill().expect("kill");
        command.wait().expect("wait");
        // What is being written then is finished first.
        home.wait_until("it runs", || {
            home.run(&["exec", "box", "true"]).status.success()
        });
        let listed = checkpoints(&home, "box");
        note(&format!("round {round}: {listed:?}"));
        let entries = fs::read_dir(folder(&home, "box")).expect("list");
        for entry in entries {
            let entry = entry.expect("entry").file_name();
            let entry = entry.to_string_lossy();
            assert!(!entry.starts_with(".making."), "{entry}");
        }
        if listed.lines().any(|line| line == name) {
            home.expect(&["checkpoint", "rm", "box", &name]);
        }
    }
    let before = counted(&home, "box").len();
    wait_for_more(&home, "box", before + 1);
    expect_contiguous(&counted(&home, "box"));
    home.expect(&["rm", "--force", "box"]);
    home.expect_nothing_left();
}
