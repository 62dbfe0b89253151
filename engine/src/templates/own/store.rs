//! Where templates of the user's own are kept: as snapshots are, by their names, with `template.json` beside.

use std::path::Path;

use super::record::Made;
use crate::error::Error;
use crate::layout::Layout;
use crate::record::Machine;
use crate::snapshots::{Listed, Snapshot, Snapshots};

/// All of them under one root.
#[derive(Debug, Clone)]
pub struct OwnTemplates {
    pub(super) snapshots: Snapshots,
}

/// One of them, held: nobody removes it meanwhile.
#[derive(Debug)]
pub struct OwnTemplate {
    /// What any snapshot has.
    pub snapshot: Snapshot,
    /// What it was made of.
    pub made: Made,
}

impl OwnTemplates {
    /// Those of this layout.
    pub fn of(layout: &Layout) -> Self {
        OwnTemplates {
            snapshots: Snapshots::of_templates(layout),
        }
    }

    /// Finds a template.
    pub fn open(&self, name: &str) -> Result<OwnTemplate, Error> {
        let snapshot = self.snapshots.open(name)?;
        Ok(OwnTemplate {
            made: Made::read(name, snapshot.folder())?,
            snapshot,
        })
    }

    /// Fails if none can be kept under this name.
    pub fn check_free(&self, name: &str) -> Result<(), Error> {
        self.snapshots.check_free(name)
    }

    /// All templates, by their names.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        self.snapshots.list()
    }

    /// Removes a template. Clones of it go on; containers that are to begin in one cannot start any more.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.snapshots.remove(name)
    }
}

impl OwnTemplate {
    /// The folder that the VMM reads.
    pub fn folder(&self) -> &Path {
        self.snapshot.folder()
    }

    /// The machine that a container with these limits, in processors and bytes, has in a clone of it. Fails if none
    /// can, with the reason.
    pub fn machine_for(&self, limits: (Option<f64>, Option<u64>)) -> Result<Machine, Error> {
        let name = &self.snapshot.name;
        self.made.check_agent(name)?;
        self.made.machine_for(name, limits)
    }

    /// Fails if a container that was made for this machine cannot begin in a clone of it.
    pub(crate) fn check(&self, machine: Machine) -> Result<(), Error> {
        let name = &self.snapshot.name;
        self.made.check_agent(name)?;
        self.made.check_machine(name, machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_when_there_is_none_or_its_name_is_none_is_refused_in_its_own_words() {
        let dir = tempfile::tempdir().expect("folder");
        let templates = OwnTemplates::of(&Layout::under(dir.path()).expect("layout"));
        let missing = templates.open("mine").expect_err("none").to_string();
        assert_eq!(
            missing,
            "there is no template mine (`bulkhead template ls` lists them)"
        );
        let wrong = templates.open("../x").expect_err("no name").to_string();
        assert!(wrong.contains("cannot be a template's name"), "{wrong}");
        let missing = templates.remove("mine").expect_err("none").to_string();
        assert!(missing.contains("no template mine"), "{missing}");
        assert!(templates.list().expect("list").is_empty());
    }

    #[test]
    fn name_when_it_is_reserved_is_nobody_elses_and_free_again_when_nothing_comes_of_it() {
        let dir = tempfile::tempdir().expect("folder");
        let templates = OwnTemplates::of(&Layout::under(dir.path()).expect("layout"));
        let first = templates.snapshots.reserve("mine").expect("reserve");
        let scratch = first.scratch().expect("name");
        std::fs::create_dir(&scratch).expect("make");
        let second = templates.snapshots.reserve("mine").expect_err("taken");
        let second = second.to_string();
        assert!(second.contains("the template mine: try again"), "{second}");
        assert!(scratch.exists());
        // As if it had been killed.
        drop(first);
        drop(templates.snapshots.reserve("mine").expect("free"));
        let left = std::fs::read_dir(dir.path().join("own-templates"));
        assert_eq!(left.expect("list").count(), 0);
    }
}
