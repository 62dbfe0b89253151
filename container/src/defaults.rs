//! What Docker gives a container unless it is told otherwise, for whoever writes configurations.

use crate::capabilities::DOCKER_DEFAULT;
use crate::spec::{Capabilities, DeviceRule, Mount, Namespace, NamespaceKind};

/// The filesystems every container has.
pub fn mounts() -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, options: &str| Mount {
        destination: destination.into(),
        kind: Some(kind.into()),
        source: Some(kind.into()),
        options: options.split(',').map(str::to_owned).collect(),
        ..Mount::default()
    };
    vec![
        mount("/proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
        mount("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount(
            "/dev/shm",
            "tmpfs",
            "nosuid,noexec,nodev,mode=1777,size=67108864",
        ),
    ]
}

/// The namespaces it does not share: all but users and clocks.
pub fn namespaces() -> Vec<Namespace> {
    use NamespaceKind as K;
    [K::Mount, K::Network, K::Uts, K::Pid, K::Ipc, K::Cgroup]
        .map(|kind| Namespace { kind, path: None })
        .to_vec()
}

/// Paths that tell of the host, or change it.
pub fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Paths that can be read but not written.
pub fn readonly_paths() -> Vec<String> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Docker's default capabilities, and other ones given and taken; all three sets that matter are the same.
pub fn capabilities() -> Capabilities {
    with_capabilities(&DOCKER_DEFAULT)
}

/// These capabilities, from the start and for good.
pub fn with_capabilities(names: &[&str]) -> Capabilities {
    let list: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    Capabilities {
        bounding: list.clone(),
        effective: list.clone(),
        permitted: list,
        ..Capabilities::default()
    }
}

/// No devices but the default ones, which always may be used.
pub fn device_rules() -> Vec<DeviceRule> {
    vec![DeviceRule {
        access: Some("rwm".into()),
        ..DeviceRule::default()
    }]
}
