//! The host's KVM itself.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

const KVM_CREATE_VM: u64 = 0xae01;

#[test]
fn kvm_when_opened_then_makes_a_vm() {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("open /dev/kvm");
    // SAFETY: takes an integer and returns a descriptor, which is left to the process's end.
    let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM as _, 0) };
    assert!(vm >= 0, "{}", std::io::Error::last_os_error());
}
