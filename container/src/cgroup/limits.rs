//! Limits as the runtime specification has them, as files of control groups and what to write to them.

use super::{Version, v1, v2};
use crate::error::Error;
use crate::spec::{Cpu, DeviceRule, HugepageLimit, Rdma, Resources};

/// What limits a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    version: Version,
    pub(super) files: Vec<Limit>,
    /// Refused if more memory than this is used already. Version 1 refuses that by itself.
    pub(super) not_below_use: Option<u64>,
    /// Which devices may be used; none: all.
    pub(super) devices: Option<Vec<DeviceRule>>,
}

/// A file and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    pub file: String,
    pub value: String,
    /// What is written if the kernel has no such file.
    pub otherwise: Otherwise,
}

/// What is done where a file is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// The limit cannot be set, which is an error.
    Refuse,
    /// What it limits is not there either.
    DoWithout,
    /// Another file does the same.
    Write(String, String),
}

impl Limit {
    /// What the name of its file begins with.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or(&self.file)
    }
}

impl Limits {
    /// None.
    pub fn none(version: Version) -> Limits {
        Limits {
            version,
            files: Vec::new(),
            not_below_use: None,
            devices: None,
        }
    }

    /// Reads and checks limits, for groups of this version.
    pub fn read(resources: &Resources, version: Version) -> Result<Limits, Error> {
        let mut limits = Limits::none(version);
        match version {
            Version::One => v1::limits::read(resources, &mut limits)?,
            Version::Two => v2::limits::read(resources, &mut limits)?,
        }
        if let Some(pids) = &resources.pids {
            let value = if pids.limit > 0 {
                pids.limit.to_string()
            } else {
                "max".into()
            };
            limits.add("pids.max", value);
        }
        for (i, limit) in resources.hugepage_limits.iter().enumerate() {
            limits.huge_pages(i, limit)?;
        }
        for (device, rdma) in &resources.rdma {
            limits.rdma(device, rdma)?;
        }
        if !resources.devices.is_empty() {
            check_devices(&resources.devices)?;
            if version == Version::One {
                v1::devices::compile(&resources.devices)?;
            }
            limits.devices = Some(resources.devices.clone());
        }
        Ok(limits)
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.devices.is_none()
    }

    pub(super) fn add(&mut self, file: &str, value: impl ToString) {
        self.add_or(file, value, Otherwise::Refuse);
    }

    /// Where the kernel lacks the file, it is done without.
    pub(super) fn add_optional(&mut self, file: &str, value: impl ToString) {
        self.add_or(file, value, Otherwise::DoWithout);
    }

    pub(super) fn add_or(&mut self, file: &str, value: impl ToString, otherwise: Otherwise) {
        self.files.push(Limit {
            file: file.to_owned(),
            value: value.to_string(),
            otherwise,
        });
    }

    fn huge_pages(&mut self, i: usize, limit: &HugepageLimit) -> Result<(), Error> {
        let size = &limit.page_size;
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let field = format!("linux.resources.hugepageLimits[{i}].pageSize");
            let problem = format!("{size:?} is no size of pages");
            return Err(Error::invalid(field, problem));
        }
        let end = match self.version {
            Version::One => "limit_in_bytes",
            Version::Two => "max",
        };
        self.add(&format!("hugetlb.{size}.{end}"), limit.limit);
        // What is reserved counts too, where the kernel can tell.
        self.add_optional(&format!("hugetlb.{size}.rsvd.{end}"), limit.limit);
        Ok(())
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
}

/// Checks rules before they are used.
fn check_devices(rules: &[DeviceRule]) -> Result<(), Error> {
    if rules.len() > 1000 {
        let problem = "they are more than 1000";
        return Err(Error::invalid("linux.resources.devices", problem));
    }
    for (i, rule) in rules.iter().enumerate() {
        if super::devices::Rule::read(rule).is_none() {
            let problem =
                "a rule has the type a, b or c, numbers from -1 on, and an access of r, w and m";
            let field = format!("linux.resources.devices[{i}]");
            return Err(Error::invalid(field, problem));
        }
    }
    Ok(())
}

/// How a member of `linux.resources` is named in errors.
pub(super) fn field(part: &str, member: &str) -> String {
    format!("linux.resources.{part}.{member}")
}

/// A quota and a period that are given and can be, in microseconds.
pub(super) fn bandwidth(cpu: &Cpu) -> Result<(Option<i64>, Option<u64>), Error> {
    let period = cpu.period.filter(|&period| period != 0);
    if period.is_some_and(|period| !(1000..=1_000_000).contains(&period)) {
        let problem = "not between 1000 and 1000000 microseconds";
        return Err(Error::invalid(field("cpu", "period"), problem));
    }
    let quota = cpu.quota.filter(|&quota| quota != 0);
    if quota.is_some_and(|quota| quota > 0 && quota < 1000 || quota < -1) {
        let problem = "less than the 1000 microseconds the kernel takes";
        return Err(Error::invalid(field("cpu", "quota"), problem));
    }
    Ok((quota, period))
}

/// Whether it is idle, and which processors and nodes of memory it has: the same in both versions.
pub(super) fn idle_and_sets(cpu: &Cpu, limits: &mut Limits) -> Result<(), Error> {
    if let Some(idle) = cpu.idle {
        if !(0..=1).contains(&idle) {
            return Err(Error::invalid(field("cpu", "idle"), "neither 0 nor 1"));
        }
        limits.add("cpu.idle", idle);
    }
    for (member, list, file) in [
        ("cpus", &cpu.cpus, "cpuset.cpus"),
        ("mems", &cpu.mems, "cpuset.mems"),
    ] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
            continue;
        };
        let known = |b: u8| b.is_ascii_digit() || matches!(b, b',' | b'-');
        if list.len() > 1024 || !list.bytes().all(known) {
            let problem = format!("{list:?} is no list like 0-3,8");
            return Err(Error::invalid(field("cpu", member), problem));
        }
        limits.add(file, list);
    }
    Ok(())
}

/// Bytes, with -1 for no limit.
pub(super) fn bytes(member: &str, value: i64, unlimited: &str) -> Result<String, Error> {
    match value {
        -1 => Ok(unlimited.to_owned()),
        0.. => Ok(value.to_string()),
        _ => Err(Error::invalid(field("memory", member), "less than -1")),
    }
}

/// A share of block devices, 10 to 1000.
pub(super) fn weight(weight: u16) -> Result<u32, Error> {
    match weight {
        10..=1000 => Ok(u32::from(weight)),
        _ => Err(Error::invalid(
            field("blockIO", "weight"),
            "not between 10 and 1000",
        )),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The files that are written, and what is written to them.
    pub fn files(resources: &Resources, version: Version) -> Vec<(String, String)> {
        let limits = Limits::read(resources, version).expect("valid");
        let pair = |limit: Limit| (limit.file, limit.value);
        limits.files.into_iter().map(pair).collect()
    }

    pub fn cpu(cpu: Cpu) -> Resources {
        Resources {
            cpu: Some(cpu),
            ..Resources::default()
        }
    }

    #[test]
    fn limits_when_out_of_range_then_the_member_is_named() {
        for version in [Version::One, Version::Two] {
            let refused = |member: &str, wrong: Cpu| {
                let error = Limits::read(&cpu(wrong), version)
                    .expect_err(member)
                    .to_string();
                assert!(
                    error.starts_with(&format!("linux.resources.cpu.{member}: ")),
                    "{error}"
                );
            };
            let none = Cpu::default;
            refused(
                "period",
                Cpu {
                    period: Some(10),
                    ..none()
                },
            );
            refused(
                "quota",
                Cpu {
                    quota: Some(-2),
                    ..none()
                },
            );
            refused(
                "cpus",
                Cpu {
                    cpus: Some("0;1".into()),
                    ..none()
                },
            );
            refused(
                "idle",
                Cpu {
                    idle: Some(2),
                    ..none()
                },
            );
        }
    }

    #[test]
    fn huge_pages_when_limited_then_each_version_has_its_file() {
        let limit = HugepageLimit {
            page_size: "2MB".into(),
            limit: 4 << 20,
        };
        let resources = Resources {
            hugepage_limits: vec![limit],
            ..Resources::default()
        };
        let first = |version| files(&resources, version).swap_remove(0).0;
        assert_eq!(first(Version::One), "hugetlb.2MB.limit_in_bytes");
        assert_eq!(first(Version::Two), "hugetlb.2MB.max");
    }
}
