//! What the guest knows about itself, read when it is asked for.

use std::borrow::Cow;
use std::ffi::CStr;
use std::fs::read_to_string;

use bulkhead_protocol::{API_VERSION, BootTimings, Cpu, Info, Kernel, Memory};

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
        cpu: Some(cpu()),
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

fn cpu() -> Cpu<'static> {
    let model = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    Cpu {
        model: cpu_model(&model).to_owned().into(),
        ..cpu_times(&stat).unwrap_or_default()
    }
}

/// The name of the first processor in a `/proc/cpuinfo`.
fn cpu_model(table: &str) -> &str {
    let line = table.lines().find_map(|l| l.strip_prefix("model name"));
    line.map_or("", |rest| {
        rest.trim_start_matches([' ', '\t', ':']).trim_end()
    })
}

/// The sum over all processors of a `/proc/stat`, which counts in hundredths of a second
/// (proc_stat(5)).
fn cpu_times(table: &str) -> Option<Cpu<'static>> {
    let mut times = [0u64; 8];
    let line = table.lines().find_map(|line| line.strip_prefix("cpu "))?;
    for (time, field) in times.iter_mut().zip(line.split_ascii_whitespace()) {
        *time = field.parse::<u64>().ok()?.saturating_mul(10_000_000);
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] = times;
    Some(Cpu {
        model: Default::default(),
        user_ns: user.saturating_add(nice),
        system_ns: system.saturating_add(irq).saturating_add(softirq),
        idle_ns: idle.saturating_add(iowait),
        steal_ns: steal,
    })
}

/// The lines of a `/proc/meminfo` that the API reports; 0 for what is not there.
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
        free_bytes: bytes("MemFree:"),
        cached_bytes: bytes("Cached:"),
        shared_bytes: bytes("Shmem:"),
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
        let table = "MemTotal:         119284 kB\nMemFree: 1 kB\nMemAvailable:\t 100 kB\n\
            Cached: 5 kB\nSwapCached: 6 kB\nShmem: 7 kB\nShmemHugePages: 8 kB\n";
        let m = memory(table);
        assert_eq!(
            (m.total_bytes, m.available_bytes),
            (119_284 << 10, 100 << 10)
        );
        assert_eq!(
            (m.free_bytes, m.cached_bytes, m.shared_bytes),
            (1 << 10, 5 << 10, 7 << 10)
        );
        assert_eq!(memory("MemTotal: lots\n"), Memory::default());
    }

    #[test]
    fn processor_tables_when_read_then_the_sum_of_all_in_nanoseconds() {
        let cpu = cpu_times("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 100 0\n").expect("line");
        assert_eq!(cpu.user_ns, 30_000_000);
        assert_eq!(cpu.system_ns, 160_000_000);
        assert_eq!((cpu.idle_ns, cpu.steal_ns), (90_000_000, 80_000_000));
        for none in ["", "cpu0 1 2", "cpu  a"] {
            assert_eq!(cpu_times(none), None, "{none}");
        }
        let table = "processor\t: 0\nmodel name\t: Some 9000: fast\nmodel name\t: B\n";
        assert_eq!((cpu_model(table), cpu_model("")), ("Some 9000: fast", ""));
    }

    #[test]
    fn info_when_asked_then_about_this_machine() {
        let info = info(BootTimings::default());
        assert_eq!(info.kernel.sysname, "Linux");
        assert!(info.cpus_online >= 1 && info.memory.total_bytes > info.memory.available_bytes);
    }
}
