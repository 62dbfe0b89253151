//! What a control group uses, from the files of cgroup v2.

use serde::Serialize;

use crate::error::Error;

/// What a control group uses. Without a controller there is no word from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes.
    pub pids: Option<PidsStats>,
    /// Each block device.
    pub io: Vec<IoStats>,
}

/// Processor time, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    /// All of it.
    pub usage_us: u64,
    /// In programs.
    pub user_us: u64,
    /// In the kernel.
    pub system_us: u64,
    /// Periods of a limit that went by.
    pub periods: u64,
    /// Those of them in which it reached the limit.
    pub throttled_periods: u64,
    /// How long it had to wait for that.
    pub throttled_us: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// All of it, with what the kernel caches of files.
    pub current: u64,
    /// The most there was.
    pub peak: Option<u64>,
    /// What it cannot exceed.
    pub limit: Option<u64>,
    /// On swap.
    pub swap: u64,
    /// Of programs.
    pub anonymous: u64,
    /// Cached of files.
    pub file: u64,
    /// Cached of files, and the first to go: what Docker takes off `current`.
    pub inactive_file: u64,
    /// Of the kernel.
    pub kernel: u64,
    /// Page faults, and those that had to read.
    pub page_faults: u64,
    /// See above.
    pub major_page_faults: u64,
    /// Processes that were ended because memory ran out.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there can be.
    pub limit: Option<u64>,
}

/// A block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IoStats {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

impl Stats {
    /// Reads all of them; `file` gives the text of a file, or none if it does not exist.
    pub(super) fn read(
        file: impl Fn(&str) -> Result<Option<String>, Error>,
    ) -> Result<Stats, Error> {
        let text = |name| file(name).map(Option::unwrap_or_default);
        let cpu = text("cpu.stat")?;
        let value_of = |text: &str, name| value(text, name).unwrap_or(0);
        let memory = match file("memory.current")? {
            None => None,
            Some(current) => {
                let stat = text("memory.stat")?;
                Some(MemoryStats {
                    current: number(&current).unwrap_or(0),
                    peak: number(&text("memory.peak")?),
                    limit: number(&text("memory.max")?),
                    swap: number(&text("memory.swap.current")?).unwrap_or(0),
                    anonymous: value_of(&stat, "anon"),
                    file: value_of(&stat, "file"),
                    inactive_file: value_of(&stat, "inactive_file"),
                    kernel: value_of(&stat, "kernel"),
                    page_faults: value_of(&stat, "pgfault"),
                    major_page_faults: value_of(&stat, "pgmajfault"),
                    oom_kills: value_of(&text("memory.events")?, "oom_kill"),
                })
            }
        };
        let pids = match file("pids.current")? {
            None => None,
            Some(current) => {
                let limit = number(&text("pids.max")?);
                Some(PidsStats {
                    current: number(&current).unwrap_or(0),
                    limit,
                })
            }
        };
        Ok(Stats {
            cpu: CpuStats {
                usage_us: value_of(&cpu, "usage_usec"),
                user_us: value_of(&cpu, "user_usec"),
                system_us: value_of(&cpu, "system_usec"),
                periods: value_of(&cpu, "nr_periods"),
                throttled_periods: value_of(&cpu, "nr_throttled"),
                throttled_us: value_of(&cpu, "throttled_usec"),
            },
            memory,
            pids,
            io: text("io.stat")?.lines().filter_map(io_line).collect(),
        })
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_line(line: &str) -> Option<IoStats> {
    let (device, rest) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let mut stats = IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoStats::default()
    };
    for (key, value) in rest.split(' ').filter_map(|pair| pair.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => stats.read_bytes = value,
            "wbytes" => stats.write_bytes = value,
            "rios" => stats.reads = value,
            "wios" => stats.writes = value,
            _ => {}
        }
    }
    Some(stats)
}

/// The value of a name in a file of lines `name value`.
pub(super) fn value(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    };
    text.lines().find_map(of_line)
}

/// A file that is one number, or `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_when_read_then_their_numbers() {
        let file = |name: &str| {
            let text = match name {
                "cpu.stat" => {
                    "usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 4\n"
                }
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.stat" => "anon 1000\nfile 2000\ninactive_file 500\npgfault 9\n",
                "memory.events" => "oom 3\noom_kill 2\n",
                "pids.current" => "5\n",
                "pids.max" => "100\n",
                "io.stat" => "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nbroken\n",
                _ => return Ok(None),
            };
            Ok(Some(text.to_owned()))
        };
        let stats = Stats::read(file).expect("no error");
        assert_eq!((stats.cpu.usage_us, stats.cpu.throttled_us), (10, 4));
        let memory = stats.memory.expect("controller");
        assert_eq!(
            (
                memory.current,
                memory.limit,
                memory.anonymous,
                memory.oom_kills
            ),
            (4096, None, 1000, 2)
        );
        assert_eq!(
            stats.pids,
            Some(PidsStats {
                current: 5,
                limit: Some(100)
            })
        );
        assert_eq!(stats.io.len(), 1);
        assert_eq!((stats.io[0].major, stats.io[0].writes), (254, 4));
    }

    #[test]
    fn files_when_missing_then_no_word_from_their_controllers() {
        assert_eq!(
            Stats::read(|_| Ok(None)).expect("no error"),
            Stats::default()
        );
    }
}
