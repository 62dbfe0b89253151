//! What a control group of version 2 uses.

use super::super::stats::{CpuStats, IoStats, MemoryStats, PidsStats, Stats, number, value};
use crate::error::Error;

/// Reads all of them; `file` gives the text of a file, or none if it does not exist.
pub fn read(file: impl Fn(&str) -> Result<Option<String>, Error>) -> Result<Stats, Error> {
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
        let stats = read(file).expect("no error");
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
        assert_eq!(read(|_| Ok(None)).expect("no error"), Stats::default());
    }
}
