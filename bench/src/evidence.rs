//! A look around: what a program can find out about the machine that it runs on, and what it could get
//! hold of. Nothing is changed.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde_json::{Value, json};

/// The most entries of one file system that are looked at.
const MOST_ENTRIES: usize = 100_000;
/// The most bytes of a small file that are passed on.
const MOST_TEXT: u64 = 512;

/// What there is to see. `token` is a word in two halves: the command line of a process on the host has
/// it whole, and this program's has not.
pub fn collect(token: (&str, &str)) -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| status_field(&status, name);
    let (processes, sees_host) = processes(&format!("{}{}", token.0, token.1));
    json!({
        "kernel": text("/proc/sys/kernel/osrelease"),
        "version": text("/proc/version"),
        "boot_id": text("/proc/sys/kernel/random/boot_id"),
        "hostname": text("/proc/sys/kernel/hostname"),
        "uptime_s": text("/proc/uptime").and_then(|t| t.split(' ').next()?.parse::<f64>().ok()),
        "processes": processes,
        "sees_host_process": sees_host,
        "proc": entries(Path::new("/proc")),
        "sys": entries(Path::new("/sys")),
        "devices": devices(),
        "kernel_log": kernel_log(),
        "capabilities_effective": field("CapEff"),
        "capabilities_bounding": field("CapBnd"),
        "seccomp": field("Seccomp"),
        "no_new_privileges": field("NoNewPrivs"),
        "uid_map": text("/proc/self/uid_map"),
        "cgroup": text("/proc/self/cgroup"),
    })
}

/// The beginning of a small file, without the space around it.
fn text(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(MOST_TEXT).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn status_field(status: &str, name: &str) -> Option<String> {
    let rest = status
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    Some(rest.trim().to_owned())
}

/// How many processes there are, and whether one has this word in its command line.
fn processes(word: &str) -> (usize, bool) {
    let mut count = 0;
    let mut found = false;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if is_number(&entry.file_name().to_string_lossy()) {
            count += 1;
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found |= !word.is_empty() && contains(&command, word.as_bytes());
        }
    }
    (count, found)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

/// The entries of a file system of the kernel's, processes left out: a hash of each path, and a hash of
/// the path with its inode's number, as eight hexadecimal digits each. Two programs on one kernel see the
/// same numbers.
fn entries(root: &Path) -> Value {
    let mut names = String::new();
    let mut objects = String::new();
    let mut count = 0;
    let mut folders = vec![root.to_owned()];
    'all: while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Links lead to what is there anyway, or to a process.
            if kind.is_symlink() || (folder == root && is_number(&name)) {
                continue;
            }
            if count == MOST_ENTRIES {
                break 'all;
            }
            count += 1;
            let path = entry.path();
            let hash = hash(HASH_START, path.as_os_str().as_encoded_bytes());
            let object = self::hash(
                hash,
                &std::os::unix::fs::DirEntryExt::ino(&entry).to_le_bytes(),
            );
            names += &format!("{hash:08x}");
            objects += &format!("{object:08x}");
            if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    json!({ "count": count, "names": names, "objects": objects })
}

/// FNV-1a begins with this.
const HASH_START: u32 = 0x811c_9dc5;

/// FNV-1a, which goes on from `hash`.
fn hash(hash: u32, bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(hash, step)
}

/// The devices in `/dev`: name, kind and number.
fn devices() -> Vec<String> {
    let mut devices = Vec::new();
    let mut folders = vec![Path::new("/dev").to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let kind = metadata.file_type();
            if kind.is_dir() && !path.starts_with("/dev/pts") {
                folders.push(path);
            } else if (kind.is_char_device() || kind.is_block_device())
                && devices.len() < MOST_ENTRIES
            {
                let letter = if kind.is_block_device() { 'b' } else { 'c' };
                let number = metadata.rdev();
                let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
                let name = path.strip_prefix("/dev").unwrap_or(&path).to_string_lossy();
                devices.push(format!("{name} {letter} {major}:{minor}"));
            }
        }
    }
    devices.sort_unstable();
    devices
}

/// How the kernel's log can be read here, if it can.
fn kernel_log() -> Option<&'static str> {
    const READ_ALL: libc::c_int = 3;
    let mut buffer = [0_u8; 4096];
    let log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg");
    if log.is_ok_and(|mut log| log.read(&mut buffer).is_ok_and(|n| n > 0)) {
        return Some("/dev/kmsg");
    }
    let room = buffer.len() as libc::c_int;
    // SAFETY: the buffer has that room and lives as long as the call.
    let read = unsafe { libc::syscall(libc::SYS_syslog, READ_ALL, buffer.as_mut_ptr(), room) };
    (read > 0).then_some("syslog(2)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_around_when_on_this_machine_finds_this_machine() {
        let seen = collect(("no such ", "process anywhere"));
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
        assert_eq!(seen["boot_id"], boot_id.trim());
        assert!(seen["processes"].as_u64().expect("processes") > 0);
        assert_eq!(seen["sees_host_process"], false);
        let count = seen["proc"]["count"].as_u64().expect("count") as usize;
        assert!(count > 10);
        for list in ["names", "objects"] {
            assert_eq!(seen["proc"][list].as_str().expect("list").len(), 8 * count);
        }
        let devices = seen["devices"].as_array().expect("devices");
        assert!(devices.iter().any(|d| d == "null c 1:3"), "{devices:?}");
    }

    #[test]
    fn own_process_when_named_whole_is_seen() {
        let own = fs::read_to_string("/proc/self/cmdline").expect("cmdline");
        let own = own.split('\0').next().expect("program").to_owned();
        let (first, second) = own.split_at(own.len() / 2);
        assert_eq!(collect((first, second))["sees_host_process"], true);
    }

    #[test]
    fn field_when_its_name_begins_another_is_not_taken_for_it() {
        let status = "Seccomp_filters:\t1\nSeccomp:\t2\nCapEff:\t00ff\n";
        assert_eq!(status_field(status, "Seccomp").as_deref(), Some("2"));
        assert_eq!(status_field(status, "CapEff").as_deref(), Some("00ff"));
        assert_eq!(status_field(status, "CapBnd"), None);
    }
}
