//! What front ends call.

mod checkpoint;
mod control;
mod create;
mod find;
mod remove;
mod repair;
mod start;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use create::New;
pub(crate) use remove::discard;
pub use start::{Start, Started};

use crate::agent::Agent;
use crate::error::{Error, cannot};
use crate::layout::Layout;
use crate::record::{Config, Files, State};
use crate::snapshots::Snapshots;
use crate::templates::Templates;
use crate::templates::own::OwnTemplates;

/// All containers under one root, and what can be done with them.
#[derive(Debug, Clone)]
pub struct Engine {
    layout: Layout,
    /// The root, if it was named: monitors are told.
    named_root: Option<PathBuf>,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub config: Config,
    /// How it was when it was looked at.
    pub state: State,
    /// Where its files are.
    pub files: Files,
}

impl Entry {
    /// Its agent. It answers only while the container is up.
    pub fn agent(&self) -> Agent {
        Agent::at(&self.files.api())
    }
}

impl Engine {
    /// The containers under `root`, or the user's own.
    pub fn open(root: Option<&Path>) -> Result<Self, Error> {
        let layout = match root {
            Some(root) => Layout::under(root).map_err(cannot("find the root"))?,
            None => Layout::of_user(),
        };
        Ok(Engine {
            named_root: root.map(|_| layout.root().to_owned()),
            layout,
        })
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The virtual machines that others are restored from.
    pub fn templates(&self) -> Templates {
        Templates::of(&self.layout)
    }

    /// Those that the user has made, under names.
    pub fn own_templates(&self) -> OwnTemplates {
        OwnTemplates::of(&self.layout)
    }

    /// The snapshots that the user has taken.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::of(&self.layout)
    }

    /// The root, if it was named.
    pub(crate) fn named_root(&self) -> Option<&Path> {
        self.named_root.as_deref()
    }

    /// Where a container's files are.
    pub(crate) fn files(&self, id: &str) -> Files {
        Files {
            folder: self.layout.container(id),
            sandbox: self.layout.sandbox(id),
        }
    }
}

/// Makes a folder that nobody else may look into, and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(cannot(format!("make the folder {}", path.display())))
}

/// The names in a folder; none if it is not there.
pub(crate) fn list_folder(path: &Path) -> Result<Vec<String>, Error> {
    let failed = || format!("list {}", path.display());
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(cannot(failed())(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Ours are ASCII; what else lies there is not ours.
        if let Ok(name) = entry.map_err(cannot(failed()))?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}
