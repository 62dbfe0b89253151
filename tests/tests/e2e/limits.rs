//! The control groups of containers, on a kernel that has all of cgroup v2: the crate's own tests, in a guest.

use bulkhead_tests::artifacts;
use bulkhead_tests::guest::Guest;
use bulkhead_tests::vm::Setup;
use serde_json::json;

/// The tests in `container/tests/limits.rs`.
const TESTS: [&str; 3] = [
    "memory_when_used_up_then_killed_and_said",
    "processes_when_too_many_then_no_more_are_forked",
    "processor_when_halved_then_throttled",
];

#[test]
fn limits_when_tested_in_a_guest_then_all_hold() {
    let disk = json!({"path": artifacts::test_container(), "read_only": true});
    let guest = Guest::boot(Setup::test_guest().disk(disk));
    let reply = guest.ask(json!({
        "op": "program",
        "device": "/dev/vdb",
        "command": ["tests/limits", "--test-threads=1"],
        "environment": [["BULKHEAD_BUSYBOX", "/run/programs/bin/busybox"]],
    }));
    assert_eq!(reply.count, 0, "{}", reply.text);
    for test in TESTS {
        let passed = format!("test {test} ... ok");
        assert!(reply.text.contains(&passed), "{passed}: {}", reply.text);
    }
}
