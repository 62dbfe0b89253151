//! `events`: what a container uses, and when its memory runs out, a line of JSON each, as runc has them.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bulkhead_container::cgroup::{IoStats, Stats};
use bulkhead_container::{Container, Opened};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::Globals;
use crate::arguments::Arguments;
use crate::failure::{Outcome, cannot};
use crate::lifecycle::refuse;
use crate::place::{Place, Status};
use crate::show::print;

pub fn events(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let interval = interval(arguments.value("interval").unwrap_or("5s"))?;
    let place = Place::new(&globals.root, id)?;
    let kept = place.whole()?;
    let Opened::Alive(container) = place.open(&kept, false)?.0 else {
        let why = "container not running: it is";
        return Err(refuse(id, "measure", why, Status::Stopped));
    };
    if arguments.has("stats") {
        say(id, "stats", Some(&container.stats()?))?;
        return Ok(0);
    }
    watch(&container, interval)?;
    Ok(0)
}

/// Up to the container's end.
fn watch(container: &Container, interval: Duration) -> Outcome<()> {
    let id = container.id();
    let mut memory = container.memory_events()?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(cannot("wait for events"))?;
        let mut watched = vec![PollFd::from_borrowed_fd(container.pidfd(), PollFlags::IN)];
        if let Some(memory) = &memory {
            watched.push(PollFd::from_borrowed_fd(memory.as_fd(), memory.interest()));
        }
        match poll(&mut watched, Some(&left)) {
            Err(Errno::INTR) => continue,
            polled => polled.map_err(cannot("wait for events"))?,
        };
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(watched);
        if let (Some(true), Some(memory)) = (ready.get(1), &mut memory)
            && memory.ran_out()
        {
            say(id, "oom", None)?;
        }
        if ready.first() == Some(&true) {
            return Ok(());
        }
        if Instant::now() >= next {
            say(id, "stats", Some(&container.stats()?))?;
            next += interval;
        }
    }
}

fn say(id: &str, kind: &str, stats: Option<&Stats>) -> Outcome<()> {
    let mut event = json!({"type": kind, "id": id});
    if let Some(stats) = stats {
        event["data"] = data(stats);
    }
    print(&format!("{event}\n"))
}

fn data(stats: &Stats) -> Value {
    let cpu = &stats.cpu;
    let mut data = json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_us.saturating_mul(1000),
                "kernel": cpu.system_us.saturating_mul(1000),
                "user": cpu.user_us.saturating_mul(1000),
            },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_us.saturating_mul(1000),
            },
        },
        "memory": {}, "pids": {}, "blkio": {},
    });
    if let Some(memory) = &stats.memory {
        let most = u64::MAX;
        data["memory"] = json!({
            "cache": memory.file,
            "usage": {
                "limit": memory.limit.unwrap_or(most),
                "usage": memory.current,
                "max": memory.peak.unwrap_or(memory.current),
                "failcnt": memory.oom_kills,
            },
            "kernel": {"usage": memory.kernel},
            "raw": {
                "anon": memory.anonymous,
                "file": memory.file,
                "inactive_file": memory.inactive_file,
                "pgfault": memory.page_faults,
                "pgmajfault": memory.major_page_faults,
            },
        });
    }
    if let Some(pids) = &stats.pids {
        data["pids"] = json!({"current": pids.current, "limit": pids.limit.unwrap_or(0)});
    }
    let entry = |device: &IoStats, op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
    let bytes = stats.io.iter().flat_map(|io| {
        [
            entry(io, "Read", io.read_bytes),
            entry(io, "Write", io.write_bytes),
        ]
    });
    let operations = stats
        .io
        .iter()
        .flat_map(|io| [entry(io, "Read", io.reads), entry(io, "Write", io.writes)]);
    data["blkio"] = json!({
        "ioServiceBytesRecursive": bytes.collect::<Vec<_>>(),
        "ioServicedRecursive": operations.collect::<Vec<_>>(),
    });
    data
}

/// `5s`, `500ms`, `1m`.
fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("--interval is a time above zero, as 5s or 500ms, not {text:?}");
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let found = units.into_iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
        number.checked_mul(factor)
    });
    match found {
        Some(milliseconds @ 1..=86_400_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_when_with_a_unit_then_a_time() {
        for (text, milliseconds) in [("5s", 5000), ("500ms", 500), ("2m", 120_000)] {
            assert_eq!(interval(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "5", "0s", "-1s", "s", "99999999999h"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
