//! Making containers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};

use super::{Engine, Entry, make_folder};
use crate::error::{Error, cannot};
use crate::ext4::Disk;
use crate::layout::short;
use crate::lock;
use crate::names;
use crate::record::{Config, Files, State, Upper};
use crate::rootless;
use crate::volumes::prepare;

/// Names that are tried before a container is called by its ID.
const SUGGESTIONS: u32 = 8;

/// A container that has just been made, with its lock, so that nobody can start or remove it before
/// its maker has.
#[derive(Debug)]
pub struct New {
    /// The container.
    pub entry: Entry,
    pub(super) lock: File,
}

impl Engine {
    /// An ID for a container that is to be.
    pub fn new_id(&self) -> Result<String, Error> {
        loop {
            let id = names::new_id().map_err(cannot("make an ID"))?;
            // Sandboxes and people know containers by the short ID.
            if matches!(self.resolve(short(&id)), Err(Error::NoSuchContainer(_))) {
                return Ok(id);
            }
        }
    }

    /// Makes a container. With an empty name it gets one.
    pub fn create(&self, mut config: Config) -> Result<New, Error> {
        if !config.name.is_empty() && !names::is_valid(&config.name) {
            return Err(Error::Invalid(format!(
                "`{}` cannot be a container's name: use two or more letters, digits, `_`, `.` and \
                 `-`, the first a letter or a digit",
                config.name
            )));
        }
        if rootless::is_rootless(config.isolation) {
            rootless::check(&config, &self.layout.volumes())?;
        }
        prepare(&self.layout, &config.volumes)?;
        for folder in [
            self.layout.containers(),
            self.layout.names(),
            self.layout.unfinished(),
        ] {
            make_folder(&folder)?;
        }
        let _lock = lock::wait(&self.layout.lock()).map_err(cannot("lock the containers"))?;
        self.sweep_unfinished()?;
        let unfinished = Files {
            folder: self.layout.unfinished().join(&config.id),
            sandbox: self.layout.sandbox(&config.id),
        };
        let failed = || format!("make container {}", short(&config.id));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&unfinished.folder)
            .map_err(cannot(failed()))?;
        let lock = lock::wait(&unfinished.lock()).map_err(cannot(failed()))?;
        if let Upper::Disk { size_bytes } = config.upper {
            let disk = Disk {
                size_bytes,
                journal: false,
                folder: None,
                purpose: "--storage",
            };
            disk.make(&unfinished.upper())?;
        }
        let state = State::default();
        unfinished.write_state(&state).map_err(cannot(failed()))?;
        config.name = self.take_name(&config)?;
        unfinished.write_config(&config).map_err(cannot(failed()))?;
        let files = self.files(&config.id);
        fs::rename(&unfinished.folder, &files.folder).map_err(cannot(failed()))?;
        Ok(New {
            entry: Entry {
                config,
                state,
                files,
            },
            lock,
        })
    }

    /// Gives a container another name.
    pub fn rename(&self, name: &str, new: &str) -> Result<(), Error> {
        if !names::is_valid(new) {
            return Err(Error::Invalid(format!(
                "`{new}` cannot be a container's name: use two or more letters, digits, `_`, `.` and \
                 `-`, the first a letter or a digit"
            )));
        }
        // Before the lock: to find a container may be to remove it.
        let entry = self.find(name)?;
        let _lock = lock::wait(&self.layout.lock()).map_err(cannot("lock the containers"))?;
        let mut config = entry.config;
        let old = std::mem::replace(&mut config.name, new.to_owned());
        self.take_name(&config)?;
        let renamed = entry.files.write_config(&config);
        // The name that is not its own any more: the old one, or the new one if that failed.
        let other = if renamed.is_ok() { &old } else { new };
        let _ = fs::remove_file(self.layout.names().join(other));
        renamed.map_err(cannot(format!("rename container {old}")))
    }

    /// Makes the name of a container lead to it, or finds one for it.
    fn take_name(&self, config: &Config) -> Result<String, Error> {
        if !config.name.is_empty() {
            return match self.link_name(&config.name, &config.id)? {
                None => Ok(config.name.clone()),
                Some(other) => Err(Error::NameInUse {
                    name: config.name.clone(),
                    id: short(&other).to_owned(),
                }),
            };
        }
        for attempt in 0..SUGGESTIONS {
            let name = names::suggest(attempt).map_err(cannot("make a name"))?;
            if self.link_name(&name, &config.id)?.is_none() {
                return Ok(name);
            }
        }
        let name = short(&config.id);
        self.link_name(name, &config.id)?;
        Ok(name.to_owned())
    }

    /// Links a name to an ID. Returns whose it is if it is another's.
    fn link_name(&self, name: &str, id: &str) -> Result<Option<String>, Error> {
        let link = self.layout.names().join(name);
        let failed = || format!("take the name {name}");
        loop {
            match symlink(id, &link) {
                Ok(()) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(cannot(failed())(e)),
            }
            let owner = fs::read_link(&link).map_err(cannot(failed()))?;
            let owner = owner.to_string_lossy().into_owned();
            let is_its_name = self
                .files(&owner)
                .read_config()
                .is_ok_and(|config| config.name == name);
            if is_its_name {
                return Ok(Some(owner));
            }
            // Left behind by a command that was killed before the container was there, or after it
            // had got another name.
            fs::remove_file(&link).map_err(cannot(failed()))?;
        }
    }
}
