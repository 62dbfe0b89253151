//! What the guest knows about itself, read when it is asked for.

use std::borrow::Cow;
use std::ffi::CStr;
use std::fs::read_to_string;

use bulkhead_protocol::{API_VERSION, BootTimings, Info, Kernel, Memory};

use crate::{VERSION, clock};

/// The answer to `GET /v1/info`.
pub fn info(timings: BootTimings) -> Info<'static> {
    let uname = rustix::system::uname();
    let text = |field: &CStr| Cow::Owned(field.to_string_lossy().into_owned());
    Info {
        api: API_VERSION,
        agent_version: Cow::Borrowed(VERSION),
        kernel: Kernel {
            sysname: text(uname.sysname()),
            release: text(uname.release()),
            version: text(uname.version()),
            machine: text(uname.machine()),
        },
        hostname: text(uname.nodename()),
        cpus_online: read_to_string("/sys/devices/system/cpu/online")
            .ok()
            .and_then(|list| cpus(&list))
            // A kernel without the file has one processor and no hotplug.
            .unwrap_or(1),
        memory: read_to_string("/proc/meminfo")
            .map(|table| memory(&table))
            .unwrap_or_default(),
        uptime_ns: clock::boot_ns(),
        timings,
    }
}

/// How many processors a list like `0-3,5` names. `None` if it is no such list, or empty.
fn cpus(list: &str) -> Option<u32> {
    let count = list.trim().split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    });
    count.filter(|&n| n > 0)
}

/// The two lines of a `/proc/meminfo` that the API reports; 0 for what is not there.
fn memory(table: &str) -> Memory {
    let bytes = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024))
    };
    Memory {
        total_bytes: bytes("MemTotal:"),
        available_bytes: bytes("MemAvailable:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_list_when_read_then_counted() {
        assert_eq!(cpus("0\n"), Some(1));
        assert_eq!(cpus("0-3,5,8-9\n"), Some(7));
        for bad in ["", "\n", "a", "3-1", "0-4294967295", "1,,2", "-"] {
            assert_eq!(cpus(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn meminfo_when_read_then_in_bytes() {
        let table = "MemTotal:         119284 kB\nMemFree: 1 kB\nMemAvailable:\t 100 kB\n";
        let m = memory(table);
        assert_eq!(
            (m.total_bytes, m.available_bytes),
            (119_284 << 10, 100 << 10)
        );
        assert_eq!(memory("MemTotal: lots\n"), Memory::default());
    }

    #[test]
    fn info_when_asked_then_about_this_machine() {
        let info = info(BootTimings::default());
        assert_eq!(info.kernel.sysname, "Linux");
        assert!(info.cpus_online >= 1 && info.memory.total_bytes > info.memory.available_bytes);
    }
}
