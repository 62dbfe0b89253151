//! Measures what the tests must not assert: how long things take. Prints medians as a table.
//!
//! `figures [N] [PART...]` measures N times (5 if not said), and what is quick twice as often. The parts are `boot`, `restored`,
//! `containers` and `clones`; all but `clones` if none is named, as that fills a small machine. Run by
//! `make figures`, in both lanes. If `BULKHEAD_FIRECRACKER` names a static `firecracker`, it boots the same kernel
//! and initramfs, and restores the same guest, in turn with us.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_test_guest::REBOOT_PARAMETER;
use bulkhead_tests::firecracker::{self, Firecracker};
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::{Lane, patience};
use bulkhead_tests::vm::{Restore, Setup, Vm};
use bulkhead_tests::{artifacts, http, net, process, socket, vsock};
use serde_json::{Value, json};

/// The agent's port.
const API_PORT: u32 = 1024;
/// After this a guest that was ready has done what it was about to do.
const SETTLED: Duration = Duration::from_secs(2);

/// The figures of one VM, by name, in the unit that the name says.
type Row = Vec<(&'static str, f64)>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runs = arguments
        .next()
        .map_or(5, |n| n.parse().expect("figures [N]: N is a number"));
    let parts: Vec<String> = arguments.collect();
    let is_wanted = |part: &str| match parts.is_empty() {
        true => part != "clones",
        false => parts.iter().any(|wanted| wanted == part),
    };
    println!(
        "lane {:?}, median of {runs} (least to most)",
        Lane::current()
    );
    if is_wanted("boot") {
        boots(runs);
    }
    if is_wanted("restored") {
        restored(runs);
    }
    if is_wanted("containers") {
        containers(runs);
    }
    if is_wanted("clones") {
        clones(runs);
    }
}

fn boots(runs: usize) {
    net::in_new_namespace(|| {
        let _tap = net::Tap::new("figures0", Ipv4Addr::new(10, 7, 0, 1), 24).expect("make a tap");
        measure(
            "the agent: 1 vCPU, 128 MiB, block, net, vsock, console",
            runs,
            || agent(1),
        );
        measure("the agent: 2 vCPUs, the same", runs, || agent(2));
    });
    measure("a one-program initramfs: 1 vCPU, 128 MiB", runs, || {
        let mut row = one_program();
        if let Some(firecracker) = firecracker::binary() {
            row.extend([
                ("Firecracker, ms", in_firecracker(&firecracker, "")),
                (
                    "Firecracker and noreplace-smp, ms",
                    in_firecracker(&firecracker, "noreplace-smp"),
                ),
            ]);
        }
        row
    });
}

/// Restores the agent's guest, until it answers.
fn restored(runs: usize) {
    let folder = tempfile::tempdir().expect("make a folder");
    let snapshot = folder.path().join("snapshot");
    let mut vm = Setup::agent().start();
    vm.wait_ready();
    let described = vm.control("GET", "/v1/vm", None);
    let cmdline = described["cmdline"].as_str().expect("a command line");
    // What it was about to do after it was ready is done.
    std::thread::sleep(SETTLED);
    let start = Instant::now();
    vm.snapshot(&snapshot);
    let took = ms(start.elapsed());
    drop(vm);
    let kib = fs::metadata(snapshot.join("memory")).map_or(0, |m| m.blocks() / 2);
    println!("\na snapshot of the agent's guest of 128 MiB: {took:.1} ms, {kib} KiB");
    let other = saved_in_firecracker(cmdline, folder.path());
    // What the first one of it needs is read ahead for the others.
    let first = Restore::new();
    let path = first.path("vsock.sock");
    let first = first.start(&snapshot);
    ask_agent(&path);
    first.control("PUT", "/v1/working-set", None);
    drop(first);
    for verify in ["after_reboot", "always"] {
        let what = format!("that guest restored, verify {verify}");
        let rounds = Cell::new(0);
        measure(&what, runs, || {
            // Who comes first takes turns, too.
            let ours_first = rounds.replace(rounds.get() + 1) % 2 == 0;
            let theirs = || {
                let (binary, snapshot) = other.as_ref()?;
                Some(restored_in_firecracker(binary, snapshot))
            };
            let before = if ours_first { None } else { theirs() };
            let (took, phases) = restored_in_ours(&snapshot, verify);
            let mut row = vec![("exec to answer, ms", took)];
            if let Some(its) = before.or_else(theirs) {
                row.push(("Firecracker, exec to answer, ms", its));
                row.push(("ours in % of Firecracker's", 100.0 * took / its));
            }
            row.extend(phases);
            row
        });
    }
}

/// From exec to the agent's answer in ms, and what the VMM did before its guest ran.
fn restored_in_ours(snapshot: &Path, verify: &str) -> (f64, Row) {
    let restore = Restore::new().with("verify", verify.into());
    let path = restore.path("vsock.sock");
    let start = Instant::now();
    let vm = restore.start(snapshot);
    ask_agent(&path);
    (ms(start.elapsed()), before_the_guest(&vm, RESTORED))
}

/// From exec to the agent's answer in ms.
fn restored_in_firecracker(binary: &Path, snapshot: &firecracker::Snapshot) -> f64 {
    let start = Instant::now();
    let vm = Firecracker::restore(binary, snapshot).expect("restore in Firecracker");
    ask_agent(&vm.vsock_path());
    ms(start.elapsed())
}

/// The agent's guest, saved by another VMM in a folder in `folder`, and that VMM; `cmdline` is the one that ours
/// booted it with. Says why if there is none.
fn saved_in_firecracker(cmdline: &str, folder: &Path) -> Option<(PathBuf, firecracker::Snapshot)> {
    let Some(binary) = firecracker::binary() else {
        println!("Firecracker was not measured: BULKHEAD_FIRECRACKER is not set");
        return None;
    };
    let folder = folder.join("firecracker");
    fs::create_dir(&folder).expect("make a folder");
    let vm = match Firecracker::boot(&binary, cmdline) {
        Ok(vm) => vm,
        // It takes hardware.
        Err(e) => {
            println!("Firecracker was not measured, as it does not boot this guest here: {e}");
            return None;
        }
    };
    std::thread::sleep(SETTLED);
    let start = Instant::now();
    let snapshot = vm.snapshot(&folder).expect("take Firecracker's snapshot");
    println!(
        "Firecracker's snapshot of the same: {:.1} ms, {} KiB",
        ms(start.elapsed()),
        snapshot.kib()
    );
    Some((binary, snapshot))
}

/// Has the agent behind the socket at `path` answer, as soon as there is one.
fn ask_agent(path: &Path) {
    let stream = socket::connect_when_there(path, patience()).expect("connect to the guest");
    let stream = vsock::lead_to(stream, API_PORT, patience()).expect("connect to the agent");
    // To the end that the answer tells: that the agent says no more is not passed on by every VMM.
    let answer = http::request(stream, "GET", "/v1/health", None);
    assert_eq!(answer.expect("ask the agent").0, 200);
}

/// What no two machines may have in common, a line for each.
const DRAW: &str =
    "head -c 32 /dev/urandom | sha256sum; cd /proc/sys/kernel/random; cat uuid boot_id; hostname";

/// Fifty containers that do nothing, all started at once.
fn clones(runs: usize) {
    const CLONES: usize = 50;
    let home = Home::with_busybox();
    let start = |name: &str| {
        home.command(&[
            "run", "--detach", "--name", name, "--memory", "192M", "busybox", "sleep", "1000000",
        ])
    };
    // The template.
    let first = start("first").output().expect("run");
    assert!(first.status.success(), "{first:?}");
    measure("fifty idle containers at once", runs.min(2), || {
        let began = Instant::now();
        let names: Vec<String> = (0..CLONES).map(|n| format!("clone{n}")).collect();
        let mut children: Vec<_> = names
            .iter()
            .map(|name| {
                start(name)
                    .stdout(Stdio::null())
                    .spawn()
                    .expect("start bulkhead")
            })
            .collect();
        let failed = children
            .iter_mut()
            .map(|child| child.wait().is_ok_and(|status| status.success()))
            .filter(|started| !started)
            .count();
        let took = ms(began.elapsed());
        let pss: u64 = home.processes().into_iter().map(process::pss).sum();
        // Once they were let alone for that figure.
        let drawn = names.iter().map(|name| {
            let output = home.run(&["exec", name, "sh", "-c", DRAW]);
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        let drawn: Vec<String> = drawn.collect();
        let different = |line: usize| {
            let lines = drawn.iter().filter_map(|text| text.lines().nth(line));
            lines.collect::<HashSet<_>>().len() as f64
        };
        let different = [0, 1, 2, 3].map(different);
        for name in &names {
            home.run(&["rm", "--force", name]);
        }
        vec![
            ("all started, ms", took),
            ("failed", failed as f64),
            (
                "PSS of each, all told, MiB",
                pss as f64 / f64::from(1 << 20) / (CLONES + 1) as f64,
            ),
            ("different numbers of /dev/urandom", different[0]),
            ("different UUIDs", different[1]),
            ("different boot IDs", different[2]),
            ("different hostnames", different[3]),
        ]
    });
}

/// Runs `true` in containers, from the command's start to its end.
fn containers(runs: usize) {
    let home = Home::with_busybox();
    let took = |arguments: &[&str]| {
        let start = Instant::now();
        home.expect(arguments);
        ms(start.elapsed())
    };
    measure(
        "a container of busybox, booted: 1 vCPU, 512 MiB",
        runs,
        || {
            vec![(
                "run --rm --cold true, ms",
                took(&["run", "--rm", "--cold", "busybox", "true"]),
            )]
        },
    );
    println!(
        "\nits template, once, with the first clone: {:.0} ms",
        took(&["run", "--rm", "busybox", "true"])
    );
    measure("a container of busybox, restored", 2 * runs, || {
        vec![(
            "run --rm true, ms",
            took(&["run", "--rm", "busybox", "true"]),
        )]
    });
    home.expect(&[
        "run", "--detach", "--name", "it", "busybox", "sleep", "1000000",
    ]);
    measure("in a container that runs", 2 * runs, || {
        vec![("exec true, ms", took(&["exec", "it", "true"]))]
    });
}

/// Boots to the agent's ready.
fn agent(cpus: u32) -> Row {
    let mut vm = Setup::agent()
        .with("cpus", cpus.into())
        .net(json!({"tap": "figures0"}))
        .start();
    let (ready, took) = vm.wait_ready();
    let mut row = vec![("exec to ready, ms", ms(took))];
    row.extend(inside(&ready));
    row.extend(before_the_guest(&vm, BOOTED));
    let pss = process::pss_without_guest_memory(vm.pid()).unwrap_or(0);
    row.push(("PSS outside guest memory, KiB", pss as f64 / 1024.0));
    let guest = process::guest_memory_bytes(vm.pid()).unwrap_or(0);
    row.push((
        "guest memory in use, MiB",
        guest as f64 / f64::from(1 << 20),
    ));
    row
}

/// What the guest says of its own boot.
fn inside(ready: &Value) -> Row {
    let timing = |name: &str| ready["timings"][name].as_f64().unwrap_or(f64::NAN) / 1e6;
    vec![
        ("guest's clock to init, ms", timing("init_start_ns")),
        ("guest's clock to ready, ms", timing("ready_ns")),
    ]
}

/// The parts of what the VMM does before its first `KVM_RUN`.
type Parts = [&'static str; 4];
const BOOTED: Parts = [
    "- of it host and KVM, ms",
    "- of it memory, ms",
    "- of it kernel, ms",
    "- of it devices and vCPUs, ms",
];
const RESTORED: Parts = [
    "- of it the snapshot's state, ms",
    "- of it memory, ms",
    "- of it devices, ms",
    "- of it KVM and vCPUs, ms",
];

/// What the VMM did before its first `KVM_RUN`.
fn before_the_guest(vm: &Vm, parts: Parts) -> Row {
    let times = vm.control("GET", "/v1/timings", None);
    let at = |name: &str| times[name].as_f64().unwrap_or(f64::NAN) / 1e6;
    let moments = ["process_ns", "host_ns", "memory_ns", "kernel_ns", "run_ns"].map(at);
    let mut row = vec![("main to KVM_RUN, ms", moments[4] - moments[0])];
    row.extend((0..4).map(|part| (parts[part], moments[part + 1] - moments[part])));
    row.push(("CPU time to KVM_RUN, ms", at("cpu_ns")));
    row
}

/// Boots a program that resets the machine at once, until the VMM is gone.
fn one_program() -> Row {
    let setup = Setup::bare()
        .initrd(&artifacts::test_initramfs())
        .cmdline(REBOOT_PARAMETER);
    let start = Instant::now();
    let mut vm = setup.start();
    vm.expect_exit(10);
    vec![("exec to exit, ms", ms(start.elapsed()))]
}

/// The same in another VMM, with the parameters that it would be given for this, and `more`: how long it
/// took, in ms.
fn in_firecracker(firecracker: &Path, more: &str) -> f64 {
    let config = json!({
        "boot-source": {
            "kernel_image_path": artifacts::kernel(),
            "initrd_path": artifacts::test_initramfs(),
            "boot_args": format!("quiet reboot=k panic=-1 8250.nr_uarts=0 {more} {REBOOT_PARAMETER}"),
        },
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    let file = std::env::temp_dir().join(format!("firecracker-{}.json", std::process::id()));
    fs::write(&file, config.to_string()).expect("write the configuration");
    let start = Instant::now();
    let output = Command::new(firecracker)
        .args(["--no-api", "--no-seccomp", "--level", "Error"])
        .arg("--config-file")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .expect("run firecracker");
    let took = start.elapsed();
    let _ = fs::remove_file(file);
    // Where it cannot run a guest, how long that took is of no interest.
    if output.status.success() {
        ms(took)
    } else {
        f64::NAN
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Runs `once` as often as asked and prints the median of each figure.
fn measure(what: &str, runs: usize, once: impl Fn() -> Row) {
    let rows: Vec<Row> = (0..runs.max(1)).map(|_| once()).collect();
    println!("\n{what}, {} times", rows.len());
    for (index, (name, _)) in rows[0].iter().enumerate() {
        let mut values: Vec<f64> = rows.iter().map(|row| row[index].1).collect();
        values.sort_by(f64::total_cmp);
        println!(
            "  {name:32} {:10.1}   ({:.1} to {:.1})",
            values[values.len() / 2],
            values[0],
            values[values.len() - 1]
        );
    }
}
