//! Limits as the runtime specification has them, as files of cgroup v2 and what to write to them.

use crate::error::Error;
use crate::spec::{BlockIo, Cpu, DeviceRule, Memory, Rdma, Resources, Throttle};

/// What limits a control group.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Limits {
    pub(super) files: Vec<Limit>,
    /// Which devices may be used; none: all.
    pub(super) devices: Option<Vec<DeviceRule>>,
}

/// A file and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    pub file: String,
    pub value: String,
    /// Kernels that lack the file do without.
    pub optional: bool,
}

impl Limits {
    /// Reads and checks limits.
    pub fn read(resources: &Resources) -> Result<Limits, Error> {
        let mut limits = Limits::default();
        if let Some(memory) = &resources.memory {
            limits.memory(memory)?;
        }
        if let Some(cpu) = &resources.cpu {
            limits.cpu(cpu)?;
        }
        if let Some(pids) = &resources.pids {
            let value = if pids.limit > 0 {
                pids.limit.to_string()
            } else {
                "max".into()
            };
            limits.add("pids.max", value);
        }
        if let Some(block_io) = &resources.block_io {
            limits.block_io(block_io)?;
        }
        for (i, limit) in resources.hugepage_limits.iter().enumerate() {
            let size = &limit.page_size;
            if size.is_empty()
                || size.len() > 16
                || !size.bytes().all(|b| b.is_ascii_alphanumeric())
            {
                let field = format!("linux.resources.hugepageLimits[{i}].pageSize");
                return Err(Error::invalid(
                    field,
                    format!("{size:?} is no size of pages"),
                ));
            }
            limits.add(&format!("hugetlb.{size}.max"), limit.limit.to_string());
        }
        if resources.network.is_some() {
            let problem = "classes and priorities of packets are of cgroup v1, and not supported";
            return Err(Error::invalid("linux.resources.network", problem));
        }
        for (device, rdma) in &resources.rdma {
            limits.rdma(device, rdma)?;
        }
        for (file, value) in &resources.unified {
            let known = file.split_once('.').is_some_and(|(controller, rest)| {
                let name = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
                controller != "cgroup"
                    && !rest.is_empty()
                    && file.len() < 64
                    && file.bytes().all(name)
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
                limits.add(file, line.to_owned());
            }
        }
        if !resources.devices.is_empty() {
            super::devices::check(&resources.devices)?;
            limits.devices = Some(resources.devices.clone());
        }
        Ok(limits)
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.devices.is_none()
    }

    fn add(&mut self, file: &str, value: String) {
        self.files.push(Limit {
            file: file.to_owned(),
            value,
            optional: false,
        });
    }

    fn rdma(&mut self, device: &str, rdma: &Rdma) -> Result<(), Error> {
        let field = format!("linux.resources.rdma[{device:?}]");
        if device.is_empty()
            || device.len() > 64
            || device.contains(|c: char| !c.is_ascii_graphic())
        {
            return Err(Error::invalid(field, "it is no name of a device"));
        }
        let mut value = device.to_owned();
        for (name, limit) in [
            ("hca_handle", rdma.hca_handles),
            ("hca_object", rdma.hca_objects),
        ] {
            if let Some(limit) = limit {
                value += &format!(" {name}={limit}");
            }
        }
        if value.len() == device.len() {
            return Err(Error::invalid(
                field,
                "neither hcaHandles nor hcaObjects is there",
            ));
        }
        self.add("rdma.max", value);
        Ok(())
    }

    fn memory(&mut self, memory: &Memory) -> Result<(), Error> {
        let field = |member: &str| format!("linux.resources.memory.{member}");
        if memory.swappiness.is_some() || memory.disable_oom_killer == Some(true) {
            let problem = "swappiness and disableOOMKiller are of cgroup v1, and not supported";
            return Err(Error::invalid("linux.resources.memory", problem));
        }
        let bytes = |member: &str, value: i64| match value {
            -1 => Ok("max".to_owned()),
            0.. => Ok(value.to_string()),
            _ => Err(Error::invalid(field(member), "less than -1")),
        };
        if let Some(swap) = memory.swap.filter(|&swap| swap != 0) {
            let value = match (swap, memory.limit) {
                (-1, _) => "max".to_owned(),
                (swap, Some(limit)) if limit > 0 && swap >= limit => (swap - limit).to_string(),
                (_, Some(limit)) if limit > 0 => {
                    let problem =
                        "it is memory and swap together, and less than the limit of memory";
                    return Err(Error::invalid(field("swap"), problem));
                }
                _ => {
                    return Err(Error::invalid(
                        field("swap"),
                        "it is limited, and memory is not",
                    ));
                }
            };
            self.files.push(Limit {
                file: "memory.swap.max".into(),
                value,
                optional: true,
            });
        }
        // Zero is what leaving it out means, in Go.
        if let Some(limit) = memory.limit.filter(|&limit| limit != 0) {
            self.add("memory.max", bytes("limit", limit)?);
        }
        if let Some(reservation) = memory.reservation.filter(|&reservation| reservation != 0) {
            self.add("memory.low", bytes("reservation", reservation)?);
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &Cpu) -> Result<(), Error> {
        let field = |member: &str| format!("linux.resources.cpu.{member}");
        if cpu.realtime_runtime.unwrap_or(0) != 0 || cpu.realtime_period.unwrap_or(0) != 0 {
            let problem = "limits of realtime scheduling are of cgroup v1, and not supported";
            return Err(Error::invalid("linux.resources.cpu", problem));
        }
        if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
            // 2 to 262144 become 1 to 10000.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            self.add("cpu.weight", weight.to_string());
        }
        if let Some(idle) = cpu.idle {
            if !(0..=1).contains(&idle) {
                return Err(Error::invalid(field("idle"), "neither 0 nor 1"));
            }
            self.add("cpu.idle", idle.to_string());
        }
        let period = cpu.period.filter(|&period| period != 0);
        if period.is_some_and(|period| !(1000..=1_000_000).contains(&period)) {
            return Err(Error::invalid(
                field("period"),
                "not between 1000 and 1000000 microseconds",
            ));
        }
        let quota = cpu.quota.filter(|&quota| quota != 0);
        if quota.is_some_and(|quota| quota > 0 && quota < 1000 || quota < -1) {
            return Err(Error::invalid(
                field("quota"),
                "less than the 1000 microseconds the kernel takes",
            ));
        }
        if quota.is_some() || period.is_some() {
            let quota = match quota {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".into(),
            };
            self.add("cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
        }
        if let Some(burst) = cpu.burst.filter(|&burst| burst != 0) {
            self.add("cpu.max.burst", burst.to_string());
        }
        for (member, list, file) in [
            ("cpus", &cpu.cpus, "cpuset.cpus"),
            ("mems", &cpu.mems, "cpuset.mems"),
        ] {
            let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
                continue;
            };
            if list.len() > 1024
                || !list
                    .bytes()
                    .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
            {
                return Err(Error::invalid(
                    field(member),
                    format!("{list:?} is no list like 0-3,8"),
                ));
            }
            self.add(file, list.to_owned());
        }
        Ok(())
    }

    fn block_io(&mut self, block_io: &BlockIo) -> Result<(), Error> {
        let weight = |weight: u16| match weight {
            10..=1000 => Ok(1 + (u32::from(weight) - 10) * 9999 / 990),
            _ => Err(Error::invalid(
                "linux.resources.blockIO.weight",
                "not between 10 and 1000",
            )),
        };
        if let Some(value) = block_io.weight.filter(|&value| value != 0) {
            self.add("io.weight", format!("default {}", weight(value)?));
        }
        for device in &block_io.weight_device {
            if let Some(value) = device.weight.filter(|&value| value != 0) {
                self.add(
                    "io.weight",
                    format!("{}:{} {}", device.major, device.minor, weight(value)?),
                );
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
                self.add("io.max", format!("{major}:{minor} {key}={rate}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(resources: &Resources) -> Vec<(String, String)> {
        let limits = Limits::read(resources).expect("valid");
        limits
            .files
            .into_iter()
            .map(|limit| (limit.file, limit.value))
            .collect()
    }

    fn cpu(cpu: Cpu) -> Result<Limits, Error> {
        Limits::read(&Resources {
            cpu: Some(cpu),
            ..Resources::default()
        })
    }

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
            pids: Some(crate::spec::LinuxPids { limit: 100 }),
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
            files(&resources),
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
        let pids = crate::spec::LinuxPids { limit: -1 };
        let resources = Resources {
            memory: Some(memory),
            pids: Some(pids),
            ..Resources::default()
        };
        assert!(files(&resources).iter().all(|(_, value)| value == "max"));
    }

    #[test]
    fn limits_when_out_of_range_then_the_member_is_named() {
        let error = cpu(Cpu {
            period: Some(10),
            ..Cpu::default()
        })
        .expect_err("too short")
        .to_string();
        assert!(error.starts_with("linux.resources.cpu.period: "), "{error}");
        assert!(
            cpu(Cpu {
                quota: Some(-2),
                ..Cpu::default()
            })
            .is_err()
        );
        assert!(
            cpu(Cpu {
                cpus: Some("0;1".into()),
                ..Cpu::default()
            })
            .is_err()
        );
        for file in ["memory", "../a.b", "cgroup.procs", "a/b.c", ""] {
            let unified = [(file.to_owned(), "1".to_owned())].into();
            assert!(
                Limits::read(&Resources {
                    unified,
                    ..Resources::default()
                })
                .is_err(),
                "{file}"
            );
        }
    }

    #[test]
    fn shares_when_converted_then_the_ends_are_the_ends() {
        for (shares, weight) in [(2, "1"), (262_144, "10000"), (u64::MAX, "10000"), (1, "1")] {
            let limits = cpu(Cpu {
                shares: Some(shares),
                ..Cpu::default()
            })
            .expect("valid");
            assert_eq!(limits.files[0].value, weight);
        }
    }
}
