//! Putting in order what was killed.

use std::fs;
use std::io;

use jiff::Timestamp;

use super::{Engine, discard, list_folder};
use crate::cgroup;
use crate::error::{Error, cannot};
use crate::layout::short;
use crate::lock;
use crate::record::{Files, Isolation, Status};

/// Exit code of a container whose monitor was killed, as nobody saw its end.
const UNKNOWN: u8 = 255;

impl Engine {
    /// Finds what processes that were killed have left, and removes it. Cheap when there is nothing:
    /// the sandboxes that are up are looked at, not all containers.
    pub fn sweep(&self) -> Result<(), Error> {
        for name in list_folder(&self.layout.sandboxes())? {
            // Sandboxes have short IDs for names.
            let id = match self.resolve(&name) {
                Ok(id) => id,
                Err(Error::NoSuchContainer(_)) => {
                    self.sweep_orphan(&name)?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.repair(&id)?;
        }
        if !list_folder(&self.layout.unfinished())?.is_empty() {
            let lock = lock::wait(&self.layout.lock());
            let _lock = lock.map_err(cannot("lock the containers"))?;
            self.sweep_unfinished()?;
        }
        self.templates().sweep()
    }

    /// Removes what was being made or removed when its process was killed. The caller has the lock of
    /// all containers.
    pub(super) fn sweep_unfinished(&self) -> Result<(), Error> {
        for id in list_folder(&self.layout.unfinished())? {
            let path = self.layout.unfinished().join(&id);
            // First the names, as nobody would look for them once the folder is gone.
            self.remove_names_of(&id)?;
            fs::remove_dir_all(&path).map_err(cannot(format!("remove {}", path.display())))?;
        }
        Ok(())
    }

    /// Removes all names that lead to `id`.
    fn remove_names_of(&self, id: &str) -> Result<(), Error> {
        for name in list_folder(&self.layout.names())? {
            let link = self.layout.names().join(name);
            if fs::read_link(&link).is_ok_and(|owner| owner.as_os_str() == id) {
                let failed = || format!("remove {}", link.display());
                fs::remove_file(&link).map_err(cannot(failed()))?;
            }
        }
        Ok(())
    }

    /// Puts a container in order that has been started and whose monitor is gone. `false` if there was
    /// nothing to do.
    pub(super) fn repair(&self, id: &str) -> Result<bool, Error> {
        let files = self.files(id);
        let failed = || format!("repair container {}", short(id));
        let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        // Most often there is a monitor, and that is all there is to know.
        let Some(_lock) = lock::try_take(&files.lock()).map_err(cannot(failed()))? else {
            return Ok(false);
        };
        let (config, mut state) = match (files.read_config(), files.read_state()) {
            (Ok(config), Ok(state)) => (config, state),
            (Err(e), _) | (_, Err(e)) if gone(&e) => return Ok(true),
            (Err(e), _) | (_, Err(e)) => return Err(cannot(failed())(e)),
        };
        if !files.sandbox.exists() && state.status != Status::Running {
            return Ok(false);
        }
        end_sandbox(&files, config.isolation);
        if state.status == Status::Running {
            state.status = Status::Exited;
            state.finished = Some(Timestamp::now());
            state.exit_code = UNKNOWN;
            state.error = Some("the container's monitor was killed".to_owned());
            files.write_state(&state).map_err(cannot(failed()))?;
        }
        if config.auto_remove || config.is_stillborn(&state) {
            discard(&self.layout, &files, &config)?;
        }
        Ok(true)
    }

    /// Removes the sandbox of a container that is no more.
    fn sweep_orphan(&self, name: &str) -> Result<(), Error> {
        // Made just now, its container may be about to get its place.
        let lock = lock::wait(&self.layout.lock()).map_err(cannot("lock the containers"))?;
        if matches!(self.resolve(name), Err(Error::NoSuchContainer(_))) {
            let files = self.files(name);
            // A monitor that has removed its container is still ending the machine.
            let up = files.read_processes();
            if !up.is_ok_and(|processes| processes.monitor.open().is_some()) {
                // What it was is not known any more.
                end_sandbox(&files, Isolation::Container);
            }
        }
        drop(lock);
        Ok(())
    }
}

/// Ends what a monitor has left of its sandbox. One without a virtual machine may have left a control
/// group; what is mounted and what runs in it has gone with its processes.
pub(super) fn end_sandbox(files: &Files, isolation: Isolation) {
    if isolation == Isolation::Container {
        // First: what it holds still does not end.
        cgroup::remove(files);
    }
    if let Ok(processes) = files.read_processes() {
        processes.vmm.kill();
    }
    let _ = fs::remove_dir_all(&files.sandbox);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_unfinished_when_swept_then_its_name_goes_with_it_and_others_stay() {
        let root = tempfile::tempdir().expect("folder");
        let engine = Engine::open(Some(root.path())).expect("engine");
        let layout = engine.layout();
        let (gone, other) = ("a".repeat(64), "b".repeat(64));
        fs::create_dir_all(layout.unfinished().join(&gone)).expect("unfinished");
        fs::create_dir_all(layout.names()).expect("names");
        symlink(&gone, layout.names().join("gone")).expect("name");
        symlink(&other, layout.names().join("other")).expect("name");
        engine.sweep().expect("sweep");
        assert_eq!(list_folder(&layout.names()).expect("names"), ["other"]);
        assert!(list_folder(&layout.unfinished()).expect("list").is_empty());
    }
}
