//! When a program gets processors and disks (runtime-spec config.md#linux-process: `scheduler`, `ioPriority`).

use crate::error::Error;
use crate::plan::Operation as O;
use crate::spec::{IoPriority, Process, Scheduler};
use crate::sys::SchedulerAttributes;

/// By name, as `SCHED_*` of the kernel.
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// `IOPRIO_CLASS_*` of the kernel.
const CLASSES: [(&str, u16); 3] = [
    ("IOPRIO_CLASS_RT", 1),
    ("IOPRIO_CLASS_BE", 2),
    ("IOPRIO_CLASS_IDLE", 3),
];

/// What is to be done for both.
pub fn read(process: &Process, operations: &mut Vec<O>) -> Result<(), Error> {
    if let Some(wanted) = &process.scheduler {
        operations.push(scheduler(wanted)?);
    }
    if let Some(wanted) = &process.io_priority {
        operations.push(io_priority(wanted)?);
    }
    Ok(())
}

fn scheduler(wanted: &Scheduler) -> Result<O, Error> {
    let field = |member: &str| format!("process.scheduler.{member}");
    let policy = by_name(field("policy"), &POLICIES, &wanted.policy)?;
    let mut flags = 0;
    for (i, name) in wanted.flags.iter().enumerate() {
        flags |= by_name(field(&format!("flags[{i}]")), &FLAGS, name)?;
    }
    if !(-20..20).contains(&wanted.nice) {
        return Err(Error::invalid(
            field("nice"),
            "it is not between -20 and 19",
        ));
    }
    // Those that run before all others have one, and no others.
    let priorities = if matches!(policy, 1 | 2) {
        1..=99
    } else {
        0..=0
    };
    let priority = u32::try_from(wanted.priority)
        .ok()
        .filter(|priority| priorities.contains(priority))
        .ok_or_else(|| {
            let (least, most) = (priorities.start(), priorities.end());
            let problem = format!("with {} it is {least} to {most}", wanted.policy);
            Error::invalid(field("priority"), problem)
        })?;
    Ok(O::Scheduler {
        name: wanted.policy.clone(),
        attributes: SchedulerAttributes {
            policy,
            flags,
            nice: wanted.nice,
            priority,
            runtime: wanted.runtime,
            deadline: wanted.deadline,
            period: wanted.period,
            ..SchedulerAttributes::default()
        },
    })
}

fn io_priority(wanted: &IoPriority) -> Result<O, Error> {
    let class = by_name("process.ioPriority.class".into(), &CLASSES, &wanted.class)?;
    let level = u16::try_from(wanted.priority)
        .ok()
        .filter(|level| *level < 8)
        .ok_or_else(|| {
            Error::invalid("process.ioPriority.priority", "it is not between 0 and 7")
        })?;
    Ok(O::IoPriority {
        name: format!("{}, {level}", wanted.class),
        value: class << 13 | level,
    })
}

fn by_name<T: Copy>(field: String, known: &[(&str, T)], name: &str) -> Result<T, Error> {
    let found = known.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        Error::invalid(field, format!("{name:?} is none of {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(wanted: &Scheduler) -> String {
        scheduler(wanted).expect_err("wrong").to_string()
    }

    #[test]
    fn scheduler_when_wrong_then_the_member_is_named() {
        let wanted = Scheduler {
            policy: "SCHED_OTHER".into(),
            ..Scheduler::default()
        };
        scheduler(&wanted).expect("valid");
        let priority = Scheduler {
            priority: 1,
            ..wanted.clone()
        };
        assert_eq!(
            refused(&priority),
            "process.scheduler.priority: with SCHED_OTHER it is 0 to 0"
        );
        let policy = Scheduler {
            policy: "OTHER".into(),
            ..wanted.clone()
        };
        assert!(refused(&policy).starts_with("process.scheduler.policy: \"OTHER\" is none of"));
        let nice = Scheduler {
            nice: 20,
            ..wanted.clone()
        };
        assert!(refused(&nice).starts_with("process.scheduler.nice"));
        let flags = Scheduler {
            flags: vec!["X".into()],
            ..wanted
        };
        assert!(refused(&flags).starts_with("process.scheduler.flags[0]"));
    }

    #[test]
    fn io_priority_when_read_then_as_the_kernel_packs_it() {
        let wanted = |class: &str, priority| IoPriority {
            class: class.into(),
            priority,
        };
        let packed = match io_priority(&wanted("IOPRIO_CLASS_BE", 7)) {
            Ok(O::IoPriority { value, .. }) => value,
            other => panic!("{other:?}"),
        };
        assert_eq!(packed, 0x4007);
        assert!(io_priority(&wanted("IOPRIO_CLASS_BE", 8)).is_err());
        assert!(io_priority(&wanted("BE", 0)).is_err());
    }
}
