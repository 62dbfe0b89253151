//! The host's kernel: what VMs and containers use of it.

use std::fs;
use std::path::Path;

use super::Finding;

/// Looks at the running kernel.
pub fn look() -> Vec<Finding> {
    let mut findings = vec![release(), tun(), io_uring(), memory()];
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for (name, why) in [
        (
            "overlay",
            "containers on the host's kernel need it for their writable layer",
        ),
        (
            "erofs",
            "containers on the host's kernel need it for their image",
        ),
    ] {
        findings.push(filesystem(&filesystems, name, why));
    }
    for (name, path) in [
        ("pid", "pid"),
        ("network", "net"),
        ("mount", "mnt"),
        ("user", "user"),
        ("time", "time"),
        ("cgroup", "cgroup"),
    ] {
        if !Path::new("/proc/self/ns").join(path).exists() {
            findings.push(Finding::warning(
                format!("{name} namespaces"),
                "not in this kernel",
                "microVMs run without; containers on the host's kernel need them",
            ));
        }
    }
    findings
}

fn release() -> Finding {
    let uname = rustix::system::uname();
    Finding::good(
        "kernel",
        format!(
            "{} {} {}",
            uname.sysname().to_string_lossy(),
            uname.release().to_string_lossy(),
            uname.machine().to_string_lossy()
        ),
    )
}

fn tun() -> Finding {
    let what = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(what) {
        Ok(_) => Finding::good(what, "there, and you may use it"),
        Err(e) => Finding::warning(
            what,
            format!("cannot be opened: {e}"),
            "guests have no network: load the module `tun`, or ask for permission",
        ),
    }
}

fn io_uring() -> Finding {
    let what = "io_uring";
    // The switch came with Linux 6.6; before, what is built in is allowed.
    let switch = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match switch.trim() {
        "1" | "2" => Finding::warning(
            what,
            "switched off",
            "disks use threads, which is slower: `sysctl kernel.io_uring_disabled=0`",
        ),
        _ => Finding::good(what, "not switched off"),
    }
}

fn memory() -> Finding {
    let what = "memory";
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    match available {
        Some(kib) if kib < 256 << 10 => Finding::warning(
            what,
            format!("{} MiB available", kib >> 10),
            "room for one small VM at most: free some",
        ),
        Some(kib) => Finding::good(what, format!("{} MiB available", kib >> 10)),
        None => Finding::warning(what, "unknown", "mount /proc"),
    }
}

fn filesystem(filesystems: &str, name: &str, why: &str) -> Finding {
    let what = format!("file system {name}");
    let known = filesystems
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name));
    if known {
        Finding::good(what, "there")
    } else {
        Finding::warning(
            what,
            "not loaded",
            format!("`modprobe {name}`: {why}; microVMs bring their own"),
        )
    }
}
