//! What a control group of version 1 uses.

use super::super::stats::{CpuStats, IoStats, MemoryStats, PidsStats, Stats, number, value};
use crate::error::Error;

/// Limits from here on are none: the kernel rounds the largest number down to a page.
const UNLIMITED: u64 = 1 << 62;

/// Reads all of them; `file` gives the text of a file, or none if it does not exist.
pub fn read(file: impl Fn(&str) -> Result<Option<String>, Error>) -> Result<Stats, Error> {
    let text = |name: &str| file(name).map(Option::unwrap_or_default);
    let count = |name| text(name).map(|text| number(&text).unwrap_or(0));
    let throttled = text("cpu.stat")?;
    let throttled = |name| value(&throttled, name).unwrap_or(0);
    let cpu = CpuStats {
        usage_us: count("cpuacct.usage")? / 1000,
        user_us: count("cpuacct.usage_user")? / 1000,
        system_us: count("cpuacct.usage_sys")? / 1000,
        periods: throttled("nr_periods"),
        throttled_periods: throttled("nr_throttled"),
        throttled_us: throttled("throttled_time") / 1000,
    };
    let pids = match file("pids.current")? {
        None => None,
        Some(current) => Some(PidsStats {
            current: number(&current).unwrap_or(0),
            limit: number(&text("pids.max")?),
        }),
    };
    // With what groups below have used, where the kernel tells that.
    let io = |name: &str| match file(&format!("{name}_recursive"))? {
        Some(text) => Ok(text),
        None => text(name),
    };
    let (bytes, operations) = (
        io("blkio.throttle.io_service_bytes")?,
        io("blkio.throttle.io_serviced")?,
    );
    Ok(Stats {
        cpu,
        memory: memory(&file)?,
        pids,
        io: devices(&bytes, &operations),
    })
}

fn memory(
    file: &impl Fn(&str) -> Result<Option<String>, Error>,
) -> Result<Option<MemoryStats>, Error> {
    let Some(current) = file("memory.usage_in_bytes")? else {
        return Ok(None);
    };
    let text = |name| file(name).map(Option::unwrap_or_default);
    let stat = text("memory.stat")?;
    // The totals have what groups below use.
    let total = |name: &str| {
        let with_below = value(&stat, &format!("total_{name}"));
        with_below.or_else(|| value(&stat, name)).unwrap_or(0)
    };
    let limit = number(&text("memory.limit_in_bytes")?);
    Ok(Some(MemoryStats {
        current: number(&current).unwrap_or(0),
        peak: number(&text("memory.max_usage_in_bytes")?),
        limit: limit.filter(|&limit| limit < UNLIMITED),
        swap: total("swap"),
        anonymous: total("rss"),
        file: total("cache"),
        inactive_file: total("inactive_file"),
        kernel: number(&text("memory.kmem.usage_in_bytes")?).unwrap_or(0),
        page_faults: total("pgfault"),
        major_page_faults: total("pgmajfault"),
        oom_kills: value(&text("memory.oom_control")?, "oom_kill").unwrap_or(0),
    }))
}

/// From lines like `8:0 Read 4096`, and a last one `Total 4096`.
fn devices(bytes: &str, operations: &str) -> Vec<IoStats> {
    let mut all: Vec<IoStats> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let Some((major, minor, what, number)) = line_of(line) else {
                continue;
            };
            let same = |io: &IoStats| (io.major, io.minor) == (major, minor);
            let at = match all.iter().position(same) {
                Some(at) => at,
                None => {
                    all.push(IoStats {
                        major,
                        minor,
                        ..IoStats::default()
                    });
                    all.len() - 1
                }
            };
            let io = &mut all[at];
            match (what, is_bytes) {
                ("Read", true) => io.read_bytes = number,
                ("Write", true) => io.write_bytes = number,
                ("Read", false) => io.reads = number,
                ("Write", false) => io.writes = number,
                _ => {}
            }
        }
    }
    all
}

fn line_of(line: &str) -> Option<(u32, u32, &str, u64)> {
    let mut words = line.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let (what, number) = (words.next()?, words.next()?);
    Some((
        major.parse().ok()?,
        minor.parse().ok()?,
        what,
        number.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_when_read_then_their_numbers() {
        let file = |name: &str| {
            let text = match name {
                "cpuacct.usage" => "10500\n",
                "cpuacct.usage_user" => "7000\n",
                "cpuacct.usage_sys" => "3500\n",
                "cpu.stat" => "nr_periods 2\nnr_throttled 1\nthrottled_time 4000\n",
                "memory.usage_in_bytes" => "8192\n",
                "memory.max_usage_in_bytes" => "9000\n",
                "memory.limit_in_bytes" => "9223372036854771712\n",
                "memory.stat" => {
                    "cache 1\nrss 2\ntotal_cache 4096\ntotal_rss 1000\ntotal_swap 5\ntotal_inactive_file 500\n\
                     total_pgfault 9\n"
                }
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                "pids.current" => "5\n",
                "pids.max" => "max\n",
                "blkio.throttle.io_service_bytes_recursive" => {
                    "254:0 Read 10\n254:0 Write 20\n254:0 Sync 3\nbroken\nTotal 33\n"
                }
                "blkio.throttle.io_serviced" => "254:0 Read 1\n254:0 Write 2\n8:0 Read 3\n",
                _ => return Ok(None),
            };
            Ok(Some(text.to_owned()))
        };
        let stats = read(file).expect("no error");
        let cpu = &stats.cpu;
        assert_eq!((cpu.usage_us, cpu.user_us, cpu.system_us), (10, 7, 3));
        assert_eq!(
            (cpu.periods, cpu.throttled_periods, cpu.throttled_us),
            (2, 1, 4)
        );
        let memory = stats.memory.expect("controller");
        assert_eq!(
            (memory.current, memory.peak, memory.limit),
            (8192, Some(9000), None)
        );
        assert_eq!(
            (memory.anonymous, memory.file, memory.swap),
            (1000, 4096, 5)
        );
        assert_eq!((memory.page_faults, memory.oom_kills), (9, 2));
        let pids = stats.pids.expect("controller");
        assert_eq!((pids.current, pids.limit), (5, None));
        let io: Vec<_> = stats
            .io
            .iter()
            .map(|io| (io.major, io.read_bytes, io.write_bytes, io.reads, io.writes))
            .collect();
        assert_eq!(io, [(254, 10, 20, 1, 2), (8, 0, 0, 3, 0)]);
    }

    #[test]
    fn files_when_missing_then_no_word_from_their_controllers() {
        assert_eq!(read(|_| Ok(None)).expect("no error"), Stats::default());
    }
}
