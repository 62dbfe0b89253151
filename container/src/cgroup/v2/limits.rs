//! The files of cgroup version 2.

use super::super::limits::{Limits, bandwidth, bytes, field, idle_and_sets, weight};
use crate::error::Error;
use crate::spec::{BlockIo, Cpu, Memory, Resources, Throttle};

/// Reads what is this version's own.
pub fn read(resources: &Resources, limits: &mut Limits) -> Result<(), Error> {
    if let Some(wanted) = &resources.memory {
        memory(wanted, limits)?;
    }
    if let Some(wanted) = &resources.cpu {
        cpu(wanted, limits)?;
    }
    if let Some(wanted) = &resources.block_io {
        block_io(wanted, limits)?;
    }
    if resources
        .network
        .as_ref()
        .is_some_and(|network| !network.is_empty())
    {
        let problem = "classes and priorities of packets are of cgroup v1, and this host has v2";
        return Err(Error::invalid("linux.resources.network", problem));
    }
    for (file, value) in &resources.unified {
        let known = file.split_once('.').is_some_and(|(controller, rest)| {
            let name = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
            controller != "cgroup" && !rest.is_empty() && file.len() < 64 && file.bytes().all(name)
        });
        if !known || value.len() > 4095 {
            let field = format!("linux.resources.unified[{file:?}]");
            return Err(Error::invalid(
                field,
                "it is no file of a controller, or the value is longer than a page",
            ));
        }
        // Some files take a line for each device.
        for line in value.lines().filter(|line| !line.is_empty()) {
            limits.add(file, line);
        }
    }
    Ok(())
}

fn memory(memory: &Memory, limits: &mut Limits) -> Result<(), Error> {
    if memory.swappiness.is_some() || memory.disable_oom_killer == Some(true) {
        let problem = "swappiness and disableOOMKiller are of cgroup v1, and this host has v2";
        return Err(Error::invalid("linux.resources.memory", problem));
    }
    let refused = |problem| Err(Error::invalid(field("memory", "swap"), problem));
    if let Some(swap) = memory.swap.filter(|&swap| swap != 0) {
        let value = match (swap, memory.limit) {
            (-1, _) => "max".to_owned(),
            (swap, Some(limit)) if limit > 0 && swap >= limit => (swap - limit).to_string(),
            (_, Some(limit)) if limit > 0 => {
                return refused(
                    "it is memory and swap together, and less than the limit of memory",
                );
            }
            _ => return refused("it is limited, and memory is not"),
        };
        // Kernels without swap: what they lack cannot be used up.
        limits.add_optional("memory.swap.max", value);
    }
    // Zero is what leaving it out means, in Go.
    if let Some(limit) = memory.limit.filter(|&limit| limit != 0) {
        limits.add("memory.max", bytes("limit", limit, "max")?);
        if memory.check_before_update == Some(true) {
            limits.not_below_use = u64::try_from(limit).ok();
        }
    }
    if let Some(reservation) = memory.reservation.filter(|&reservation| reservation != 0) {
        limits.add("memory.low", bytes("reservation", reservation, "max")?);
    }
    Ok(())
}

fn cpu(cpu: &Cpu, limits: &mut Limits) -> Result<(), Error> {
    if cpu.realtime_runtime.unwrap_or(0) != 0 || cpu.realtime_period.unwrap_or(0) != 0 {
        let problem = "limits of realtime scheduling are of cgroup v1, and this host has v2";
        return Err(Error::invalid("linux.resources.cpu", problem));
    }
    if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
        // 2 to 262144 become 1 to 10000.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        limits.add("cpu.weight", weight);
    }
    let (quota, period) = bandwidth(cpu)?;
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".into(),
        };
        limits.add("cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
    }
    if let Some(burst) = cpu.burst.filter(|&burst| burst != 0) {
        limits.add("cpu.max.burst", burst);
    }
    idle_and_sets(cpu, limits)
}

fn block_io(block_io: &BlockIo, limits: &mut Limits) -> Result<(), Error> {
    // 10 to 1000 become 1 to 10000.
    let weight = |value| weight(value).map(|weight| 1 + (weight - 10) * 9999 / 990);
    if let Some(value) = block_io.weight.filter(|&value| value != 0) {
        limits.add("io.weight", format!("default {}", weight(value)?));
    }
    for device in &block_io.weight_device {
        if let Some(value) = device.weight.filter(|&value| value != 0) {
            let value = format!("{}:{} {}", device.major, device.minor, weight(value)?);
            limits.add("io.weight", value);
        }
    }
    let throttles: [(&str, &[Throttle]); 4] = [
        ("rbps", &block_io.throttle_read_bps_device),
        ("wbps", &block_io.throttle_write_bps_device),
        ("riops", &block_io.throttle_read_iops_device),
        ("wiops", &block_io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for Throttle { major, minor, rate } in devices {
            let rate = if *rate == 0 {
                "max".into()
            } else {
                rate.to_string()
            };
            limits.add("io.max", format!("{major}:{minor} {key}={rate}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::Version;
    use super::super::super::limits::tests::{cpu, files};
    use super::*;
    use crate::spec::LinuxPids;

    #[test]
    fn limits_when_as_dockers_then_files_of_version_2() {
        let resources = Resources {
            memory: Some(Memory {
                limit: Some(64 << 20),
                swap: Some(128 << 20),
                ..Memory::default()
            }),
            cpu: Some(Cpu {
                quota: Some(50_000),
                shares: Some(1024),
                ..Cpu::default()
            }),
            pids: Some(LinuxPids { limit: 100 }),
            ..Resources::default()
        };
        let expected = [
            ("memory.swap.max", "67108864"),
            ("memory.max", "67108864"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "100"),
        ];
        assert_eq!(
            files(&resources, Version::Two),
            expected.map(|(f, v)| (f.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn limits_when_minus_one_then_none() {
        let memory = Memory {
            limit: Some(-1),
            swap: Some(-1),
            ..Memory::default()
        };
        let resources = Resources {
            memory: Some(memory),
            pids: Some(LinuxPids { limit: -1 }),
            ..Resources::default()
        };
        let files = files(&resources, Version::Two);
        assert!(files.iter().all(|(_, value)| value == "max"));
    }

    #[test]
    fn file_when_no_controllers_then_refused() {
        for file in ["memory", "../a.b", "cgroup.procs", "a/b.c", ""] {
            let resources = Resources {
                unified: [(file.to_owned(), "1".to_owned())].into(),
                ..Resources::default()
            };
            assert!(Limits::read(&resources, Version::Two).is_err(), "{file}");
        }
    }

    #[test]
    fn shares_when_converted_then_the_ends_are_the_ends() {
        for (shares, weight) in [(2, "1"), (262_144, "10000"), (u64::MAX, "10000"), (1, "1")] {
            let shares = Some(shares);
            let limited = cpu(Cpu {
                shares,
                ..Cpu::default()
            });
            assert_eq!(files(&limited, Version::Two)[0].1, weight);
        }
    }
}
