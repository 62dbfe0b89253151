//! Which processors a program is executed on, and which nodes' memory it is given (runtime-spec config.md#linux-process:
//! `execCPUAffinity`; config-linux.md#memory-policy).

use crate::error::Error;
use crate::plan::{NumberSet, Operation as O};
use crate::spec::{MemoryPolicy, Process};

/// As many as the kernel is asked about.
const MOST: usize = size_of::<NumberSet>() * 8;

/// By name, as `MPOL_*` of the kernel.
const MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

const FLAGS: [(&str, i32); 3] = [
    ("MPOL_F_STATIC_NODES", 1 << 15),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
];

/// Where memory comes from. What goes with what the kernel says.
pub fn memory_policy(wanted: &MemoryPolicy) -> Result<O, Error> {
    let field = |member: &str| format!("linux.memoryPolicy.{member}");
    let find = |field: String, known: &[(&str, i32)], name: &str| {
        let found = known.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Error::invalid(field, format!("{name:?} is none of {}", names.join(", ")))
        })
    };
    let mut mode = find(field("mode"), &MODES, &wanted.mode)?;
    for (i, flag) in wanted.flags.iter().enumerate() {
        mode |= find(field(&format!("flags[{i}]")), &FLAGS, flag)?;
    }
    let nodes = match wanted.nodes.as_str() {
        "" => [0; MOST / 64],
        nodes => set(&field("nodes"), nodes)?,
    };
    Ok(O::MemoryPolicy {
        mode,
        nodes: Box::new(nodes),
        name: format!("{} {}", wanted.mode, wanted.nodes),
    })
}

/// On which processors a program is executed: before it enters its control group, and from then on.
pub fn affinity(process: &Process) -> Result<[Option<O>; 2], Error> {
    let none = crate::spec::CpuAffinity::default();
    let wanted = process.exec_cpu_affinity.as_ref().unwrap_or(&none);
    let read = |member: &str, list: Option<&str>| {
        let Some(list) = list.filter(|list| !list.is_empty()) else {
            return Ok(None);
        };
        let processors = set(&format!("process.execCPUAffinity.{member}"), list)?;
        Ok(Some(O::Affinity {
            processors: Box::new(processors),
            name: list.to_owned(),
        }))
    };
    Ok([
        read("initial", wanted.initial.as_deref())?,
        read("final", wanted.at_last.as_deref())?,
    ])
}

/// A list like `0-3,8`.
fn set(field: &str, list: &str) -> Result<NumberSet, Error> {
    let wrong = || {
        let problem = format!("{list:?} is no list like 0-3,8 of numbers below {MOST}");
        Error::invalid(field, problem)
    };
    let number = |text: &str| {
        let number = text.trim().parse::<usize>().ok();
        number.filter(|&number| number < MOST).ok_or_else(wrong)
    };
    let mut set = [0; MOST / 64];
    for part in list.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(wrong());
        }
        for n in first..=last {
            set[n / 64] |= 1 << (n % 64);
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_when_read_then_a_bit_for_each_number() {
        let read = set("x", "0-2,64, 1023").expect("valid");
        assert_eq!((read[0], read[1], read[15]), (7, 1, 1 << 63));
        for list in ["", "x", "1-", "3-1", "1024", "-1", "0,,1"] {
            assert!(set("x", list).is_err(), "{list}");
        }
    }

    #[test]
    fn policy_when_wrong_then_the_member_is_named() {
        let policy = |mode: &str, nodes: &str, flags: &[&str]| {
            let wanted = MemoryPolicy {
                mode: mode.into(),
                nodes: nodes.into(),
                flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            };
            memory_policy(&wanted).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(policy("MPOL_BIND", "0", &["MPOL_F_STATIC_NODES"]), Ok(()));
        for (result, member) in [
            (policy("", "", &[]), "mode"),
            (policy("MPOL_BIND", "all", &[]), "nodes"),
            (policy("MPOL_BIND", "0", &["X"]), "flags[0]"),
        ] {
            let error = result.expect_err(member);
            assert!(error.starts_with(&format!("linux.memoryPolicy.{member}: ")));
        }
    }
}
