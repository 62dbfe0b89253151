//! The files of cgroup version 1.

use super::super::limits::{Limits, Otherwise, bandwidth, bytes, field, idle_and_sets, weight};
use crate::error::Error;
use crate::spec::{BlockIo, Cpu, Memory, Network, Resources, Throttle};

/// Reads what is this version's own.
pub fn read(resources: &Resources, limits: &mut Limits) -> Result<(), Error> {
    if let Some(file) = resources.unified.keys().next() {
        let problem = "it is a file of cgroup v2, and this host's limits are of v1";
        return Err(Error::invalid(
            format!("linux.resources.unified[{file:?}]"),
            problem,
        ));
    }
    if let Some(wanted) = &resources.memory {
        memory(wanted, limits)?;
    }
    if let Some(wanted) = &resources.cpu {
        cpu(wanted, limits)?;
    }
    if let Some(wanted) = &resources.block_io {
        block_io(wanted, limits)?;
    }
    if let Some(wanted) = &resources.network {
        network(wanted, limits)?;
    }
    Ok(())
}

fn memory(memory: &Memory, limits: &mut Limits) -> Result<(), Error> {
    if memory.use_hierarchy == Some(true) {
        // What newer kernels do always.
        limits.add_optional("memory.use_hierarchy", 1);
    }
    let given = |value: Option<i64>| value.filter(|&value| value != 0);
    // Without a limit of memory there is none of memory and swap, unless it says so.
    let swap = given(memory.swap).or(memory.limit.filter(|&limit| limit == -1));
    if let Some(limit) = given(memory.limit) {
        if let Some(swap) = swap.filter(|&swap| swap != -1)
            && swap < limit
        {
            let problem = "it is memory and swap together, and less than the limit of memory";
            return Err(Error::invalid(field("memory", "swap"), problem));
        }
        limits.add("memory.limit_in_bytes", bytes("limit", limit, "-1")?);
    } else if swap.is_some_and(|swap| swap != -1) {
        let problem = "it is limited, and memory is not";
        return Err(Error::invalid(field("memory", "swap"), problem));
    }
    if let Some(swap) = swap {
        // Kernels that count no swap have none for it to use up.
        limits.add_optional("memory.memsw.limit_in_bytes", bytes("swap", swap, "-1")?);
    }
    for (member, value, file) in [
        (
            "reservation",
            memory.reservation,
            "memory.soft_limit_in_bytes",
        ),
        ("kernel", memory.kernel, "memory.kmem.limit_in_bytes"),
        (
            "kernelTCP",
            memory.kernel_tcp,
            "memory.kmem.tcp.limit_in_bytes",
        ),
    ] {
        if let Some(value) = given(value) {
            let value = bytes(member, value, "-1")?;
            match member {
                "reservation" => limits.add(file, value),
                // Newer kernels count it with the rest.
                _ => limits.add_optional(file, value),
            }
        }
    }
    if let Some(swappiness) = memory.swappiness {
        if swappiness > 100 {
            let problem = "not between 0 and 100";
            return Err(Error::invalid(field("memory", "swappiness"), problem));
        }
        limits.add("memory.swappiness", swappiness);
    }
    if memory.disable_oom_killer == Some(true) {
        limits.add("memory.oom_control", 1);
    }
    Ok(())
}

fn cpu(cpu: &Cpu, limits: &mut Limits) -> Result<(), Error> {
    if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
        limits.add("cpu.shares", shares);
    }
    let (quota, period) = bandwidth(cpu)?;
    if let Some(period) = period {
        limits.add("cpu.cfs_period_us", period);
    }
    if let Some(quota) = quota {
        limits.add("cpu.cfs_quota_us", quota);
    }
    if let Some(burst) = cpu.burst.filter(|&burst| burst != 0) {
        limits.add("cpu.cfs_burst_us", burst);
    }
    if let Some(period) = cpu.realtime_period.filter(|&period| period != 0) {
        limits.add("cpu.rt_period_us", period);
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|&runtime| runtime != 0) {
        limits.add("cpu.rt_runtime_us", runtime);
    }
    idle_and_sets(cpu, limits)
}

fn block_io(block_io: &BlockIo, limits: &mut Limits) -> Result<(), Error> {
    // Kernels that have only the one scheduler with shares name its files after it.
    let mut add_weight = |file: &str, value: String| {
        let bfq = Otherwise::Write(format!("blkio.bfq.{file}"), value.clone());
        limits.add_or(&format!("blkio.{file}"), value, bfq);
    };
    if let Some(value) = block_io.weight.filter(|&value| value != 0) {
        add_weight("weight", weight(value)?.to_string());
    }
    for device in &block_io.weight_device {
        if let Some(value) = device.weight.filter(|&value| value != 0) {
            let value = format!("{}:{} {}", device.major, device.minor, weight(value)?);
            add_weight("weight_device", value);
        }
    }
    let throttles: [(&str, &[Throttle]); 4] = [
        ("read_bps_device", &block_io.throttle_read_bps_device),
        ("write_bps_device", &block_io.throttle_write_bps_device),
        ("read_iops_device", &block_io.throttle_read_iops_device),
        ("write_iops_device", &block_io.throttle_write_iops_device),
    ];
    for (file, devices) in throttles {
        for Throttle { major, minor, rate } in devices {
            let value = format!("{major}:{minor} {rate}");
            limits.add(&format!("blkio.throttle.{file}"), value);
        }
    }
    Ok(())
}

fn network(network: &Network, limits: &mut Limits) -> Result<(), Error> {
    if let Some(class) = network.class_id.filter(|&class| class != 0) {
        limits.add("net_cls.classid", class);
    }
    for (i, interface) in network.priorities.iter().enumerate() {
        let name = &interface.name;
        if name.is_empty() || name.len() > 15 || !name.bytes().all(|b| b.is_ascii_graphic()) {
            let field = field("network", &format!("priorities[{i}].name"));
            return Err(Error::invalid(field, format!("{name:?} is no interface")));
        }
        limits.add(
            "net_prio.ifpriomap",
            format!("{name} {}", interface.priority),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::Version;
    use super::super::super::limits::tests::files;
    use super::*;
    use crate::spec::{BlockIoDevice, InterfacePriority, LinuxPids};

    #[test]
    fn limits_when_all_are_given_then_files_of_version_1() {
        let throttle = vec![Throttle {
            major: 8,
            minor: 0,
            rate: 9,
        }];
        let resources = Resources {
            memory: Some(Memory {
                limit: Some(64 << 20),
                swap: Some(-1),
                reservation: Some(1 << 20),
                kernel: Some(3),
                kernel_tcp: Some(4),
                swappiness: Some(10),
                disable_oom_killer: Some(true),
                use_hierarchy: Some(true),
                ..Memory::default()
            }),
            cpu: Some(Cpu {
                shares: Some(512),
                quota: Some(-1),
                period: Some(50_000),
                burst: Some(7),
                realtime_period: Some(100),
                realtime_runtime: Some(50),
                cpus: Some("0-1".into()),
                mems: Some("0".into()),
                idle: Some(0),
            }),
            block_io: Some(BlockIo {
                weight: Some(100),
                weight_device: vec![BlockIoDevice {
                    major: 8,
                    minor: 0,
                    weight: Some(10),
                }],
                throttle_read_bps_device: throttle.clone(),
                throttle_write_bps_device: throttle.clone(),
                throttle_read_iops_device: throttle.clone(),
                throttle_write_iops_device: throttle,
            }),
            network: Some(Network {
                class_id: Some(0x10_0001),
                priorities: vec![InterfacePriority {
                    name: "eth0".into(),
                    priority: 5,
                }],
            }),
            pids: Some(LinuxPids { limit: 0 }),
            ..Resources::default()
        };
        let expected = "\
memory.use_hierarchy=1
memory.limit_in_bytes=67108864
memory.memsw.limit_in_bytes=-1
memory.soft_limit_in_bytes=1048576
memory.kmem.limit_in_bytes=3
memory.kmem.tcp.limit_in_bytes=4
memory.swappiness=10
memory.oom_control=1
cpu.shares=512
cpu.cfs_period_us=50000
cpu.cfs_quota_us=-1
cpu.cfs_burst_us=7
cpu.rt_period_us=100
cpu.rt_runtime_us=50
cpu.idle=0
cpuset.cpus=0-1
cpuset.mems=0
blkio.weight=100
blkio.weight_device=8:0 10
blkio.throttle.read_bps_device=8:0 9
blkio.throttle.write_bps_device=8:0 9
blkio.throttle.read_iops_device=8:0 9
blkio.throttle.write_iops_device=8:0 9
net_cls.classid=1048577
net_prio.ifpriomap=eth0 5
pids.max=max";
        let lines = files(&resources, Version::One).into_iter();
        let lines: Vec<_> = lines
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn memory_when_without_limit_then_swap_is_too() {
        let of = |limit, swap| {
            let memory = Memory {
                limit,
                swap,
                ..Memory::default()
            };
            let resources = Resources {
                memory: Some(memory),
                ..Resources::default()
            };
            Limits::read(&resources, Version::One).map(|limits| {
                let values = limits.files.into_iter().map(|limit| limit.value);
                values.collect::<Vec<_>>()
            })
        };
        assert_eq!(of(Some(-1), None).expect("valid"), ["-1", "-1"]);
        assert_eq!(of(Some(10), None).expect("valid"), ["10"]);
        assert_eq!(of(Some(10), Some(20)).expect("valid"), ["10", "20"]);
        for (limit, swap) in [(Some(20), 10), (None, 10), (Some(0), 10)] {
            let error = of(limit, Some(swap)).expect_err("swap alone").to_string();
            assert!(
                error.starts_with("linux.resources.memory.swap: "),
                "{error}"
            );
        }
    }

    #[test]
    fn files_of_version_2_when_given_then_refused_in_a_sentence() {
        let resources = Resources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        let error = Limits::read(&resources, Version::One).expect_err("v2's");
        assert_eq!(
            error.to_string(),
            "linux.resources.unified[\"memory.high\"]: it is a file of cgroup v2, and this host's limits are of v1"
        );
    }
}
