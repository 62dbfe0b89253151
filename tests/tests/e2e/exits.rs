//! How a VM ends, and what its exit code says.

use bulkhead_tests::vm::{Setup, Vm};
use bulkhead_tests::{artifacts, cpio};

/// Boots the one-program guest, told on the command line how to end.
fn hello(cmdline: &str) -> Vm {
    let setup = Setup::bare().cmdline(cmdline);
    let initramfs = setup.path("initramfs");
    cpio::one_program(&initramfs, &artifacts::hello()).expect("make an initramfs");
    setup.initrd(&initramfs).start()
}

/// How many lines of its own the VMM wrote.
fn sentences(vm: &Vm) -> usize {
    vm.stderr().lines().count()
}

#[test]
fn guest_when_it_powers_off_then_exit_code_is_0_and_nothing_is_said() {
    let mut vm = hello("HELLO=poweroff");
    vm.expect_exit(0);
    assert!(
        vm.console().contains("hello from Linux"),
        "{}",
        vm.console()
    );
    assert_eq!(vm.stderr(), "");
}

#[test]
fn guest_when_it_resets_then_exit_code_is_10() {
    let mut vm = hello("HELLO=reset");
    vm.expect_exit(10);
    assert_eq!(sentences(&vm), 1, "{}", vm.stderr());
}

#[test]
fn guest_when_its_kernel_panics_then_exit_code_is_11() {
    let mut vm = hello("HELLO=panic");
    vm.expect_exit(11);
    assert!(
        vm.console().contains("Attempted to kill init"),
        "{}",
        vm.console()
    );
    assert_eq!(sentences(&vm), 1, "{}", vm.stderr());
}

#[test]
fn guest_when_it_triple_faults_then_exit_code_is_12() {
    // What `reboot=t` asks the kernel to do instead of using the keyboard controller.
    let mut vm = hello("HELLO=reset reboot=t");
    vm.expect_exit(12);
    assert_eq!(sentences(&vm), 1, "{}", vm.stderr());
}
