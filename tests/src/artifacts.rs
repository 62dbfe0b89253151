//! The built things under test.

use std::env;
use std::path::{Path, PathBuf};

/// The VMM, `bulkhead-vmm`.
pub fn vmm() -> PathBuf {
    named("BULKHEAD_VMM")
}

/// The command, `bulkhead`.
pub fn cli() -> PathBuf {
    named("BULKHEAD")
}

/// The project's guest kernel, an ELF `vmlinux`.
pub fn kernel() -> PathBuf {
    named("BULKHEAD_KERNEL")
}

/// The root image with the agent.
pub fn agent_image() -> PathBuf {
    named("BULKHEAD_AGENT_IMAGE")
}

/// The root image with the test guest.
pub fn test_image() -> PathBuf {
    named("BULKHEAD_TEST_IMAGE")
}

/// An initramfs with the test guest as its only program.
pub fn test_initramfs() -> PathBuf {
    named("BULKHEAD_TEST_INITRAMFS")
}

/// A disk for containers, with busybox on it.
pub fn test_container() -> PathBuf {
    named("BULKHEAD_TEST_CONTAINER")
}

/// An archive of a root with Python in it.
pub fn test_python() -> PathBuf {
    named("BULKHEAD_TEST_PYTHON")
}

/// A static busybox, of which images are made.
pub fn busybox() -> PathBuf {
    named("BULKHEAD_TEST_BUSYBOX")
}

/// A distribution's kernel as it ships it, a `bzImage`.
pub fn cloud_kernel() -> PathBuf {
    named("BULKHEAD_CLOUD_KERNEL")
}

fn named(variable: &str) -> PathBuf {
    let path = env::var_os(variable).map(PathBuf::from);
    let path = path.unwrap_or_else(|| {
        panic!("{variable} is not set: run the end-to-end tests with `make test-kvm` or `make test-faithful`")
    });
    assert!(
        Path::new(&path).exists(),
        "{variable} is {}, which does not exist: run `make build kernel`",
        path.display()
    );
    path
}
