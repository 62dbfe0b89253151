//! Removing containers.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use super::repair::end_sandbox;
use super::{Engine, Entry, make_folder};
use crate::error::{Error, cannot};
use crate::layout::{Layout, short};
use crate::lock;
use crate::record::{Config, Files};

/// How long to wait before looking again whether a monitor has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Engine {
    /// Removes a container; one that is up only by `force`, and then without asking it.
    pub fn remove(&self, entry: &Entry, force: bool) -> Result<(), Error> {
        let path = entry.files.lock();
        let failed = || format!("lock container {}", short(&entry.config.id));
        let _lock = loop {
            if let Some(lock) = lock::try_take(&path).map_err(cannot(failed()))? {
                break lock;
            }
            // Its monitor may well remove the container itself.
            if !entry.files.folder.exists() {
                return Ok(());
            }
            if !self.is_ending(entry)? {
                if !force {
                    return Err(Error::WrongState {
                        id: short(&entry.config.id).to_owned(),
                        is: entry.state.status.name(),
                        needs: "stop it first, or remove it with --force",
                    });
                }
                // While it is on its way up, its machine is not known yet, or may just have been
                // missed: it is looked for until its monitor has ended.
                self.kill_machine(entry);
            }
            thread::sleep(LOOK_AGAIN);
        };
        // A monitor that has just been killed has left what nobody has put in order yet.
        if entry.files.sandbox.exists() {
            end_sandbox(&entry.files, entry.config.isolation);
        }
        discard(&self.layout, &entry.files, &entry.config)
    }

    /// Whether the container's program has ended, and its sandbox will.
    fn is_ending(&self, entry: &Entry) -> Result<bool, Error> {
        match entry.files.read_state() {
            Ok(state) => Ok(state.finished.is_some()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(cannot("read the container's state")(e)),
        }
    }
}

/// Removes a container and its name. The caller has its lock.
pub(crate) fn discard(layout: &Layout, files: &Files, config: &Config) -> Result<(), Error> {
    let failed = || format!("remove container {}", short(&config.id));
    let grave = layout.unfinished().join(&config.id);
    make_folder(&layout.unfinished())?;
    let lock = lock::wait(&layout.lock()).map_err(cannot("lock the containers"))?;
    // By one step it is gone; what follows can be finished by anybody.
    match fs::rename(&files.folder, &grave) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(cannot(failed()))?,
    }
    // The name it has now, which need not be the one it was started with.
    let name = Files {
        folder: grave.clone(),
        sandbox: files.sandbox.clone(),
    }
    .read_config()
    .map_or_else(|_| config.name.clone(), |config| config.name);
    let link = layout.names().join(name);
    if fs::read_link(&link).is_ok_and(|id| id.as_os_str() == config.id.as_str()) {
        fs::remove_file(&link).map_err(cannot(failed()))?;
    }
    fs::remove_dir_all(&grave).map_err(cannot(failed()))?;
    drop(lock);
    Ok(())
}
