//! `template.json`: what we know of a template of the user's own beside what any snapshot has.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Wanted;
use crate::artifacts::Artifact;
use crate::error::{Error, cannot};
use crate::record::{self, Machine};
use crate::templates::key::{FORMAT, Identity};

/// The file, in a template's folder.
const FILE: &str = "template.json";

/// What a template was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// How templates were made then.
    format: u32,
    /// Its machine.
    pub machine: Machine,
    /// Its agent's image, which it still reads.
    agent: Identity,
    /// The image whose program has prepared it, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// That program and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

impl Made {
    /// Of one that is made here and now.
    pub(super) fn of(wanted: &Wanted) -> Result<Self, Error> {
        let preparation = wanted.preparation.as_ref();
        Ok(Made {
            format: FORMAT,
            machine: wanted.machine,
            agent: Identity::of_artifact(Artifact::AgentImage)?,
            image: preparation.map(|it| it.image.clone()),
            command: preparation.map(|it| it.command()).unwrap_or_default(),
        })
    }

    /// Writes it into a template's folder.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(FILE);
        record::write(&path, self).map_err(cannot(format!("write {}", path.display())))
    }

    /// Reads that of the template `name` in `folder`.
    pub(super) fn read(name: &str, folder: &Path) -> Result<Self, Error> {
        record::read_of_format(&folder.join(FILE), FORMAT.into(), |_| {
            make_again(name, "was made by another version of Bulkhead")
        })
    }

    /// Fails if the agent that the template `name` has in its memory is not the one there is now: the rest of it is
    /// still read from its image.
    pub(super) fn check_agent(&self, name: &str) -> Result<(), Error> {
        match Identity::of_artifact(Artifact::AgentImage)? == self.agent {
            true => Ok(()),
            false => Err(make_again(
                name,
                "was made with another agent than there is now",
            )),
        }
    }

    /// The machine of a container in a clone of the template `name`, with these limits, if it has any: those must
    /// leave the kernel what it needs.
    pub(super) fn machine_for(
        &self,
        name: &str,
        (cpus, memory): (Option<f64>, Option<u64>),
    ) -> Result<Machine, Error> {
        let needed = Machine::for_limits(cpus, memory);
        let too_little = |option: &str, what: &str, needed: u64, has: u64| {
            Err(Error::Invalid(format!(
                "{option} takes a machine with {needed} {what}, and that of the template {name} has {has}: ask for \
                 less, or make a larger template"
            )))
        };
        let has = self.machine;
        if cpus.is_some() && needed.cpus > has.cpus {
            let (needed, has) = (needed.cpus.into(), has.cpus.into());
            return too_little("--cpus", "processors", needed, has);
        }
        if memory.is_some() && needed.memory_mib > has.memory_mib {
            return too_little("--memory", "MiB", needed.memory_mib, has.memory_mib);
        }
        Ok(has)
    }

    /// Fails if the template `name` has not the machine that a container was made for.
    pub(super) fn check_machine(&self, name: &str, wanted: Machine) -> Result<(), Error> {
        let words = |Machine { cpus, memory_mib }| format!("{cpus} vCPUs and {memory_mib} MiB");
        match self.machine == wanted {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "the template {name} is another now, with {}, and the container was made for one with {}: make \
                 either of them again",
                words(self.machine),
                words(wanted)
            ))),
        }
    }
}

fn make_again(name: &str, why: &str) -> Error {
    Error::Invalid(format!(
        "the template {name} {why}: remove it with `bulkhead template rm {name}`, and make it again"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn made(agent: &Path) -> Made {
        Made {
            format: FORMAT,
            machine: Machine {
                cpus: 2,
                memory_mib: 324,
            },
            agent: Identity::of(agent).expect("look"),
            image: None,
            command: Vec::new(),
        }
    }

    #[test]
    fn limits_when_they_fit_leave_the_machine_as_it_is_and_otherwise_are_refused() {
        let made = made(Path::new("/proc/self/exe"));
        let mib = |n: u64| Some(n << 20);
        for limits in [
            (None, None),
            (Some(0.5), None),
            (Some(2.0), mib(256)),
            (None, mib(6)),
        ] {
            let machine = made.machine_for("mine", limits).expect("fits");
            assert_eq!(machine, made.machine);
        }
        for (limits, said) in [
            (
                (Some(2.5), None),
                "--cpus takes a machine with 3 processors, and that of the template mine has 2",
            ),
            ((Some(1.0), mib(257)), "--memory takes a machine with 325"),
        ] {
            let refused = made.machine_for("mine", limits).expect_err(said);
            assert!(refused.to_string().contains(said), "{refused}");
        }
        let other = Machine {
            cpus: 1,
            memory_mib: 324,
        };
        made.check_machine("mine", made.machine).expect("the same");
        let refused = made.check_machine("mine", other).expect_err("another");
        let refused = refused.to_string();
        assert!(
            refused.contains("with 2 vCPUs and 324 MiB, and the container was made for one with 1"),
            "{refused}"
        );
    }

    #[test]
    fn record_when_of_another_format_is_refused_by_the_templates_name() {
        let dir = tempfile::tempdir().expect("folder");
        let written = made(Path::new("/proc/self/exe"));
        written.write(dir.path()).expect("write");
        assert_eq!(Made::read("mine", dir.path()).expect("read"), written);
        for (text, said) in [
            (
                "{\"format\": 2, \"more\": 1}",
                "the template mine was made by",
            ),
            (&format!("{{\"format\": {FORMAT}}}"), "missing field"),
            ("", "cannot read"),
        ] {
            fs::write(dir.path().join(FILE), text).expect("write");
            let refused = Made::read("mine", dir.path()).expect_err(text).to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
