//! Control groups from systemd, which wants to make all of a host's itself: a container's is a scope, a unit for processes that
//! others have started (systemd.scope(5), and "The New Control Group Interfaces" of systemd's documentation).
//!
//! A scope is never without a process. So one of ours holds it open until the container's first process is in the group, and
//! ends then.

mod bus;
mod message;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bulkhead_container::cgroup::{Hierarchies, Version};
use bulkhead_container::spec::Resources;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::failure::{Outcome, cannot};
use bus::Connection;
use message::{Body, Property, Value};

/// How often a directory is made again that systemd removes meanwhile.
const TRIES: u32 = 100;

/// The command of the process that holds a scope open.
pub const HOLD: &str = "hold-scope";

/// A container's scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The unit's name.
    pub unit: String,
    /// It is one of the user's systemd, and not the host's.
    pub of_user: bool,
}

/// A scope, and who keeps it from going.
pub struct Held {
    pub scope: Scope,
    /// Its group, from the root of all hierarchies.
    pub group: PathBuf,
    holder: Child,
}

impl Held {
    /// Has the holder enter all hierarchies of version 1. systemd removes directories of units that it does not need itself,
    /// whenever it looks at one anew and they are empty.
    pub fn enter(&self, directories: &[&Path]) -> Outcome<()> {
        let pid = self.holder.id().to_string();
        for directory in directories {
            let enter = || {
                fs::create_dir_all(directory)?;
                fs::write(directory.join("cgroup.procs"), &pid)
            };
            let mut entered = enter();
            for _ in 0..TRIES {
                match &entered {
                    Err(error) if is_gone(error) => entered = enter(),
                    _ => break,
                }
            }
            match entered {
                // A group of processors that has none yet, and none of systemd's.
                Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => {}
                entered => {
                    let place = directory.display();
                    entered.map_err(cannot(format_args!("enter the control group {place}")))?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a directory was removed meanwhile.
fn is_gone(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::NOENT, Errno::NODEV]
        .iter()
        .any(|gone| number == Some(gone.raw_os_error()))
}

impl Drop for Held {
    fn drop(&mut self) {
        // It ends at the end of its input.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// What a configuration asks for: `SLICE:PREFIX:NAME`.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    slice: String,
    unit: String,
}

impl Names {
    fn read(wanted: Option<&str>, id: &str, of_user: bool) -> Outcome<Names> {
        let default = if of_user {
            "user.slice"
        } else {
            "system.slice"
        };
        let Some(wanted) = wanted.filter(|path| !path.is_empty()) else {
            return Ok(Names {
                slice: default.to_owned(),
                unit: format!("bulkhead-{id}.scope"),
            });
        };
        let wrong = |why: &str| {
            format!(
                "linux.cgroupsPath: {wanted:?} {why}; with systemd it is SLICE:PREFIX:NAME, as in machine.slice:libpod:{id}"
            )
        };
        let parts: Vec<&str> = wanted.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(wrong("has not three parts").into());
        };
        if name.is_empty() || wanted.contains('/') {
            return Err(wrong("has no name, or a path").into());
        }
        if name.ends_with(".slice") {
            return Err(wrong("is a slice, which can have no process").into());
        }
        let slice = if slice.is_empty() { default } else { slice };
        if !slice.ends_with(".slice") {
            return Err(wrong("begins with no slice").into());
        }
        Ok(Names {
            slice: slice.to_owned(),
            unit: match prefix {
                "" => format!("{name}.scope"),
                _ => format!("{prefix}-{name}.scope"),
            },
        })
    }
}

/// Asks for a scope.
pub fn start(wanted: Option<&str>, id: &str, resources: Option<&Resources>) -> Outcome<Held> {
    let of_user = is_user();
    let names = Names::read(wanted, id, of_user)?;
    let mut connection = Connection::open(of_user)?;
    let failed = "hold a scope open";
    let holder = Command::new("/proc/self/exe")
        .arg(HOLD)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let holder = holder.map_err(cannot(failed))?;
    let pid = holder.id();
    let mut held = Held {
        scope: Scope {
            unit: names.unit,
            of_user,
        },
        group: PathBuf::new(),
        holder,
    };
    let text = |text: &str| Value::Text(text.to_owned());
    let mut properties = vec![
        ("Description", text(&format!("container {id}"))),
        ("Slice", text(&names.slice)),
        ("DefaultDependencies", Value::Flag(false)),
        // Its inside is ours.
        ("Delegate", Value::Flag(true)),
        // A scope that failed would keep its name.
        ("CollectMode", text("inactive-or-failed")),
        ("PIDs", Value::Numbers(vec![pid])),
    ];
    properties.extend(limits(resources));
    let unit = &held.scope.unit;
    let body = Body::default()
        .text(unit)
        .text("fail")
        .properties(&properties)
        .no_units();
    let job = connection.call("StartTransientUnit", &body)?;
    let result = connection.wait_job(&job)?;
    if result != "done" {
        return Err(format!("systemd did not start {unit}: {result}").into());
    }
    held.group = group_of(pid)?;
    Ok(held)
}

impl Scope {
    /// Ends the unit with whatever is in it. It may be over already, as it is when its last process ends.
    pub fn stop(&self) -> Outcome<()> {
        let body = Body::default().text(&self.unit).text("replace");
        let mut connection = Connection::open(self.of_user)?;
        match connection.call("StopUnit", &body) {
            Ok(job) => connection.wait_job(&job).map(drop),
            Err(refusal) if refusal.name == "org.freedesktop.systemd1.NoSuchUnit" => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Tells systemd of other limits, which it would set back at some time otherwise.
    pub fn update(&self, resources: &Resources) -> Outcome<()> {
        let properties: Vec<Property> = limits(Some(resources));
        if properties.is_empty() {
            return Ok(());
        }
        let body = Body::default()
            .text(&self.unit)
            .flag(true)
            .properties(&properties);
        Connection::open(self.of_user)?.call("SetUnitProperties", &body)?;
        Ok(())
    }
}

/// Waits for the end of the input, as whoever holds a scope open.
pub fn hold() -> Outcome<u8> {
    let read = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    read.map_err(cannot("wait")).map(|_| 0)
}

/// Whether the units that we may start are those of a user: who is not root, or is so in a user namespace alone.
fn is_user() -> bool {
    let all = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]));
    !geteuid().is_root() || !all
}

/// Where systemd has put a process.
fn group_of(pid: u32) -> Outcome<PathBuf> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).map_err(cannot(format_args!("read {path}")))?;
    let group = |of: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.split_once(':')?.1.strip_prefix(of))
    };
    // Where there are both versions, its own hierarchy is one of version 1. The kernel tells of those that are mounted nowhere, too.
    let all = Hierarchies::of_this_host()?.at("/");
    let has_own = all.version() == Version::One && all.directory_of("systemd").is_some();
    let group = if has_own {
        group("name=systemd:")
    } else {
        group(":")
    };
    let group = group.ok_or_else(|| format!("systemd has no hierarchy in {path}"))?;
    Ok(group.into())
}

/// Limits that systemd sets by itself, too: it would undo those that it does not know when it looks at its units anew.
fn limits(resources: Option<&Resources>) -> Vec<Property> {
    let Some(resources) = resources else {
        return Vec::new();
    };
    let is_v2 = Hierarchies::of_this_host().is_ok_and(|host| host.version() == Version::Two);
    properties_of(resources, is_v2)
}

fn properties_of(resources: &Resources, is_v2: bool) -> Vec<Property> {
    let mut found = Vec::new();
    let mut add = |name, value: Option<u64>| {
        if let Some(value) = value {
            found.push((name, Value::Number(value)));
        }
    };
    // Below zero is without a limit, which is the greatest number for systemd.
    let bytes = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    if let Some(memory) = &resources.memory {
        let name = if is_v2 { "MemoryMax" } else { "MemoryLimit" };
        let given = |limit: Option<i64>| limit.filter(|limit| *limit != 0).map(bytes);
        add(name, given(memory.limit));
        if is_v2 {
            add("MemoryLow", given(memory.reservation));
        }
    }
    if let Some(cpu) = &resources.cpu {
        match is_v2 {
            true => add("CPUWeight", cpu.shares.filter(|s| *s != 0).map(weight)),
            false => add("CPUShares", cpu.shares.filter(|s| *s != 0)),
        }
        if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
            let period = cpu.period.filter(|period| *period != 0).unwrap_or(100_000);
            add("CPUQuotaPeriodUSec", Some(period));
            add("CPUQuotaPerSecUSec", Some(per_second(quota, period)));
        }
    }
    if let Some(pids) = &resources.pids {
        // None is no limit, too.
        let limit = Some(pids.limit).filter(|limit| *limit != 0);
        add("TasksMax", Some(limit.map_or(u64::MAX, bytes)));
    }
    found
}

/// Microseconds in a second. systemd counts in hundredths of a processor, and a limit is not to be less than asked for.
fn per_second(quota: i64, period: u64) -> u64 {
    const STEP: u128 = 10_000;
    let Ok(quota) = u128::try_from(quota) else {
        return u64::MAX;
    };
    let exact = quota * 1_000_000 / u128::from(period);
    u64::try_from(exact.next_multiple_of(STEP)).unwrap_or(u64::MAX)
}

/// Shares of version 1 (2 to 262144) as a weight of version 2 (1 to 10000), as the runtime-spec's implementations have it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_when_given_then_as_systemd_has_them_and_others_are_refused() {
        let read =
            |wanted| Names::read(wanted, "box", false).map(|names| (names.slice, names.unit));
        for (wanted, slice, unit) in [
            (None, "system.slice", "bulkhead-box.scope"),
            (Some(""), "system.slice", "bulkhead-box.scope"),
            (
                Some("machine.slice:libpod:7"),
                "machine.slice",
                "libpod-7.scope",
            ),
            (Some(":docker:7"), "system.slice", "docker-7.scope"),
            (Some("a-b.slice::7"), "a-b.slice", "7.scope"),
        ] {
            let names = read(wanted).map_err(|failure| failure.message);
            assert_eq!(names, Ok((slice.to_owned(), unit.to_owned())));
        }
        for wanted in [
            "/a/b",
            "a:b",
            "a:b:c",
            "a.slice:b:",
            "a.slice:b:c.slice",
            "a.slice:b/c:d",
        ] {
            let failure = read(Some(wanted)).expect_err(wanted);
            assert!(
                failure.message.contains("SLICE:PREFIX:NAME"),
                "{}",
                failure.message
            );
        }
    }

    #[test]
    fn limits_when_told_to_systemd_then_in_its_units() {
        let resources: Resources = serde_json::from_str(
            r#"{"memory": {"limit": 1048576}, "cpu": {"shares": 1024, "quota": 33333, "period": 100000},
                "pids": {"limit": -1}}"#,
        )
        .expect("limits");
        let number = |name, number| (name, Value::Number(number));
        assert_eq!(
            properties_of(&resources, true),
            [
                number("MemoryMax", 1 << 20),
                number("CPUWeight", 39),
                number("CPUQuotaPeriodUSec", 100_000),
                number("CPUQuotaPerSecUSec", 340_000),
                number("TasksMax", u64::MAX),
            ]
        );
        let v1 = properties_of(&resources, false);
        assert_eq!(
            v1[..2],
            [number("MemoryLimit", 1 << 20), number("CPUShares", 1024)]
        );
        assert_eq!(per_second(-1, 100_000), u64::MAX);
    }
}
