//! What the host's kernel knows about a process of ours.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The name of the memfd that holds guest memory.
const GUEST_MEMORY: &str = "/memfd:guest-memory";

/// Has the process that `command` starts killed when the thread that starts it ends, however it
/// ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec this makes one async-signal-safe system call and touches no
    // memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            let kill = Some(rustix::process::Signal::KILL);
            rustix::process::set_parent_process_death_signal(kill).map_err(io::Error::from)
        });
    }
}

/// Raises this process's limit of open files as far as it may go; what it starts inherits that.
pub fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Bytes of host memory behind the guest memory of VMM `pid`: what the guest has touched and not
/// given back.
pub fn guest_memory_bytes(pid: u32) -> io::Result<u64> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let is_it = fs::read_link(&path)
            .is_ok_and(|target| target.to_string_lossy().starts_with(GUEST_MEMORY));
        if is_it {
            return Ok(fs::metadata(path)?.blocks() * 512);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("process {pid} has no {GUEST_MEMORY}"),
    ))
}

/// Proportional set size of process `pid` without its guest memory, in bytes.
pub fn pss_without_guest_memory(pid: u32) -> io::Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(sum_pss(&smaps))
}

fn sum_pss(smaps: &str) -> u64 {
    let mut total = 0;
    let mut counts = true;
    for line in smaps.lines() {
        // A mapping starts with its addresses; the lines about it have a name and a colon.
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            counts = !line.contains(GUEST_MEMORY);
        } else if first == "Pss:" && counts {
            let kib: u64 = line
                .split_whitespace()
                .nth(1)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            total += kib << 10;
        }
    }
    total
}

/// Whether process `pid` exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The state follows the name, which is in parentheses and may hold any character.
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    })
}

/// Processes whose command line names `needle`, ourselves apart.
pub fn naming(needle: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != std::process::id())
        .filter(|pid| {
            fs::read(PathBuf::from(format!("/proc/{pid}/cmdline")))
                .is_ok_and(|cmdline| String::from_utf8_lossy(&cmdline).contains(needle))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_pss_when_guest_memory_is_mapped_then_it_does_not_count() {
        let smaps = "\
7f00-7f01 r-xp 00000000 fe:00 1  /usr/bin/vmm
Size:  40 kB
Pss:   12 kB
Pss_Dirty: 4 kB
VmFlags: rd ex
7f02-7f03 rw-s 00000000 00:01 2  /memfd:guest-memory (deleted)
Pss:   9999 kB
7f04-7f05 rw-p 00000000 00:00 0
Pss:   3 kB
";
        assert_eq!(sum_pss(smaps), 15 << 10);
    }

    #[test]
    fn is_alive_when_it_is_ourselves_then_true() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}
