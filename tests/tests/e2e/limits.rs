//! The limits of containers: the crate's own tests in a guest, whose kernel has all of cgroup v2, and what the
//! command's options come to.

use bulkhead_tests::artifacts;
use bulkhead_tests::guest::Guest;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::Lane;
use bulkhead_tests::vm::Setup;
use serde_json::json;

/// The tests in `container/tests/limits.rs`.
const TESTS: [&str; 6] = [
    "huge_pages_when_limited_then_where_they_are_counted_or_refused",
    "limits_when_changed_up_and_down_then_the_last_ones_hold",
    "memory_when_used_up_then_killed_and_said",
    "processes_when_too_many_then_no_more_are_forked",
    "processor_when_halved_then_throttled",
    "processors_when_listed_then_it_has_no_others",
];

#[test]
fn limits_when_tested_in_a_guest_then_all_hold() {
    let disk = json!({"path": artifacts::test_container(), "read_only": true});
    let guest = Guest::boot(Setup::test_guest().disk(disk));
    let reply = guest.ask(json!({
        "op": "program",
        "device": "/dev/vdb",
        // What is left out keeps a guest busy for long whose kernel is emulated.
        "command": ["tests/limits", "--test-threads=1", "--skip", "fork_without", "--skip", "watches"],
        "environment": [["BULKHEAD_BUSYBOX", "/run/programs/bin/busybox"]],
    }));
    assert_eq!(reply.count, 0, "{}", reply.text);
    for test in TESTS {
        let passed = format!("test {test} ... ok");
        assert!(reply.text.contains(&passed), "{passed}: {}", reply.text);
    }
}

/// Spins until it has used two seconds of a processor, and says before and after what it has used, in
/// microseconds, and how long the machine is up, in seconds. Nothing is forked on the way.
const SPIN: &str = "
    look() { while read -r key used; do [ $key = usage_usec ] && break; done </sys/fs/cgroup/cpu.stat
             read -r up idle </proc/uptime; }
    look; first=$used; echo $used $up
    while [ $((used - first)) -lt 2000000 ]; do
        i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); done
        look
    done
    echo $used $up";

/// Which part of a processor [`SPIN`] had.
fn share(said: &str) -> f64 {
    let numbers: Vec<f64> = said
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    let [used, up, used_then, up_then] = numbers[..] else {
        panic!("{said}");
    };
    (used_then - used) / 1e6 / (up_then - up)
}

#[test]
fn run_when_limited_then_the_program_has_no_more_processor_and_memory() {
    let home = Home::with_busybox();
    let half = home.expect(&["run", "--rm", "--cpus", "0.5", "busybox", "sh", "-c", SPIN]);

    // Memory that it writes to. But a guest whose kernel is emulated is slow to hand out pages: there it is
    // large ones, and nothing is written to them.
    let hog = Lane::pick(
        "exec busybox fallocate -l 128M /large/file",
        "exec busybox dd if=/dev/zero of=/dev/null bs=128M count=1",
    );
    let script = format!("{SPIN}; echo before; {hog}");
    let hog = [
        "--name",
        "hog",
        "--memory",
        "64M",
        "--tmpfs",
        "/large:huge=always,size=256m",
    ];
    let run = [&["run"], &hog[..], &["busybox", "sh", "-c", &script]].concat();
    let (said, complaints) = home.expect_code(137, &run);
    let whole = said.strip_suffix("before\n").expect("up to the hog");
    assert_eq!(complaints, "");
    assert_eq!(home.inspect("hog", ".State.OOMKilled"), "true");
    assert_eq!(
        home.inspect("hog", ".HostConfig.Memory"),
        (64 << 20).to_string()
    );

    // Whatever else this machine has to do, and however it counts.
    let (half, whole) = (share(&half), share(whole));
    assert!(
        half < 0.75 * whole && half > 0.25 * whole,
        "{half} of a processor, and {whole} without a limit"
    );
    home.expect(&["rm", "hog"]);
    home.expect_nothing_left();
}

#[test]
fn processes_when_there_are_too_many_then_no_more_start_and_the_guest_still_answers() {
    let home = Home::with_busybox();
    let limited = ["run", "-d", "--name", "bomb", "--pids-limit", "16"];
    home.expect(&[&limited[..], &["busybox", "sleep", "100000"]].concat());
    assert_eq!(home.inspect("bomb", ".HostConfig.PidsLimit"), "16");
    // A shell that cannot fork ends; what it has started goes on, and there is room for one more.
    let bomb = "while :; do sleep 1000 & done";
    let (_, said) = home.expect_code(2, &["exec", "bomb", "sh", "-c", bomb]);
    assert!(said.contains("can't fork"), "{said}");
    home.expect(&["exec", "-d", "bomb", "sleep", "1000"]);
    let stats = home.expect(&["stats", "--no-stream", "--format", "{{.PIDs}}", "bomb"]);
    assert_eq!(stats, "16\n");
    home.expect_code(3, &["exec", "bomb", "sh", "-c", "exit 3"]);
    home.expect_code(2, &["exec", "bomb", "sh", "-c", "sleep 1000 & exit 3"]);
    assert!(home.expect(&["top", "bomb"]).contains("sleep 1000"));
    home.expect(&["rm", "--force", "bomb"]);
    home.expect_nothing_left();
}
