//! How a VM ends, and what its exit code says.

use bulkhead_tests::guest::Guest;
use bulkhead_tests::vm::Setup;
use serde_json::{Value, json};

/// Boots a guest, has it end, and expects `code` and as many `sentences` from the VMM.
fn ends(setup: Setup, request: Value, code: i32, sentences: usize) -> Guest {
    let mut guest = Guest::boot(setup);
    guest.ask(request);
    guest.vm.expect_exit(code);
    let said = guest.vm.stderr();
    assert_eq!(said.lines().count(), sentences, "{said}");
    for socket in ["vsock.sock", "control.sock"] {
        assert!(!guest.vm.path(socket).exists(), "{socket} was left behind");
    }
    guest
}

#[test]
fn guest_when_it_powers_off_then_exit_code_is_0_and_nothing_is_said() {
    ends(Setup::test_guest(), json!({"op": "poweroff"}), 0, 0);
}

#[test]
fn guest_when_it_resets_then_exit_code_is_10() {
    ends(Setup::test_guest(), json!({"op": "reboot"}), 10, 1);
}

#[test]
fn guest_when_its_kernel_panics_then_exit_code_is_11_and_its_console_says_why() {
    let guest = ends(Setup::test_guest(), json!({"op": "panic"}), 11, 1);
    let console = guest.vm.console();
    assert!(console.contains("Attempted to kill init"), "{console}");
}

#[test]
fn guest_when_it_triple_faults_then_exit_code_is_12() {
    // What `reboot=t` has the kernel do instead of using the keyboard controller.
    let setup = Setup::test_guest().cmdline("reboot=t");
    ends(setup, json!({"op": "reboot"}), 12, 1);
}
