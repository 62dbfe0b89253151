//! Processors, their registers, entropy: the machine as guest programs see it.

use bulkhead_tests::guest::Guest;
use bulkhead_tests::lane::Lane;
use bulkhead_tests::vm::Setup;
use serde_json::json;

fn runs_on(cpus: u64) {
    let guest = Guest::boot(Setup::test_guest().with("cpus", cpus.into()));
    assert_eq!(guest.ask(json!({"op": "cpus"})).count, cpus);
}

#[test]
fn machine_when_it_has_1_cpu_then_programs_run_on_it() {
    runs_on(1);
}

#[test]
fn machine_when_it_has_2_cpus_then_programs_run_on_both() {
    runs_on(2);
}

#[test]
fn machine_when_it_has_many_cpus_then_programs_run_on_all() {
    let why = "a guest's kernel is too slow here to bring many processors up in good time";
    if Lane::is_not(Lane::Faithful, why) {
        return;
    }
    for cpus in [4, 32] {
        runs_on(cpus);
    }
}

#[test]
fn registers_when_processes_are_preempted_then_avx_state_survives() {
    // QEMU's SVM lets a guest set XCR0 unseen, so that KVM tells it a wrong size for XSAVE's area, and
    // its kernel does without.
    if Lane::is_not(Lane::Own, "guests have no XSAVE on an emulated SVM") {
        return;
    }
    let guest = Guest::boot(Setup::test_guest());
    let avx = json!({"op": "avx", "processes": 3, "iterations": 60_000_000});
    assert_eq!(guest.ask(avx).count, 3);
}

#[test]
fn entropy_when_read_from_the_device_then_different_each_time() {
    let guest = Guest::boot(Setup::test_guest());
    let read = || guest.ask(json!({"op": "rng", "bytes": 64}));
    let (first, second) = (read(), read());
    assert_eq!((first.bytes, second.bytes), (64, 64));
    assert_ne!(first.text, second.text);
    let zeroes = "00".repeat(16);
    assert!(!first.text.contains(&zeroes), "{}", first.text);
}

#[test]
fn assist_when_kvm_is_like_hardwares_then_it_is_never_on() {
    if Lane::is_not(
        Lane::Faithful,
        "this machine's KVM may well need the assist",
    ) {
        return;
    }
    let guest = Guest::boot(Setup::test_guest());
    let vm = guest.vm.control("GET", "/v1/vm", None);
    assert_eq!(vm["host"], "hardware", "{vm}");
    for parameter in ["clearcpuid", "syscall_by_fault"] {
        let cmdline = vm["cmdline"].as_str().unwrap_or_default();
        assert!(!cmdline.contains(parameter), "{cmdline}");
    }
    let metrics = guest.vm.control("GET", "/v1/metrics", None);
    assert_eq!(metrics["vcpus"][0]["assisted_instructions"], 0, "{metrics}");
}
