//! Measures what the tests must not assert: how long things take. Prints medians as a table.
//!
//! `figures [N]` measures N times (5 if not said), and what is quick twice as often. Run by `make figures`, in both lanes. If
//! `BULKHEAD_FIRECRACKER` names a static `firecracker`, it boots the same kernel and initramfs, in turn
//! with us.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_test_guest::REBOOT_PARAMETER;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::Lane;
use bulkhead_tests::vm::{Setup, Vm};
use bulkhead_tests::{artifacts, net, process};
use serde_json::{Value, json};

/// The figures of one VM, by name, in the unit that the name says.
type Row = Vec<(&'static str, f64)>;

fn main() {
    let runs = std::env::args()
        .nth(1)
        .map_or(5, |n| n.parse().expect("figures [N]: N is a number"));
    println!(
        "lane {:?}, median of {runs} (least to most)",
        Lane::current()
    );
    net::in_new_namespace(|| {
        let _tap = net::Tap::new("figures0", Ipv4Addr::new(10, 7, 0, 1), 24).expect("make a tap");
        measure(
            "the agent: 1 vCPU, 128 MiB, block, net, vsock, console",
            runs,
            || agent(1),
        );
        measure("the agent: 2 vCPUs, the same", runs, || agent(2));
    });
    containers(runs);
    measure("a one-program initramfs: 1 vCPU, 128 MiB", runs, || {
        let mut row = one_program();
        if let Some(firecracker) = std::env::var_os("BULKHEAD_FIRECRACKER") {
            let firecracker = PathBuf::from(firecracker);
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

/// Runs `true` in containers, from the command's start to its end.
fn containers(runs: usize) {
    let home = Home::with_busybox();
    let took = |arguments: &[&str]| {
        let start = Instant::now();
        home.expect(arguments);
        ms(start.elapsed())
    };
    measure("a container of busybox: 1 vCPU, 512 MiB", runs, || {
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
    row.extend(before_the_guest(&vm));
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

/// What the VMM did before its first `KVM_RUN`.
fn before_the_guest(vm: &Vm) -> Row {
    let times = vm.control("GET", "/v1/timings", None);
    let at = |name: &str| times[name].as_f64().unwrap_or(f64::NAN) / 1e6;
    vec![
        ("main to KVM_RUN, ms", at("run_ns") - at("process_ns")),
        ("- of it host and KVM, ms", at("host_ns") - at("process_ns")),
        ("- of it memory, ms", at("memory_ns") - at("host_ns")),
        ("- of it kernel, ms", at("kernel_ns") - at("memory_ns")),
        (
            "- of it devices and vCPUs, ms",
            at("run_ns") - at("kernel_ns"),
        ),
        ("CPU time to KVM_RUN, ms", at("cpu_ns")),
    ]
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
