//! Machines that are restored from a template rather than booted.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bulkhead_tests::crash::Random;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::{Lane, note, patience};
use bulkhead_tests::{artifacts, http};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The folders of the templates that are there, and of those that are being made.
pub fn templates(home: &Home) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let entries = fs::read_dir(home.root().join("templates"));
    let folders = entries.into_iter().flatten().flatten().map(|e| e.path());
    folders
        .filter(|path| path.is_dir())
        .partition(|path| path.extension().is_none())
}

/// The one template there is.
fn template(home: &Home) -> PathBuf {
    let (whole, unfinished) = templates(home);
    assert!(unfinished.is_empty(), "{unfinished:?}");
    let [template] = &whole[..] else {
        panic!("one template, not {whole:?}");
    };
    template.clone()
}

fn ask(home: &Home, container: &str, socket: &str, path: &str) -> Value {
    let socket = home.inspect(container, &format!(".Sandbox.{socket}"));
    let stream = UnixStream::connect(&socket).expect(&socket);
    stream.set_read_timeout(Some(patience())).expect("socket");
    let (status, answer) = http::request(stream, "GET", path, None).expect("ask");
    assert_eq!(status, 200, "{answer}");
    answer
}

/// What the VMM says of a container's machine.
pub fn vm(home: &Home, container: &str) -> Value {
    ask(home, container, "ControlSocket", "/v1/vm")
}

fn is_restored(home: &Home, container: &str) -> bool {
    vm(home, container)["restored"]["asleep_ns"].is_u64()
}

fn start(home: &Home, name: &str, options: &[&str]) {
    let run = ["run", "-d", "--name", name];
    let program = ["busybox", "sleep", "100000"];
    home.expect(&[&run, options, &program[..]].concat());
}

/// How far a container's clock is ahead of this machine's, in nanoseconds. The time that asking takes is not known
/// to be spent on either way, so that the least of what it can be is told.
fn clock_ahead(home: &Home, container: &str) -> i128 {
    let now = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        i128::try_from(now.expect("after 1970").as_nanos()).expect("not so late")
    };
    let asked = |_| {
        let before = now();
        let clock = ask(home, container, "ApiSocket", "/v1/clock");
        let after = now();
        let there = i128::from(clock["unix_ns"].as_u64().expect("a time"));
        if there > after {
            there - after
        } else {
            (there - before).min(0)
        }
    };
    let all = (0..5).map(asked);
    all.min_by_key(|off| off.abs()).expect("five")
}

#[test]
fn clones_when_two_run_then_of_one_template_and_nobody_takes_one_for_the_other() {
    let home = Home::with_busybox().with_own_templates();
    start(&home, "first", &[]);
    let first = template(&home);
    let inode = fs::metadata(&first).expect("stat").ino();
    start(&home, "second", &[]);
    // A template does not go on ageing, and neither does the clock of its clones stand still.
    std::thread::sleep(Duration::from_secs(2));
    start(&home, "third", &[]);
    assert_eq!(template(&home), first);
    assert_eq!(fs::metadata(&first).expect("stat").ino(), inode);
    let listed = home.expect(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert!(listed.contains("Templates 1\n"), "{listed}");
    let prefetched = |name| vm(&home, name)["restored"]["prefetched"].clone();
    assert_eq!(prefetched("first"), false);
    assert_eq!(prefetched("third"), true);

    let names = ["first", "second", "third"];
    for field in [
        "cat /proc/sys/kernel/random/uuid",
        "cat /proc/sys/kernel/random/boot_id",
        "head -c 32 /dev/urandom | sha256sum",
        "hostname",
    ] {
        let values: BTreeSet<String> = names
            .iter()
            .map(|name| home.expect(&["exec", name, "sh", "-c", field]))
            .collect();
        assert_eq!(values.len(), names.len(), "{field}: {values:?}");
    }
    let cids: BTreeSet<u64> = names
        .iter()
        .map(|name| {
            assert!(is_restored(&home, name), "{name}");
            let cid = &vm(&home, name)["config"]["vsock"]["cid"];
            cid.as_u64().expect("a CID")
        })
        .collect();
    assert_eq!(cids.len(), names.len(), "{cids:?}");
    for name in names {
        let ahead = clock_ahead(&home, name);
        note(&format!("clock of clone {name}: {} us ahead", ahead / 1000));
        assert!(ahead.abs() < 1_000_000_000, "{name}: {ahead} ns");
    }
    for name in names {
        home.expect(&["rm", "--force", name]);
    }
    home.expect_nothing_left();

    let pruned = home.expect(&["system", "prune", "--force"]);
    assert!(pruned.contains("Deleted template: "), "{pruned}");
    let left = fs::read_dir(home.root().join("templates")).expect("list");
    assert_eq!(left.count(), 0);
}

#[test]
fn machine_when_it_is_to_be_cold_then_boots_and_makes_no_template() {
    let home = Home::with_busybox().with_own_templates();
    start(&home, "cold", &["--cold"]);
    assert!(!is_restored(&home, "cold"));
    home.expect(&["rm", "--force", "cold"]);
    let run = home
        .command(&["run", "--rm", "busybox", "true"])
        .env("BULKHEAD_COLD", "1")
        .output()
        .expect("run");
    assert!(run.status.success(), "{run:?}");
    assert_eq!(templates(&home), (vec![], vec![]));
    home.expect_nothing_left();
}

#[test]
fn clone_when_it_has_limits_a_disk_and_volumes_then_all_of_them_hold() {
    let home = Home::with_busybox().with_own_templates();
    let host = tempfile::tempdir().expect("make a folder");
    fs::write(host.path().join("given"), "from the host\n").expect("write");
    let folder = format!("{}:/host:ro", host.path().display());
    let options = [
        "--memory",
        "128M",
        "--cpus",
        "1.5",
        "--pids-limit",
        "20",
        "--storage",
        "64M",
        "-v",
        &folder,
    ];
    start(&home, "box", &options);
    assert!(is_restored(&home, "box"));
    let exec = |script: &str| home.expect(&["exec", "box", "sh", "-c", script]);
    assert_eq!(exec("cat /host/given"), "from the host\n");
    assert_eq!(exec("echo kept >/kept; cat /kept"), "kept\n");
    assert_eq!(
        exec("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max"),
        format!("{}\n20\n150000 100000\n", 128 << 20)
    );
    assert_eq!(exec("grep -c ^processor /proc/cpuinfo"), "2\n");
    // What is on the disk is there for another clone.
    home.expect(&["stop", "--time", "1", "box"]);
    home.expect(&["start", "box"]);
    assert!(is_restored(&home, "box"));
    assert_eq!(exec("cat /kept /host/given"), "kept\nfrom the host\n");
    home.expect(&["rm", "--force", "box"]);
    home.expect_nothing_left();
}

#[test]
fn runs_when_many_race_for_the_first_template_then_one_is_made_and_all_succeed() {
    let home = Home::with_busybox().with_own_templates();
    let runs: Vec<_> = (0..Lane::pick(4, 20))
        .map(|n| {
            let n = n.to_string();
            let run = ["run", "--rm", "--memory", "64M", "busybox", "echo", &n];
            home.spawn(&run, |command| {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            })
        })
        .collect();
    let mut inodes = BTreeSet::new();
    let mut outputs: Vec<Output> = Vec::new();
    for run in runs {
        outputs.push(run.wait_with_output().expect("wait"));
        inodes.insert(fs::metadata(template(&home)).expect("stat").ino());
    }
    for (n, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{n}\n"));
    }
    assert_eq!(inodes.len(), 1, "{inodes:?}");
    home.expect_nothing_left();
}

/// Kills the process of this root whose command line has this in it.
fn kill(home: &Home, needle: &str) -> bool {
    let pid = home.processes().into_iter().find(|pid| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains(needle)
    });
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

#[test]
fn maker_of_a_template_when_killed_then_the_next_run_makes_it() {
    let mut random = Random::new("maker_of_a_template_when_killed");
    for victim in ["\0monitor\0", "bulkhead-vmm"] {
        let home = Home::with_busybox().with_own_templates();
        let mut run = home.spawn(&["run", "--rm", "busybox", "true"], |command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        });
        home.wait_until("a template is being made", || {
            !templates(&home).1.is_empty()
        });
        std::thread::sleep(random.part_of(Duration::from_secs(2)));
        let killed = kill(&home, victim);
        let in_time = templates(&home).0.is_empty();
        note(&format!("{victim:?}: killed {killed}, in time {in_time}"));
        // Without its monitor the command fails; without that machine the container gets another.
        run.wait().expect("wait");
        home.expect(&["run", "--rm", "busybox", "true"]);
        template(&home);
        home.expect_nothing_left();
    }
}

#[test]
fn template_when_damaged_then_runs_succeed_and_it_is_replaced() {
    let home = Home::with_busybox().with_own_templates();
    home.expect(&["run", "--rm", "busybox", "true"]);
    for name in ["state.json", "memory"] {
        let path = template(&home).join("snapshot").join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.expect("open");
        let middle = file.metadata().expect("stat").len() / 2;
        if name == "memory" {
            file.set_len(middle).expect("truncate");
        } else {
            let mut byte = [0];
            file.read_exact_at(&mut byte, middle).expect("read");
            file.write_all_at(&[byte[0] ^ 1], middle).expect("write");
        }
        // It boots, says so, and takes the template away.
        start(&home, "box", &[]);
        assert!(!is_restored(&home, "box"), "{name}");
        let id = home.inspect("box", ".Id");
        let log = home.root().join("containers").join(id).join("monitor.log");
        let log = fs::read_to_string(log).expect("read");
        assert!(log.contains("booting, not restoring"), "{name}: {log}");
        note(&format!("{name}: {}", log.trim_end()));
        home.expect(&["rm", "--force", "box"]);
        assert_eq!(templates(&home), (vec![], vec![]), "{name}");
        let begin = Instant::now();
        start(&home, "box", &[]);
        note(&format!("a template and a clone: {:?}", begin.elapsed()));
        assert!(is_restored(&home, "box"), "{name}");
        home.expect(&["rm", "--force", "box"]);
    }
    home.expect_nothing_left();
}

#[test]
fn clones_when_their_programs_call_getrandom_then_each_draws_other_numbers() {
    let home = Home::empty();
    let archive = artifacts::test_python();
    home.expect(&["import", archive.to_str().expect("a path"), "python"]);
    let script = "import os; print(os.getrandom(32).hex())";
    let draw = || home.expect(&["run", "--rm", "python", "python3", "-I", "-c", script]);
    let drawn = BTreeSet::from([draw(), draw(), draw()]);
    assert_eq!(drawn.len(), 3, "{drawn:?}");
    assert!(drawn.iter().all(|hex| hex.trim().len() == 64), "{drawn:?}");
    home.expect_nothing_left();
}

#[test]
fn template_when_a_clone_fails_for_what_it_lacks_stays() {
    let home = Home::with_busybox().with_own_templates();
    home.expect(&["run", "--rm", "busybox", "true"]);
    let before = template(&home);
    let folder = format!("{}:/host", home.root().display());
    // Its file server ends at once.
    let mut command = home.command(&["run", "--rm", "-v", &folder, "busybox", "true"]);
    let ended = command.env("BULKHEAD_VIRTIOFSD", "/bin/false").output();
    let ended = ended.expect("run bulkhead");
    assert_eq!(ended.status.code(), Some(125), "{ended:?}");
    assert_eq!(template(&home), before);
    home.expect_nothing_left();
}
