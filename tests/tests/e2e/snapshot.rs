//! Snapshots: a VM goes on after one was taken, and another goes on from it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::container::{Host, sh};
use bulkhead_tests::guest::{Guest, checksum};
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::{Lane, patience};
use bulkhead_tests::vm::{Restore, Setup};
use bulkhead_tests::{artifacts, http, net, process};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A folder that goes at the end.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("bulkhead-test-")
        .tempdir()
        .expect("make a folder")
}

fn uptime(guest: &Guest) -> f64 {
    let text = guest
        .ask(json!({"op": "read_file", "path": "/proc/uptime"}))
        .text;
    let first = text.split_whitespace().next().expect("uptime");
    first.parse().expect("seconds")
}

#[test]
fn vm_when_a_snapshot_is_taken_then_it_goes_on_and_so_do_others_from_there() {
    let files = folder();
    let snapshot = files.path().join("snapshot");
    let first = Guest::boot(Setup::test_guest());
    let mut old = first.open(&json!({"op": "echo"}));
    first.ask(json!({"op": "write_file", "path": "/proc/sys/kernel/hostname", "text": "saved"}));
    let before = uptime(&first);
    first.vm.snapshot(&snapshot);
    assert_eq!(first.vm.control("GET", "/v1/vm", None)["state"], "running");

    // The first one: its connections are as they were.
    old.write_all(b"still here").expect("write");
    let mut echoed = [0; 10];
    old.read_exact(&mut echoed).expect("read");
    assert_eq!(&echoed, b"still here");
    let hostname = json!({"op": "read_file", "path": "/proc/sys/kernel/hostname"});
    first.ask(json!({"op": "write_file", "path": "/proc/sys/kernel/hostname", "text": "gone on"}));

    // Two others, at once.
    let clones = [(), ()].map(|()| Guest {
        vm: Restore::new().start(&snapshot),
    });
    for clone in &clones {
        assert_eq!(clone.ask(hostname.clone()).text.trim(), "saved");
        let restored = &clone.vm.control("GET", "/v1/vm", None)["restored"];
        assert!(restored["asleep_ns"].as_u64() > Some(0), "{restored}");
        let after = uptime(clone);
        assert!(before <= after, "the clock went from {before} to {after}");
        // Time passes, at least as fast as it is waited for.
        clone.ask(json!({"op": "spin", "millis": 50}));
        assert!(after < uptime(clone));
    }
    clones[0]
        .ask(json!({"op": "write_file", "path": "/proc/sys/kernel/hostname", "text": "the first"}));
    assert_eq!(clones[1].ask(hostname.clone()).text.trim(), "saved");
    assert_eq!(first.ask(hostname.clone()).text.trim(), "gone on");

    // Those after one that has said what it has needed have that at once; where that is lost, they go on as well.
    let (status, answer) = first
        .vm
        .try_control("PUT", "/v1/working-set", None)
        .expect("ask");
    assert_eq!(status, 409, "{answer}");
    clones[0].vm.control("PUT", "/v1/working-set", None);
    let next = |prefetched: bool| {
        let clone = Guest {
            vm: Restore::new().start(&snapshot),
        };
        assert_eq!(clone.ask(hostname.clone()).text.trim(), "saved");
        let restored = &clone.vm.control("GET", "/v1/vm", None)["restored"];
        assert_eq!(restored["prefetched"], prefetched, "{restored}");
    };
    next(true);
    let set = snapshot.join("working-set");
    for damaged in ["{", "{\"format\":1,\"written\":[[4000000000,1]]}"] {
        fs::write(&set, damaged).expect("write");
        next(false);
    }
    for mut guest in clones.into_iter().chain([first]) {
        guest.ask(json!({"op": "poweroff"}));
        guest.vm.expect_exit(0);
    }
}

#[test]
fn vm_when_it_was_paused_then_it_still_is_after_the_snapshot() {
    let files = folder();
    let guest = Guest::boot(Setup::test_guest());
    guest.vm.control("PUT", "/v1/pause", None);
    guest.vm.snapshot(&files.path().join("a"));
    assert_eq!(guest.vm.control("GET", "/v1/vm", None)["state"], "paused");
    // The folder is there already, and stays as it is.
    let again = json!({"path": files.path().join("a")});
    let (status, answer) = guest
        .vm
        .try_control("PUT", "/v1/snapshot", Some(&again))
        .expect("ask");
    assert_eq!(status, 409, "{answer}");
    assert!(answer.to_string().contains("exists"), "{answer}");
    assert!(files.path().join("a/state.json").exists());
    for body in [json!({}), json!({"path": "relative"}), json!({"path": 1})] {
        let asked = guest.vm.try_control("PUT", "/v1/snapshot", Some(&body));
        assert_eq!(asked.expect("ask").0, 400, "{body}");
    }
    guest.vm.control("PUT", "/v1/resume", None);
    guest.ask(json!({"op": "uname"}));
}

#[test]
fn windows_when_they_are_spare_then_what_is_restored_can_have_devices_there() {
    let files = folder();
    let snapshot = files.path().join("snapshot");
    let first = Guest::boot(Setup::test_guest().with("spare_slots", 3.into()));
    let disks = json!({"op": "read_file", "path": "/proc/partitions"});
    assert!(!first.ask(disks.clone()).text.contains("vdb"));
    first.vm.snapshot(&snapshot);

    let disk = files.path().join("disk");
    fs::write(&disk, vec![7; MIB as usize]).expect("disk");
    let clone = Guest {
        vm: Restore::new()
            .with("disks", json!([{"path": disk, "serial": "added"}]))
            .start(&snapshot),
    };
    // Root, vsock, console, entropy; then the spare ones.
    clone.ask(json!({
        "op": "write_file", "path": "/sys/bus/platform/drivers/virtio-mmio/bind", "text": "virtio-mmio.4",
    }));
    assert!(clone.ask(disks).text.contains("vdb"));
    let wrote = clone.ask(
        json!({"op": "disk_write", "device": "/dev/vdb", "offset": 4096, "bytes": 8192, "seed": 5}),
    );
    assert_eq!(wrote.checksum, checksum(8192, 5));
    let file = fs::File::open(&disk).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4095).expect("read");
    assert_eq!(byte, [7]);

    // What was added is there in what comes after, too.
    let second = files.path().join("second");
    clone.vm.snapshot(&second);
    drop(clone);
    let third = Guest {
        vm: Restore::new().start(&second),
    };
    let read =
        third.ask(json!({"op": "disk_read", "device": "/dev/vdb", "offset": 4096, "bytes": 8192}));
    assert_eq!(read.checksum, checksum(8192, 5));

    // More than there is room for.
    let many: Vec<_> = (0..4).map(|_| json!({"path": disk})).collect();
    let mut refused = Restore::new().with("disks", json!(many)).start(&snapshot);
    refused.expect_exit(125);
    assert!(
        refused
            .stderr()
            .contains("do not fit in the 3 spare windows"),
        "{}",
        refused.stderr()
    );
}

/// What the VMM says of a snapshot that it refuses.
fn refusal(snapshot: &Path) -> String {
    let mut vm = Restore::new().start(snapshot);
    vm.expect_exit(15);
    let said = vm.stderr();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn snapshot_when_it_is_damaged_or_of_elsewhere_then_it_is_refused_with_a_sentence() {
    let files = folder();
    let snapshot = files.path().join("snapshot");
    let guest = Guest::boot(Setup::test_guest());
    guest.vm.snapshot(&snapshot);
    drop(guest);
    let (state, memory) = (snapshot.join("state.json"), snapshot.join("memory"));
    let good = fs::read_to_string(&state).expect("read");
    let (header, body) = good.split_once('\n').expect("two lines");

    let with_checksum = |body: &str| {
        fs::write(files.path().join("body"), body).expect("write");
        let sum = Command::new(artifacts::busybox())
            .arg("sha256sum")
            .arg(files.path().join("body"))
            .output()
            .expect("sha256sum");
        let sum = String::from_utf8(sum.stdout).expect("text");
        let sum = sum.split_whitespace().next().expect("sum").to_owned();
        format!("{{\"bulkhead_snapshot\":1,\"sha256\":\"{sum}\"}}\n{body}\n")
    };
    let body = body.trim_end();
    let processor = body.find("\"cpuid\":\"").expect("cpuid") + 40;
    let mut other_processor = body.to_owned();
    let digit = if &body[processor..=processor] == "1" {
        "2"
    } else {
        "1"
    };
    other_processor.replace_range(processor..=processor, digit);
    let flipped = good.replacen("\"status\":15", "\"status\":11", 1);
    assert_ne!(flipped, good);
    for (what, text, said) in [
        ("empty", String::new(), "not a whole snapshot"),
        (
            "half",
            good[..good.len() / 2].to_owned(),
            "its end is missing",
        ),
        (
            "no last byte",
            good[..good.len() - 1].to_owned(),
            "its end is missing",
        ),
        ("a flipped bit", flipped, "its checksum is wrong"),
        (
            "another version",
            format!("{}\n{body}\n", header.replace(":1,", ":2,")),
            "has format 2, and this Bulkhead reads 1",
        ),
        (
            "another processor",
            with_checksum(&other_processor),
            "its guest cannot go on here",
        ),
        (
            "other memory",
            with_checksum(&body.replace("\"memory_mib\":128", "\"memory_mib\":129")),
            "bytes where",
        ),
    ] {
        fs::write(&state, text).expect("write");
        let refused = refusal(&snapshot);
        assert!(refused.contains(said), "{what}: {refused}");
    }
    fs::remove_file(&state).expect("remove");
    assert!(refusal(&snapshot).contains("cannot read the snapshot"));
    fs::write(&state, &good).expect("write");

    // Memory, of which the first MiB is never nothing.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&memory)
        .expect("open");
    let mut byte = [0];
    let at = (0x7000..MIB)
        .find(|at| file.read_exact_at(&mut byte, *at).is_ok() && byte != [0])
        .expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("write");
    assert!(refusal(&snapshot).contains("checksum of what is at"));
    file.write_all_at(&byte, at).expect("write");
    let whole = file.metadata().expect("size").len();
    file.set_len(whole - 4096).expect("truncate");
    assert!(refusal(&snapshot).contains("bytes where"));
    fs::remove_file(&memory).expect("remove");
    assert!(refusal(&snapshot).contains("cannot read the snapshot's memory"));
}

#[test]
fn cards_when_restored_ones_are_given_them_then_each_has_an_address_of_its_own() {
    let files = folder();
    let snapshot = files.path().join("snapshot");
    net::in_new_namespace(|| {
        let first = Guest::boot(Setup::test_guest().with("spare_slots", 1.into()));
        first.vm.snapshot(&snapshot);
        drop(first);
        let clones: Vec<_> = (1..=3u8)
            .map(|number| {
                let host = Ipv4Addr::new(10, 7, number, 1);
                let tap = net::Tap::new(&format!("clone{number}"), host, 24).expect("make a tap");
                let restore = Restore::new().with("nets", json!([{"tap": tap.name()}]));
                let guest = Guest {
                    vm: restore.start(&snapshot),
                };
                // Root, vsock, console, entropy; then the spare one.
                guest.ask(json!({
                    "op": "write_file", "path": "/sys/bus/platform/drivers/virtio-mmio/bind",
                    "text": "virtio-mmio.4",
                }));
                let address = format!("10.7.{number}.2/24");
                guest.ask(json!({"op": "net_up", "interface": "eth0", "address": address}));
                (guest, tap, host)
            })
            .collect();
        let mut macs = BTreeSet::new();
        for (guest, _, host) in &clones {
            let file = json!({"op": "read_file", "path": "/sys/class/net/eth0/address"});
            macs.insert(guest.ask(file).text);
            let ping = json!({"op": "ping", "address": host, "count": 1, "size": 56});
            assert_eq!(guest.ask(ping).count, 1, "{host}");
        }
        assert_eq!(macs.len(), clones.len(), "{macs:?}");
    });
}

/// How often the VM is saved and restored; `BULKHEAD_TEST_ROUNDS` replaces it.
fn rounds() -> u32 {
    let asked = std::env::var("BULKHEAD_TEST_ROUNDS").ok();
    asked
        .and_then(|text| text.parse().ok())
        .unwrap_or(Lane::pick(2, 4))
}

#[test]
fn vm_when_saved_and_restored_again_and_again_under_load_then_nothing_is_lost() {
    let files = folder();
    let disk = files.path().join("disk");
    let file = fs::File::create(&disk).expect("disk");
    file.set_len(64 * MIB).expect("size");
    let bytes = Lane::pick(MIB / 2, 4 * MIB);
    let setup = Setup::test_guest()
        .with("cpus", 2.into())
        .disk(json!({"path": disk}));
    let mut guest = Guest::boot(setup);
    for round in 0..u64::from(rounds()) {
        let seed = round + 1;
        let offset = round % 8 * 8 * MIB;
        let mut echo = guest.open(&json!({"op": "echo"}));
        let write = json!({
            "op": "disk_write", "device": "/dev/vdb", "offset": offset, "bytes": bytes, "seed": seed,
        });
        let _writer = guest.open(&write);
        let _spinner = guest.open(&json!({"op": "spin", "millis": 300}));
        // On each processor one is pending all the time, and the clocks are looked at.
        let timers = json!({"op": "timers"});
        let expired = guest.ask(timers.clone()).count;
        for part in 0..20u8 {
            echo.write_all(&[part; 999]).expect("write");
            let mut back = [0; 999];
            echo.read_exact(&mut back).expect("read");
            assert_eq!(back, [part; 999]);
        }
        let before = uptime(&guest);

        let snapshot = files.path().join(format!("round{round}"));
        guest.vm.control("PUT", "/v1/pause", None);
        guest.vm.snapshot(&snapshot);
        guest.vm.kill();
        guest = Guest {
            vm: Restore::new().start(&snapshot),
        };
        let after = uptime(&guest);
        assert!(
            before <= after && after < before + 3600.0,
            "the clock went from {before} to {after} in round {round}"
        );
        let deadline = Instant::now() + patience();
        while guest.ask(timers.clone()).count < expired + 3 {
            assert!(Instant::now() < deadline, "no timer comes in round {round}");
            std::thread::sleep(Duration::from_millis(20));
        }
        // What was being written when the VM stood still is written all the same.
        let read =
            json!({"op": "disk_read", "device": "/dev/vdb", "offset": offset, "bytes": bytes});
        let wanted = checksum(bytes, seed);
        let deadline = Instant::now() + patience();
        while guest.ask(read.clone()).checksum != wanted {
            assert!(
                Instant::now() < deadline,
                "what was written in round {round} is not on the disk"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(guest.ask(json!({"op": "cpus"})).count, 2);
        fs::remove_dir_all(&snapshot).expect("remove");
    }
    guest.ask(json!({"op": "poweroff"}));
    guest.vm.expect_exit(0);
}

/// `bulkhead boot` or `bulkhead restore`, with its sockets in a folder. Dropping it kills it.
struct Session {
    child: std::process::Child,
    folder: std::path::PathBuf,
}

impl Session {
    fn start(home: &Home, arguments: &[&str], folder: &Path) -> Self {
        let mut command = home.command(arguments);
        command
            .arg("--vsock")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        process::die_with_parent(&mut command);
        Session {
            child: command.spawn().expect("start bulkhead"),
            folder: folder.to_owned(),
        }
    }

    /// Asks the guest's agent, as soon as it answers.
    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let deadline = Instant::now() + patience();
        loop {
            if let Ok(stream) = UnixStream::connect(self.folder.join("api.sock"))
                && stream.set_read_timeout(Some(patience())).is_ok()
                && let Ok((status, answer)) = http::request(stream, method, path, body)
            {
                assert!(status < 300, "{method} {path}: {status} {answer}");
                return answer;
            }
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "bulkhead ended: {ended:?}");
            assert!(Instant::now() < deadline, "the guest does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its agent was told that it was restored: until then connections may be cut off.
    fn wait_told(&mut self) {
        let info = || {
            let stream = UnixStream::connect(self.folder.join("api.sock"))?;
            stream.set_read_timeout(Some(patience()))?;
            http::request(stream, "GET", "/v1/info", None)
        };
        let deadline = Instant::now() + patience();
        // One that has answered several times in a row has got over it.
        let mut answers = 0;
        while answers < 3 {
            answers = if info().is_ok() { answers + 1 } else { 0 };
            assert!(Instant::now() < deadline, "the guest does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until it has ended in order, with nothing left.
    fn expect_end(&mut self) {
        let deadline = Instant::now() + patience();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(Instant::now() < deadline, "bulkhead has not ended");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(0));
        assert!(!self.folder.exists(), "{:?} is left", self.folder);
    }

    fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("terminate");
        self.expect_end();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn command_when_it_keeps_a_moment_then_the_vm_runs_on_and_others_go_on_from_there() {
    let home = Home::empty();
    let files = folder();
    let vm = files.path().join("vm");
    let mut first = Session::start(&home, &["boot", "--cid", "7"], &vm);
    first.ask("GET", "/v1/health", None);
    let vm_text = vm.to_str().expect("a path");
    home.expect(&["snapshot", "create", vm_text, "ready"]);
    first.ask("GET", "/v1/health", None);
    let listed = home.expect(&[
        "snapshot",
        "ls",
        "--format",
        "{{.Name}} {{.Cpus}} {{.Memory}}",
    ]);
    assert_eq!(listed.trim(), "ready 1 128MiB");
    let inspected = home.expect(&["snapshot", "inspect", "ready"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected[0]["agent"], true, "{inspected}");
    assert_eq!(inspected[0]["config"]["vsock"]["cid"], 7, "{inspected}");

    // The name is taken; the VM does not mind.
    let output = home
        .command(&["snapshot", "create", vm_text, "ready"])
        .output()
        .expect("run bulkhead");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(
        said.contains("already") && said.lines().count() == 1,
        "{said}"
    );

    // Two at once.
    let mut clones = ["one", "two"].map(|name| {
        let folder = files.path().join(name);
        Session::start(&home, &["restore", "ready"], &folder)
    });
    for clone in &mut clones {
        clone.ask("GET", "/v1/info", None);
    }
    // It may go while they run.
    home.expect(&["snapshot", "rm", "ready"]);
    assert_eq!(
        home.expect(&["snapshot", "ls", "--format", "{{.Name}}"]),
        ""
    );
    for clone in &mut clones {
        clone.ask("GET", "/v1/health", None);
        clone.terminate();
    }

    // With its end: what goes on from it is the only one.
    home.expect(&["snapshot", "create", "--stop", vm_text, "last"]);
    first.expect_end();
    let mut last = Session::start(&home, &["restore", "last"], &vm);
    last.ask("GET", "/v1/health", None);
    last.terminate();
    home.expect(&["snapshot", "rm", "last"]);
}

#[test]
fn guests_when_restored_twice_then_draw_other_random_numbers() {
    let home = Home::empty();
    let files = folder();
    let host = Host::boot();
    host.create("box", &["sleep", "100000"], |_| {});
    host.start("box");
    let script = "cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | sha256sum";
    host.sh("box", script);
    let control = host.vm.path("control.sock");
    let directory = control.parent().and_then(Path::to_str).expect("a path");
    home.expect(&["snapshot", "create", directory, "busy"]);
    let mut clones = ["one", "two"].map(|name| {
        let folder = files.path().join(name);
        Session::start(&home, &["restore", "busy"], &folder)
    });
    let said = clones.each_mut().map(|clone| {
        clone.wait_told();
        let agent = UnixStream::connect(clone.folder.join("api.sock")).expect("connect");
        sh(agent, "box", script).expect("exec").out()
    });
    let first = host.sh("box", script).out();
    let lines: Vec<&str> = [&first, &said[0], &said[1]]
        .iter()
        .flat_map(|said| said.lines())
        .collect();
    let different: BTreeSet<&str> = lines.iter().copied().collect();
    assert_eq!((lines.len(), different.len()), (6, 6), "{lines:?}");
    for clone in &mut clones {
        clone.terminate();
    }
    home.expect(&["snapshot", "rm", "busy"]);
}

#[test]
fn command_when_the_vm_writes_to_a_disk_then_each_that_is_restored_has_its_own() {
    let home = Home::empty();
    let files = folder();
    let disk = files.path().join("disk");
    let bytes = MIB / 4;
    fs::File::create(&disk)
        .and_then(|file| file.set_len(64 * MIB))
        .expect("disk");
    let guest = Guest::boot(Setup::test_guest().disk(json!({"path": disk})));
    let write = |guest: &Guest, seed: u64| {
        guest.ask(json!({
            "op": "disk_write", "device": "/dev/vdb", "offset": 0, "bytes": bytes, "seed": seed,
        }))
    };
    write(&guest, 1);
    let control = guest.vm.path("control.sock");
    let directory = control.parent().and_then(Path::to_str).expect("a path");
    home.expect(&["snapshot", "create", directory, "with-disk"]);
    // What it writes from here on is its own.
    write(&guest, 2);
    let kept = home.root().join("snapshots/with-disk/disk1");
    let size = fs::metadata(&kept).expect("the disk's copy");
    assert_eq!(size.len(), 64 * MIB);
    assert!(size.blocks() * 512 < 8 * MIB, "{} blocks", size.blocks());
    let before = fs::read(&kept).expect("read");
    let after = fs::read(&disk).expect("read");
    assert!(before != after, "the copy is not of the snapshot's moment");
    drop(guest);

    for name in ["one", "two"] {
        let folder = files.path().join(name);
        let mut session = Session::start(&home, &["restore", "with-disk"], &folder);
        let deadline = Instant::now() + patience();
        while !folder.join("control.sock").exists() {
            let ended = session.child.try_wait().expect("wait");
            assert!(ended.is_none(), "bulkhead ended: {ended:?}");
            assert!(Instant::now() < deadline, "the VM is not restored");
            std::thread::sleep(Duration::from_millis(20));
        }
        let copy = fs::read(folder.join("restored-disk1.img")).expect("its own disk");
        assert!(copy == before, "{name} does not begin with what was kept");
        session.terminate();
        assert!(
            fs::read(&kept).expect("read") == before,
            "{name} wrote to it"
        );
    }

    // A bit of the record, and the VM would have written to the first one's disk.
    let record = home.root().join("snapshots/with-disk/snapshot.json");
    let text = fs::read_to_string(&record).expect("the record");
    let other = text.replace("\"index\": 1", "\"index\": 3");
    assert_ne!(text, other);
    fs::write(&record, other).expect("write");
    let (_, said) = home.expect_code(125, &["restore", "with-disk"]);
    assert!(said.contains("not of the same disks"), "{said}");
    assert!(fs::read(&disk).expect("read") == after);
    home.expect(&["snapshot", "rm", "with-disk"]);
}
