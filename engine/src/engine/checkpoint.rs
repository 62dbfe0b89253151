//! Checkpoints of containers: moments that they can go on from.

use jiff::Timestamp;

use super::control::{running, wrong_state};
use super::{Engine, Entry, New};
use crate::error::Error;
use crate::layout::short;
use crate::monitor::{Origin, Request, ask};
use crate::record::Isolation;
use crate::snapshots::Snapshots;

impl Engine {
    /// Keeps the moment that a container is in under a name that is free. Unless it is to run on, it has ended
    /// with that when this returns.
    pub fn checkpoint(&self, entry: &Entry, name: &str, leave_running: bool) -> Result<(), Error> {
        check(entry, leave_running)?;
        // Before it stands still for nothing.
        self.checkpoints(entry).check_free(name)?;
        let request = Request::Checkpoint {
            name: name.to_owned(),
            leave_running,
        };
        ask(&entry.files, &request)
    }

    /// A container's checkpoints.
    pub fn checkpoints(&self, entry: &Entry) -> Snapshots {
        Snapshots::of_container(&entry.files, &entry.config.name)
    }

    /// What it takes to start a container, or a copy of it, from its checkpoint of this name.
    pub fn checkpoint_of(&self, entry: &Entry, name: &str) -> Result<Origin, Error> {
        // Whether it is there is better known before anything is made or started.
        self.checkpoints(entry).open(name)?;
        Ok(Origin {
            container: entry.config.id.clone(),
            name: name.to_owned(),
        })
    }

    /// Makes another container that is what `entry` is, to be started from one of its checkpoints.
    pub fn copy(&self, entry: &Entry, name: &str) -> Result<New, Error> {
        let mut config = entry.config.clone();
        config.guest_id = Some(entry.config.guest_id().to_owned());
        config.id = self.new_id()?;
        config.name = name.to_owned();
        config.created = Timestamp::now();
        self.create(config)
    }
}

/// Fails if there can be no checkpoint of it.
fn check(entry: &Entry, leave_running: bool) -> Result<(), Error> {
    let id = short(&entry.config.id);
    let refused = |why: &str| Err(Error::Invalid(format!("container {id} {why}")));
    if entry.config.isolation == Isolation::Container {
        return refused(
            "runs on this machine's kernel, and only containers in a virtual machine have checkpoints: run it \
             with --isolation vm",
        );
    }
    if !entry.config.volumes.is_empty() {
        return refused(
            "has volumes or folders of this machine, which change while a checkpoint lies: run it without \
             --volume, and copy files in with `bulkhead cp`",
        );
    }
    running(entry)?;
    if entry.config.auto_remove && !leave_running {
        return refused(
            "is removed when it ends (--rm), and its checkpoints with it: use --leave-running",
        );
    }
    if !entry.files.requests().exists() {
        return Err(wrong_state(
            entry,
            "its monitor is of an older Bulkhead, stop it and start it again first",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::record::{Files, State, Status};

    fn entry(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) -> Entry {
        let mut config = json!({
            "id": "a".repeat(64),
            "name": "box",
            "created": "2026-01-01T00:00:00Z",
            "image": {"name": "busybox", "id": "sha256:0", "manifest": "sha256:0"},
            "disk": "/disk",
            "upper": "memory",
            "machine": {"cpus": 1, "memory_mib": 512},
            "stdin": false,
            "auto_remove": false,
            "stop_signal": 15,
            "stop_timeout_s": 10,
            "spec": {"ociVersion": "1.2.0"},
        });
        change(&mut config);
        Entry {
            config: serde_json::from_value(config).expect("config"),
            state: State {
                status: Status::Running,
                ..State::default()
            },
            files: Files {
                folder: folder.to_owned(),
                sandbox: folder.to_owned(),
            },
        }
    }

    #[test]
    fn container_when_it_cannot_be_saved_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("folder");
        let refused = |entry: &Entry, leave_running, said: &str| {
            let refused = check(entry, leave_running).expect_err(said).to_string();
            assert!(refused.contains(said), "{refused}");
        };
        let host = entry(dir.path(), |config| {
            config["isolation"] = json!("container");
        });
        refused(&host, true, "--isolation vm");
        let volumes = entry(dir.path(), |config| {
            config["volumes"] = json!([{
                "source": {"volume": {"name": "v", "fill": true}},
                "destination": "/v", "read_only": false,
            }]);
        });
        refused(&volumes, true, "has volumes");
        let mut stopped = entry(dir.path(), |_| {});
        stopped.state.status = Status::Exited;
        refused(&stopped, true, "start it first");
        let removed = entry(dir.path(), |config| config["auto_remove"] = json!(true));
        refused(&removed, false, "--leave-running");
        let one = entry(dir.path(), |_| {});
        refused(&one, true, "older Bulkhead");
        std::fs::write(one.files.requests(), "").expect("socket");
        check(&one, false).expect("it can");
    }

    #[test]
    fn copy_is_another_container_with_the_first_ones_name_in_the_guest() {
        let root = tempfile::tempdir().expect("folder");
        let engine = Engine::open(Some(root.path())).expect("engine");
        let first = entry(root.path(), |_| {});
        let copy = engine.copy(&first, "second").expect("copy").entry;
        assert_ne!(copy.config.id, first.config.id);
        assert_eq!(copy.config.name, "second");
        let third = engine.copy(&copy, "third").expect("copy").entry;
        for copy in [copy, third] {
            assert_eq!(copy.config.guest_id(), first.config.id);
            let read = copy.files.read_config().expect("read");
            assert_eq!(read, copy.config);
        }
        std::fs::create_dir_all(first.files.checkpoints().join("one")).expect("checkpoint");
        std::fs::write(first.files.requests(), "").expect("socket");
        let taken = engine.checkpoint(&first, "one", true).expect_err("taken");
        let taken = taken.to_string();
        assert!(
            taken.contains("there is a checkpoint one already"),
            "{taken}"
        );
        let missing = engine.checkpoint_of(&first, "none").expect_err("none");
        let missing = missing.to_string();
        assert!(
            missing.contains("there is no checkpoint none (`bulkhead checkpoint ls box`"),
            "{missing}"
        );
    }

    #[test]
    fn copy_when_it_has_never_gone_on_goes_with_its_sandbox() {
        let root = tempfile::tempdir().expect("folder");
        let engine = Engine::open(Some(root.path())).expect("engine");
        let first = entry(root.path(), |_| {});
        for (starts, is_there) in [(0, false), (1, true)] {
            let copy = engine.copy(&first, "second").expect("copy").entry;
            let state = State {
                starts,
                ..State::default()
            };
            copy.files.write_state(&state).expect("write");
            // What a monitor that was killed leaves.
            std::fs::create_dir_all(&copy.files.sandbox).expect("sandbox");
            engine.sweep().expect("sweep");
            assert_eq!(engine.find("second").is_ok(), is_there, "{starts} starts");
        }
    }
}
