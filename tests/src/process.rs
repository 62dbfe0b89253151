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

/// Bytes of host memory behind the guest memory of VMM `pid`, as far as it is this guest's alone: what
/// it has touched and not given back, without what it has in common with its kernel's file.
pub fn guest_memory_bytes(pid: u32) -> io::Result<u64> {
    let file = guest_memory_file(pid)?;
    let over_it: u64 = mappings(&fs::read_to_string(format!("/proc/{pid}/smaps"))?)
        .iter()
        .filter(|mapping| mapping.of == Of::OverGuestMemory)
        .map(|mapping| mapping.anonymous)
        .sum();
    Ok(fs::metadata(file)?.blocks() * 512 + over_it)
}

fn guest_memory_file(pid: u32) -> io::Result<PathBuf> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let is_it = fs::read_link(&path)
            .is_ok_and(|target| target.to_string_lossy().starts_with(GUEST_MEMORY));
        if is_it {
            return Ok(path);
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
    Ok(mappings(&smaps)
        .iter()
        .filter(|mapping| mapping.of == Of::Process)
        .map(|mapping| mapping.pss)
        .sum())
}

/// What a mapping belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// The VMM itself.
    Process,
    /// The guest: its memory's file.
    GuestMemory,
    /// The guest: a file, such as its kernel, in the middle of its memory.
    OverGuestMemory,
}

/// A mapping of a process; sizes in bytes.
#[derive(Debug)]
struct Mapping {
    of: Of,
    /// Where offset 0 of its file would be.
    start_of_file: u64,
    pss: u64,
    anonymous: u64,
}

fn hex(text: Option<&str>) -> u64 {
    text.and_then(|text| u64::from_str_radix(text, 16).ok())
        .unwrap_or(0)
}

/// The mappings that `smaps` tells of.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        // A mapping starts with its addresses; the lines about it have a name and a colon.
        if !first.ends_with(':') {
            let start = hex(first.split('-').next());
            let offset = hex(words.nth(1));
            let mut of = Of::Process;
            if line.contains(GUEST_MEMORY) {
                of = Of::GuestMemory;
                // Between two parts of one mapping lies what has taken the place of a third.
                let start_of_file = start.wrapping_sub(offset);
                if let Some(at) = mappings.iter().rposition(|before| {
                    before.of == Of::GuestMemory && before.start_of_file == start_of_file
                }) {
                    for mapping in &mut mappings[at + 1..] {
                        mapping.of = Of::OverGuestMemory;
                    }
                }
            }
            mappings.push(Mapping {
                of,
                start_of_file: start.wrapping_sub(offset),
                pss: 0,
                anonymous: 0,
            });
        } else if let Some(mapping) = mappings.last_mut() {
            let kib: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            match first {
                "Pss:" => mapping.pss = kib << 10,
                "Anonymous:" => mapping.anonymous = kib << 10,
                _ => {}
            }
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
    fn mappings_when_of_guest_memory_are_told_from_the_process() {
        let smaps = "\
7f001000-7f002000 r-xp 00000000 fe:00 1  /usr/bin/vmm
Size:  40 kB
Pss:   12 kB
Pss_Dirty: 4 kB
VmFlags: rd ex
7f010000-7f020000 rw-s 00000000 00:01 2  /memfd:guest-memory (deleted)
Pss:   9999 kB
7f020000-7f028000 rw-p 00200000 fe:00 3  /vmlinux
Pss:   7 kB
Anonymous: 4 kB
7f028000-7f030000 rw-s 00018000 00:01 2  /memfd:guest-memory (deleted)
Pss:   8888 kB
7f030000-7f040000 rw-p 00000000 00:00 0
Pss:   3 kB
7f040000-7f050000 rw-s 00020000 00:01 2  /memfd:guest-memory (deleted)
Pss:   7777 kB
";
        let found: Vec<_> = mappings(smaps)
            .iter()
            .map(|m| (m.of, m.pss >> 10, m.anonymous >> 10))
            .collect();
        assert_eq!(
            found,
            [
                (Of::Process, 12, 0),
                (Of::GuestMemory, 9999, 0),
                (Of::OverGuestMemory, 7, 4),
                (Of::GuestMemory, 8888, 0),
                (Of::Process, 3, 0),
                (Of::GuestMemory, 7777, 0),
            ]
        );
    }

    #[test]
    fn is_alive_when_it_is_ourselves_then_true() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}
