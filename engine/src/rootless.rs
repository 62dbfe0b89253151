//! Containers on the host's kernel of who is not root.
//!
//! Their monitor enters a user namespace before anything else, in which its user is root ([`bulkhead_container::rootless`]).
//! No disk can be mounted there, so that an image is a folder of its files. Those belong to the users of the namespace:
//! only in there can they be made, and removed again. That is done by this program, started again with a hidden command
//! ([`COMMAND`]), which says on its standard output, in one line, what came of it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_container::rootless::{Ids, enter};
use bulkhead_container::self_exe;
use bulkhead_image::store::Owners;
use bulkhead_image::{Digest, Image, Progress, Store};
use rustix::fs::{Access, access, stat};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, Entry};
use crate::error::{Error, cannot};
use crate::layout::short;
use crate::lock;
use crate::record::{Config, Isolation, Upper};
use crate::volumes::{Named, Source};

/// The name of the hidden command.
pub const COMMAND: &str = "in-user-namespace";
/// What it is asked for: a folder with the files of the image with the manifest that follows.
const EXTRACT: &str = "extract";
/// What it is asked for: to remove folders that nothing needs any more.
const REMOVE: &str = "remove";

/// What a process in a user namespace has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// An image's files are in this folder.
    Tree(PathBuf),
    /// So many bytes were removed.
    Removed(u64),
    /// It could not be done: one sentence.
    Failed(String),
}

/// Whether a container of this process's user is one of who is not root. To be asked before a user namespace is entered,
/// where everybody is.
pub fn is_rootless(isolation: Isolation) -> bool {
    isolation == Isolation::Container && !geteuid().is_root()
}

/// Moves the monitor of such a container to where it can make it.
pub fn enter_namespace() -> Result<(), Error> {
    Ok(enter(&Ids::of_this_user())?)
}

/// Refuses what a container of who is not root cannot have.
pub fn check(config: &Config, volumes: &Path) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::Invalid(text));
    if let Upper::Disk { .. } = config.upper {
        return refuse(
            "--storage is a disk, which only root can mount for --isolation container: leave it out, so that changes are \
             kept in memory, write to a volume, or use a microVM"
                .to_owned(),
        );
    }
    for volume in &config.volumes {
        if let Source::Volume { name, .. } = &volume.source
            && Named::is_disk(volumes, name)
        {
            return refuse(format!(
                "the volume {name} is a disk, which only root can mount for --isolation container: use another volume, or a \
                 microVM"
            ));
        }
    }
    if is_other_user(config) && Ids::of_this_user().is_single() {
        return refuse(
            "the program is to be another user than root, and there is none: have ranges for yourself in /etc/subuid and \
             /etc/subgid (`usermod --add-subuids`), and newuidmap and newgidmap installed (package uidmap), or give --user 0"
                .to_owned(),
        );
    }
    Ok(())
}

/// Whether the program's user is somebody else than root, as far as can be told without the image.
fn is_other_user(config: &Config) -> bool {
    let process = config.spec.process.as_ref();
    process.is_some_and(|process| {
        let user = &process.user;
        let name = user.username.as_deref().unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default();
        user.uid != 0 || !matches!(name, "" | "0" | "root")
    })
}

/// Whether a program in a container of this user could write to ours, when nobody executes it any more: it is the user's
/// own then, or everybody's, as root in there is the user.
pub fn is_exposed() -> Result<bool, Error> {
    const SELF: &str = "/proc/self/exe";
    let found = stat(SELF).map_err(cannot(format!("look at {SELF}")))?;
    let is_ours = found.st_uid == geteuid().as_raw();
    let is_open = is_ours || access(SELF, Access::WRITE_OK).is_ok();
    Ok(is_open && self_exe::is_writable()?)
}

impl Engine {
    /// The folder with an image's files that a container needs, if it is one that cannot have the disk. The image is held
    /// by a lease.
    pub fn tree(
        &self,
        store: &Store,
        image: &Image,
        isolation: Isolation,
    ) -> Result<Option<PathBuf>, Error> {
        if !is_rootless(isolation) {
            return Ok(None);
        }
        let ids = Ids::of_this_user();
        let owners = Owners::mapped(&lines(&ids.users), &lines(&ids.groups));
        if let Some(tree) = store.find_tree(image, &owners) {
            return Ok(Some(tree));
        }
        let manifest = image.manifest.digest.to_string();
        match self.ask_in_namespace(&[EXTRACT, &manifest])? {
            Answer::Tree(tree) => Ok(Some(tree)),
            other => Err(unexpected(&other)),
        }
    }

    /// A container that needs another folder with its image's files than when it was made, because its user has other
    /// ranges. The caller has the container's lock.
    pub(crate) fn renew_tree(&self, entry: &Entry) -> Result<Option<Entry>, Error> {
        let isolation = entry.config.isolation;
        if entry.config.tree.is_none() || !is_rootless(isolation) {
            return Ok(None);
        }
        let store = self.store()?;
        let manifest = digest(&entry.config.image.manifest)?;
        let tree = self.tree(&store, &store.image_of(&manifest)?, isolation)?;
        if tree == entry.config.tree {
            return Ok(None);
        }
        let failed = || format!("change container {}", short(&entry.config.id));
        let mut renewed = entry.clone();
        // It may be given another name at the same time.
        let _lock = lock::wait(&self.layout().lock()).map_err(cannot("lock the containers"))?;
        renewed.config = renewed.files.read_config().map_err(cannot(failed()))?;
        renewed.config.tree = tree;
        let written = renewed.files.write_config(&renewed.config);
        written.map_err(cannot(failed()))?;
        Ok(Some(renewed))
    }

    /// Removes what the store could not remove because it belongs to users of a user namespace. How many bytes that were.
    pub fn remove_dead_trees(&self, store: &Store) -> Result<u64, Error> {
        if geteuid().is_root() || !store.has_dead_trees()? {
            return Ok(0);
        }
        match self.ask_in_namespace(&[REMOVE])? {
            Answer::Removed(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Does in a user namespace what the hidden command is told to. This process must have one thread.
    pub fn work_in_namespace(&self, words: &[String], progress: &dyn Progress) -> Answer {
        let done = || {
            enter_namespace()?;
            let store = self.store()?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words[..] {
                [EXTRACT, manifest] => {
                    let image = store.image_of(&digest(manifest)?)?;
                    let tree = store.tree(&image, progress)?;
                    Ok(Answer::Tree(tree))
                }
                [REMOVE] => Ok(Answer::Removed(store.remove_dead_trees()?)),
                _ => Err(Error::Invalid("there is nothing to do".to_owned())),
            }
        };
        done().unwrap_or_else(|e: Error| Answer::Failed(e.to_string()))
    }

    fn ask_in_namespace(&self, words: &[&str]) -> Result<Answer, Error> {
        let failed = || "work in a user namespace";
        let mut command = Command::new("/proc/self/exe");
        if let Some(root) = self.named_root() {
            command.arg("--root").arg(root);
        }
        // What it tells of its progress, it tells whoever reads ours.
        let output = command
            .arg(COMMAND)
            .args(words)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(cannot(failed()))?;
        let answer = serde_json::from_slice(&output.stdout).map_err(|_| {
            let why = format!("the process in it ended with {}", output.status);
            cannot(failed())(io::Error::other(why))
        })?;
        match answer {
            Answer::Failed(why) => Err(Error::Invalid(why)),
            answer => Ok(answer),
        }
    }
}

fn digest(text: &str) -> Result<Digest, Error> {
    let failed = |_| Error::Invalid(format!("{text} is no digest"));
    text.parse().map_err(failed)
}

fn unexpected(answer: &Answer) -> Error {
    Error::Invalid(format!(
        "the process in the user namespace says {answer:?} where it should not"
    ))
}

/// Mappings as the kernel shows them.
fn lines(mappings: &[bulkhead_container::spec::IdMapping]) -> String {
    let line = |m: &bulkhead_container::spec::IdMapping| {
        format!("{} {} {}\n", m.container_id, m.host_id, m.size)
    };
    mappings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_when_written_are_read_as_they_were() {
        for answer in [
            Answer::Tree("/a/b".into()),
            Answer::Removed(7),
            Answer::Failed("it is so".into()),
        ] {
            let text = serde_json::to_string(&answer).expect("JSON");
            let again: Answer = serde_json::from_str(&text).expect("the same");
            assert_eq!(again, answer);
        }
    }

    /// A container with this program's user, these changes and these volumes.
    fn config(user: &str, upper: &str, volumes: &str) -> Config {
        let process = format!(r#"{{"args": ["true"], "cwd": "/", "user": {user}}}"#);
        let text = format!(
            r#"{{
                "id": "0", "name": "box", "created": "2026-01-01T00:00:00Z", "disk": "/disk",
                "image": {{"name": "a", "id": "b", "manifest": "c"}},
                "isolation": "container", "upper": {upper}, "volumes": {volumes},
                "machine": {{"cpus": 1, "memory_mib": 1}},
                "stdin": false, "auto_remove": false, "stop_signal": 15, "stop_timeout_s": 10,
                "spec": {{"ociVersion": "1.2.0", "process": {process}}}
            }}"#
        );
        serde_json::from_str(&text).expect("a configuration")
    }

    const ROOT: &str = r#"{"uid": 0, "gid": 0}"#;
    const MEMORY: &str = r#""memory""#;

    #[test]
    fn container_when_it_wants_a_disk_then_refused_and_folders_are_not() {
        let volumes = tempfile::tempdir().expect("folder");
        let mount = |name: &str| {
            format!(r#"[{{"source": {{"volume": {{"name": "{name}"}}}}, "destination": "/v"}}]"#)
        };
        for name in ["folder", "disk"] {
            std::fs::create_dir(volumes.path().join(name)).expect("folder");
        }
        std::fs::write(volumes.path().join("disk/disk.ext4"), "").expect("disk");
        let check = |upper, volume: &str| {
            check(&config(ROOT, upper, &mount(volume)), volumes.path()).map_err(|e| e.to_string())
        };
        assert_eq!(check(MEMORY, "folder"), Ok(()));
        assert_eq!(check(MEMORY, "new"), Ok(()));
        let refused = check(MEMORY, "disk").expect_err("a disk");
        assert!(
            refused.starts_with("the volume disk is a disk"),
            "{refused}"
        );
        let upper = r#"{"disk": {"size_bytes": 1}}"#;
        let refused = check(upper, "folder").expect_err("a disk");
        assert!(refused.starts_with("--storage is a disk"), "{refused}");
    }

    #[test]
    fn user_when_not_root_by_name_or_number_then_another() {
        let other = |user: &str| is_other_user(&config(user, MEMORY, "[]"));
        for name in ["root", "0", "0:0", "root:adm", ""] {
            let user = format!(r#"{{"uid": 0, "gid": 0, "username": "{name}"}}"#);
            assert!(!other(&user), "{name}");
        }
        for name in ["user", "1000", "1000:0", "00"] {
            let user = format!(r#"{{"uid": 0, "gid": 0, "username": "{name}"}}"#);
            assert!(other(&user), "{name}");
        }
        assert!(!other(ROOT));
        assert!(other(r#"{"uid": 7, "gid": 0}"#));
    }
}
