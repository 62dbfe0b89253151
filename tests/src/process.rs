//! What the host's kernel knows about a process of ours.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

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

/// Bytes of host memory that the guest memory of VMM `pid` costs: what the guest has touched and not
/// given back, and its share of what it has in common with others.
pub fn guest_memory_bytes(pid: u32) -> io::Result<u64> {
    sum_pss(pid, |mapping| mapping.is_guest)
}

/// Proportional set size of process `pid` without its guest memory, in bytes.
pub fn pss_without_guest_memory(pid: u32) -> io::Result<u64> {
    sum_pss(pid, |mapping| !mapping.is_guest)
}

/// Proportional set size of process `pid`, all told, in bytes; none if it is gone.
pub fn pss(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next());
    kib.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn sum_pss(pid: u32, which: impl Fn(&Mapping) -> bool) -> io::Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mappings = mappings(&smaps);
    // Whatever is told of it, a VMM has some.
    if !mappings.iter().any(|mapping| mapping.is_guest) {
        let message = format!("process {pid} has no guest memory");
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(mappings.iter().filter(|m| which(m)).map(|m| m.pss).sum())
}

/// A mapping of a process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mapping {
    /// Whether it is guest memory, and not the VMM's own.
    is_guest: bool,
    /// Its proportional set size in bytes.
    pss: u64,
}

/// The mappings that `smaps` tells of.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        // A mapping starts with its addresses; the lines about it have a name and a colon.
        if !first.ends_with(':') {
            mappings.push(Mapping::default());
            continue;
        }
        let Some(mapping) = mappings.last_mut() else {
            continue;
        };
        match first {
            "Pss:" => {
                let kib: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                mapping.pss = kib << 10;
            }
            // Of all that a VMM maps, only the guest's memory is to be left out of a core dump; the
            // kernel's own pages in it (vvar) are marked as I/O, too.
            "VmFlags:" => {
                let flags: Vec<&str> = words.collect();
                mapping.is_guest = flags.contains(&"dd") && !flags.contains(&"io");
            }
            _ => {}
        }
    }
    mappings
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
    with("cmdline", needle)
}

/// Processes whose environment names `needle`, ourselves apart.
pub fn of(needle: &str) -> Vec<u32> {
    with("environ", needle)
}

fn with(file: &str, needle: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != std::process::id())
        .filter(|pid| {
            fs::read(PathBuf::from(format!("/proc/{pid}/{file}")))
                .is_ok_and(|text| String::from_utf8_lossy(&text).contains(needle))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_when_of_guest_memory_are_told_from_the_process() {
        let smaps = "\
7f001000-7f002000 r-xp 00000000 fe:00 1  /usr/bin/vmm
Size:  40 kB
Pss:   12 kB
Pss_Dirty: 4 kB
VmFlags: rd ex mr
7f010000-7f020000 rw-p 00000000 00:00 0
Pss:   9999 kB
VmFlags: rd wr mr nr dd hg
7f030000-7f040000 rw-p 00000000 00:00 0
Pss:   3 kB
VmFlags: rd wr
";
        let mapping = |is_guest, kib: u64| Mapping {
            is_guest,
            pss: kib << 10,
        };
        let expected = [mapping(false, 12), mapping(true, 9999), mapping(false, 3)];
        assert_eq!(mappings(smaps), expected);
        sum_pss(std::process::id(), |_| true).expect_err("this is not a VMM");
    }

    #[test]
    fn is_alive_when_it_is_ourselves_then_true() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}
