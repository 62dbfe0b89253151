//! What containers use, and the processes in them.

use std::fs::read_to_string;

use bulkhead_container as container;
use bulkhead_protocol::{CpuStats, IoStats, MemoryStats, PidsStats, ProcessInfo, Processes, Stats};

use crate::clock;

/// What a control group uses, in the API's units.
pub fn of(stats: &container::Stats) -> Stats {
    let ns = |us: u64| us.saturating_mul(1000);
    let cpu = &stats.cpu;
    let io = stats
        .io
        .iter()
        .fold(IoStats::default(), |sum, device| IoStats {
            read_bytes: sum.read_bytes.saturating_add(device.read_bytes),
            write_bytes: sum.write_bytes.saturating_add(device.write_bytes),
            read_operations: sum.read_operations.saturating_add(device.reads),
            write_operations: sum.write_operations.saturating_add(device.writes),
        });
    Stats {
        read_ns: clock::unix_ns(),
        cpu: Some(CpuStats {
            usage_ns: ns(cpu.usage_us),
            user_ns: ns(cpu.user_us),
            system_ns: ns(cpu.system_us),
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_ns: ns(cpu.throttled_us),
        }),
        memory: stats.memory.as_ref().map(|memory| MemoryStats {
            usage_bytes: memory.current,
            peak_bytes: memory.peak,
            limit_bytes: memory.limit,
            anonymous_bytes: memory.anonymous,
            file_bytes: memory.file,
            inactive_file_bytes: memory.inactive_file,
            oom_kills: memory.oom_kills,
        }),
        pids: stats.pids.as_ref().map(|pids| PidsStats {
            current: pids.current,
            limit: pids.limit,
        }),
        io: Some(io),
    }
}

/// What `/proc` says about these processes; those that have ended meanwhile are left out.
pub fn processes(pids: &[u32]) -> Processes {
    let mut processes: Vec<_> = pids.iter().filter_map(|&pid| process(pid)).collect();
    processes.sort_by_key(|process| process.pid);
    Processes { processes }
}

fn process(pid: u32) -> Option<ProcessInfo> {
    let read = |file: &str| read_to_string(format!("/proc/{pid}/{file}"));
    let stat = read("stat").ok()?;
    let status = read("status").ok()?;
    // Arguments are bytes.
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    parse(pid, &stat, &status, &arguments)
}

/// Reads the three files of proc_pid_stat(5), proc_pid_status(5) and proc_pid_cmdline(5).
fn parse(pid: u32, stat: &str, status: &str, arguments: &[u8]) -> Option<ProcessInfo> {
    /// `/proc` counts in hundredths of a second, and memory in pages.
    const TICK_NS: u64 = 10_000_000;
    let (name, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // The first is number 3, the state.
    let number = |n: usize| fields.get(n - 3)?.trim().parse::<u64>().ok();
    let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name));
    // The last of the namespaces' numbers is the innermost's.
    let container_pid = line("NSpid:")?.split_ascii_whitespace().next_back()?;
    let uid = line("Uid:")?.split_ascii_whitespace().nth(1)?;
    let resident = line("VmRSS:").and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse().ok());
    let mut command: Vec<String> = arguments
        .split_inclusive(|&b| b == 0)
        .map(|a| String::from_utf8_lossy(a.strip_suffix(b"\0").unwrap_or(a)).into_owned())
        .collect();
    if command.is_empty() {
        command.push(format!("[{name}]"));
    }
    Some(ProcessInfo {
        pid,
        parent_pid: u32::try_from(number(4)?).ok()?,
        container_pid: container_pid.parse().ok()?,
        uid: uid.parse().ok()?,
        state: (*fields.first()?).to_owned(),
        started_boot_ns: number(22)?.saturating_mul(TICK_NS),
        cpu_ns: number(14)?
            .saturating_add(number(15)?)
            .saturating_mul(TICK_NS),
        resident_bytes: resident.map_or(0, |kib: u64| kib.saturating_mul(1024)),
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_when_its_name_is_made_to_confuse_then_read_right() {
        let stat = "42 (a) R (b) S 7 42 42 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 1 0 700 1000 200\n";
        let status = "Name:\ta\nUid:\t1\t1000\t3\t4\nVmRSS:\t     128 kB\nNSpid:\t42\t5\n";
        let process = parse(42, stat, status, b"sh\0-c\0\0").expect("process");
        assert_eq!(
            (process.parent_pid, process.container_pid, process.uid),
            (7, 5, 1000)
        );
        assert_eq!(
            (process.state.as_str(), process.resident_bytes),
            ("S", 128 << 10)
        );
        assert_eq!(process.cpu_ns, 1_100_000_000);
        assert_eq!(process.started_boot_ns, 7_000_000_000);
        assert_eq!(process.command, ["sh", "-c", ""]);
        let kernel = parse(42, stat, status, b"").expect("process");
        assert_eq!(kernel.command, ["[a) R (b]"]);
        for broken in ["", "42 (a", "42 (a) S", "42 (a) S x"] {
            assert_eq!(parse(42, broken, status, b""), None);
        }
    }

    #[test]
    fn processes_when_listed_then_this_one_is_among_them() {
        let all = processes(&[std::process::id(), u32::MAX]);
        assert_eq!(all.processes.len(), 1);
        assert!(all.processes[0].resident_bytes > 0 && !all.processes[0].command.is_empty());
    }
}
