//! Guest memory, and how it goes back to the host.

use std::time::{Duration, Instant};

use bulkhead_tests::guest::Guest;
use bulkhead_tests::lane::{Lane, patience};
use bulkhead_tests::process;
use bulkhead_tests::vm::Setup;
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Host memory that the guest has in use, in MiB.
fn in_use(guest: &Guest) -> u64 {
    process::guest_memory_bytes(guest.vm.pid()).expect("guest memory") / MIB
}

/// Waits until the guest has at most `most` MiB of the host's memory in use.
fn wait_until_at_most(guest: &Guest, most: u64) {
    let deadline = Instant::now() + patience();
    while in_use(guest) > most {
        if Instant::now() > deadline {
            let now = in_use(guest);
            guest
                .vm
                .fail(&format!("{now} MiB are in use, not at most {most}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn balloon_when_inflated_then_memory_goes_back_to_the_host_and_returns() {
    // Each page is hundreds of instructions to the guest's kernel.
    let (memory, touch, balloon, back) = Lane::pick((128, 50, 80, 30), (256, 150, 128, 100));
    let setup = Setup::test_guest().with("memory_mib", memory.into()).with(
        "balloon",
        json!({"size_mib": 0, "free_page_reporting": false}),
    );
    let guest = Guest::boot(setup);
    guest.ask(json!({"op": "memory", "touch_mib": touch}));
    let full = in_use(&guest);
    assert!(full >= touch, "{full} MiB");

    guest
        .vm
        .control("PUT", "/v1/balloon", Some(&json!({"size_mib": balloon})));
    // Some of what the balloon takes was not in use.
    wait_until_at_most(&guest, full - back);
    guest
        .vm
        .control("PUT", "/v1/balloon", Some(&json!({"size_mib": 0})));
    // It can be used again: not at once, so the guest may have to be asked more than once.
    let deadline = Instant::now() + patience();
    while guest
        .try_ask(&json!({"op": "memory", "touch_mib": touch}))
        .error
        .is_some()
    {
        assert!(Instant::now() < deadline, "the memory does not come back");
    }
    assert!(in_use(&guest) >= touch);
}

#[test]
fn memory_when_the_guest_frees_it_then_reporting_gives_it_back() {
    let (memory, touch, left) = Lane::pick((128, 70, 60), (256, 150, 100));
    let setup = Setup::test_guest().with("memory_mib", memory.into()).with(
        "balloon",
        json!({"size_mib": 0, "free_page_reporting": true}),
    );
    let guest = Guest::boot(setup);
    guest.ask(json!({"op": "memory", "touch_mib": touch}));
    // The guest has freed it already and reports in the background.
    wait_until_at_most(&guest, left);
    guest.ask(json!({"op": "memory", "touch_mib": touch}));
}

#[test]
fn memory_when_it_spans_the_hole_below_4_gib_then_all_of_it_works() {
    let setup = Setup::test_guest().with("memory_mib", 3584.into());
    let guest = Guest::boot(setup);
    let meminfo = guest.ask(json!({"op": "meminfo"})).text;
    let total: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("MemTotal");
    assert!(total / 1024 > 3300, "{total} KiB of 3584 MiB");
}

#[test]
fn vmm_when_it_has_every_device_then_its_own_memory_is_small() {
    let setup = Setup::test_guest().with("balloon", json!({"size_mib": 0}));
    let guest = Guest::boot(setup);
    let pss = process::pss_without_guest_memory(guest.vm.pid()).expect("PSS");
    assert!(pss <= 5 * MIB, "{} KiB", pss / 1024);
}
