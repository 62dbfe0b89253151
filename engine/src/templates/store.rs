//! Where templates are kept: a folder for each, by its key, and a lock beside it. Whoever restores from one shares
//! the lock with others of the kind; whoever makes or removes one has it alone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::key::is_key;
use crate::engine::make_folder;
use crate::error::{Error, cannot};
use crate::folder::{bytes_in, sync};
use crate::layout::Layout;
use crate::lock::{try_make, try_take};
use crate::names;

/// The most templates that are kept.
const MAX_TEMPLATES: usize = 8;
/// The most that they take on the disk, in bytes.
const MAX_BYTES: u64 = 4 << 30;
/// How long nobody tries to make a template again that could not be made.
const GIVE_UP_FOR: Duration = Duration::from_secs(300);

/// What the names of folders begin with in which a template is made or removed.
const UNFINISHED: &str = ".making.";
/// What the name of a template's lock ends with.
const LOCK: &str = ".lock";
/// What the name of a note ends with that says why a template could not be made.
const FAILURE: &str = ".failed";
/// The file of a template whose time says when it was last used.
const USED: &str = "used";
/// The folder of a template with its snapshot.
const SNAPSHOT: &str = "snapshot";

/// All templates under one root.
#[derive(Debug, Clone)]
pub struct Templates {
    folder: PathBuf,
}

/// A template, held: nobody removes it meanwhile.
#[derive(Debug)]
pub struct Template {
    key: String,
    folder: PathBuf,
    /// Which folder it is: another may get its name.
    inode: u64,
    lock: File,
}

/// Somebody else makes it.
#[derive(Debug)]
pub struct Busy;

/// A template as a list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What it is known by.
    pub key: String,
    /// What it takes on the disk.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
}

impl Template {
    /// The folder with the snapshot.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join(SNAPSHOT)
    }
}

impl Templates {
    /// Those of this layout.
    pub fn of(layout: &Layout) -> Self {
        Templates {
            folder: layout.templates(),
        }
    }

    /// The template with this key; if it is not there, `make` puts it into the folder it is given. Of those that
    /// come at a time one makes it, and the others are [`Busy`] until it is there. An error of `make` is the
    /// caller's own.
    pub fn obtain<E: From<Error>>(
        &self,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Result<Template, Busy>, E> {
        let failed = || cannot("lock a template");
        if !self.template(key).exists() {
            make_folder(&self.folder)?;
            let alone = FlockOperation::NonBlockingLockExclusive;
            match try_make(&self.lock(key), alone).map_err(failed())? {
                None => return Ok(Err(Busy)),
                // Another may have made it since.
                Some(_lock) if self.template(key).exists() => {}
                Some(_lock) => {
                    self.make(key, make)?;
                    // It must not go before it was used once.
                    self.keep_within((MAX_TEMPLATES, MAX_BYTES), key)?;
                }
            }
        }
        let shared = FlockOperation::NonBlockingLockShared;
        let Some(lock) = try_make(&self.lock(key), shared).map_err(failed())? else {
            return Ok(Err(Busy));
        };
        let folder = self.template(key);
        match fs::metadata(&folder) {
            // Removed since: the next time it is made.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Err(Busy)),
            Err(e) => Err(cannot(format!("look at {}", folder.display()))(e).into()),
            Ok(metadata) => {
                touch(&folder.join(USED)).map_err(cannot("use a template"))?;
                Ok(Ok(Template {
                    key: key.to_owned(),
                    inode: metadata.ino(),
                    folder,
                    lock,
                }))
            }
        }
    }

    /// Has a template made and puts it into its place by one step. The caller has its lock alone.
    fn make<E: From<Error>>(
        &self,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        self.sweep_unfinished_of(key)?;
        let folder = self.unfinished(key)?;
        let failed = || format!("make the template {}", folder.display());
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(cannot(failed()))?;
        let made = make(&folder).and_then(|()| {
            touch(&folder.join(USED))
                // What a machine that loses its power leaves must not be taken for whole.
                .and_then(|()| sync(&folder.join(SNAPSHOT)))
                .and_then(|()| fs::rename(&folder, self.template(key)))
                .and_then(|()| File::open(&self.folder)?.sync_all())
                .map_err(|e| cannot(failed())(e).into())
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&folder); // else swept later
        } else {
            let _ = fs::remove_file(self.failure(key)); // of before
        }
        made
    }

    /// Notes that this template cannot be made, so that not every start tries in vain.
    pub fn note_failure(&self, key: &str, why: &str) {
        // A note that cannot be made costs time only.
        let _ = fs::write(self.failure(key), why);
    }

    /// Why this template could not be made, not long ago.
    pub fn recent_failure(&self, key: &str) -> Option<String> {
        let path = self.failure(key);
        let noted = fs::metadata(&path).ok()?.modified().ok()?;
        let recent = noted.elapsed().is_ok_and(|age| age < GIVE_UP_FOR);
        recent.then(|| fs::read_to_string(&path).ok())?
    }

    /// Removes a template that is of no use, unless it was replaced already.
    pub fn remove_bad(&self, template: Template) -> Result<(), Error> {
        let Template {
            key, inode, lock, ..
        } = template;
        drop(lock);
        self.remove_if(&key, |folder| folder.ino() == inode)
            .map(drop)
    }

    /// All templates, the last used first.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut templates = Vec::new();
        for key in self.names()?.into_iter().filter(|name| is_key(name)) {
            let folder = self.template(&key);
            let used = fs::metadata(folder.join(USED)).and_then(|m| m.modified());
            templates.push(Listed {
                bytes: bytes_in(&folder),
                used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                key,
            });
        }
        templates.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.key.cmp(&b.key)));
        Ok(templates)
    }

    /// Removes all templates that nobody is restoring from or making at the moment. The removed ones.
    pub fn prune(&self) -> Result<Vec<Listed>, Error> {
        let mut removed = Vec::new();
        for template in self.list()? {
            if self.remove_if(&template.key, |_| true)? {
                removed.push(template);
            }
        }
        self.sweep()?;
        for name in self.names()? {
            if name.ends_with(FAILURE) {
                let _ = fs::remove_file(self.folder.join(&name));
            }
            // Of a template that never came to be.
            if let Some(key) = name.strip_suffix(LOCK)
                && let Ok(Some(_lock)) = try_take(&self.lock(key))
                && !self.template(key).exists()
            {
                let _ = fs::remove_file(self.lock(key));
            }
        }
        Ok(removed)
    }

    /// Removes what killed processes have left. Cheap when there is nothing.
    pub fn sweep(&self) -> Result<(), Error> {
        for name in self.names()? {
            let Some(key) = unfinished_key(&name) else {
                continue;
            };
            // Else somebody is at it.
            if let Some(_lock) = self.alone(key).map_err(cannot("lock a template"))? {
                self.sweep_unfinished_of(key)?;
                if !self.template(key).exists() {
                    let _ = fs::remove_file(self.lock(key));
                }
            }
        }
        Ok(())
    }

    /// Removes those that were not used for longest, until so many with so many bytes are left; never `keep`.
    fn keep_within(&self, (most, most_bytes): (usize, u64), keep: &str) -> Result<(), Error> {
        let (mut count, mut bytes) = (0, 0u64);
        let (kept, others): (Vec<_>, Vec<_>) =
            self.list()?.into_iter().partition(|t| t.key == keep);
        for template in kept.into_iter().chain(others) {
            count += 1;
            bytes = bytes.saturating_add(template.bytes);
            if template.key != keep && (count > most || bytes > most_bytes) {
                self.remove_if(&template.key, |_| true)?;
            }
        }
        Ok(())
    }

    /// Removes a template that nobody has at the moment. `false` if somebody has, or it is not there.
    fn remove_if(&self, key: &str, goes: impl Fn(&fs::Metadata) -> bool) -> Result<bool, Error> {
        let folder = self.template(key);
        let failed = || format!("remove the template {}", folder.display());
        let Some(_lock) = self.alone(key).map_err(cannot(failed()))? else {
            return Ok(false);
        };
        match fs::metadata(&folder) {
            Ok(metadata) if goes(&metadata) => {}
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(cannot(failed())(e)),
        }
        // By one step it is gone; what follows can be finished by anybody.
        let grave = self.unfinished(key)?;
        fs::rename(&folder, &grave).map_err(cannot(failed()))?;
        fs::remove_dir_all(&grave).map_err(cannot(failed()))?;
        // Whoever waits for it sees that it is not the lock any more.
        let _ = fs::remove_file(self.lock(key));
        Ok(true)
    }

    /// The lock of a template, for oneself. `None` if somebody has it, or it is another user's, where several share the
    /// folder.
    fn alone(&self, key: &str) -> io::Result<Option<File>> {
        match try_make(&self.lock(key), FlockOperation::NonBlockingLockExclusive) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            lock => lock,
        }
    }

    /// Removes what was being made or removed of this template. The caller has its lock alone.
    fn sweep_unfinished_of(&self, key: &str) -> Result<(), Error> {
        for name in self.names()? {
            if unfinished_key(&name) == Some(key) {
                let path = self.folder.join(name);
                fs::remove_dir_all(&path).map_err(cannot(format!("remove {}", path.display())))?;
            }
        }
        Ok(())
    }

    /// A folder for one that is made or removed. Nobody had its name before: the VMM of a maker that was killed may
    /// still write to the last one.
    fn unfinished(&self, key: &str) -> Result<PathBuf, Error> {
        let mut number = [0; 4];
        names::random(&mut number).map_err(cannot("make a template"))?;
        let number = u32::from_le_bytes(number);
        Ok(self.folder.join(format!("{UNFINISHED}{key}.{number:08x}")))
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        crate::engine::list_folder(&self.folder)
    }

    fn template(&self, key: &str) -> PathBuf {
        self.folder.join(key)
    }

    fn lock(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}{LOCK}"))
    }

    fn failure(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}{FAILURE}"))
    }
}

/// Where the maker of a template has the snapshot written.
pub fn snapshot_in(folder: &Path) -> PathBuf {
    folder.join(SNAPSHOT)
}

/// The key of the template that is made or removed under this name.
fn unfinished_key(name: &str) -> Option<&str> {
    let (key, _) = name.strip_prefix(UNFINISHED)?.split_once('.')?;
    is_key(key).then_some(key)
}

/// Makes a file, or makes it new.
fn touch(path: &Path) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_modified(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::lock;

    struct Room {
        _dir: tempfile::TempDir,
        templates: Templates,
    }

    fn room() -> Room {
        let dir = tempfile::tempdir().expect("folder");
        let templates = Templates {
            folder: dir.path().join("templates"),
        };
        Room {
            _dir: dir,
            templates,
        }
    }

    fn key(n: u8) -> String {
        format!("{n:032x}")
    }

    /// Does what a VMM does when it writes a snapshot.
    fn write(folder: &Path) -> Result<(), Error> {
        let snapshot = snapshot_in(folder);
        fs::create_dir(&snapshot).map_err(cannot("test"))?;
        fs::write(snapshot.join("state.json"), [0; 8192]).map_err(cannot("test"))
    }

    fn never(_: &Path) -> Result<(), Error> {
        panic!("it is there");
    }

    fn keys(templates: &Templates) -> Vec<String> {
        let list = templates.list().expect("list");
        list.into_iter().map(|template| template.key).collect()
    }

    #[test]
    fn template_when_obtained_again_is_the_same_and_made_once() {
        let Room { _dir, templates } = room();
        let first = templates.obtain(&key(1), write).expect("obtain");
        let first = first.expect("not busy");
        assert!(first.snapshot().join("state.json").exists());
        // Others may use it at the same time.
        let second = templates.obtain(&key(1), never).expect("obtain");
        assert_eq!(second.expect("not busy").inode, first.inode);
        let listed = templates.list().expect("list");
        assert_eq!(listed.len(), 1);
        assert!(listed[0].bytes >= 8192, "{listed:?}");
    }

    #[test]
    fn template_when_many_want_it_is_made_by_one_of_them() {
        let Room { _dir, templates } = room();
        let made = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let make = |folder: &Path| {
                            made.fetch_add(1, Ordering::SeqCst);
                            thread::sleep(Duration::from_millis(50));
                            write(folder)
                        };
                        match templates.obtain(&key(1), make).expect("obtain") {
                            Ok(template) => {
                                assert!(template.snapshot().exists());
                                return;
                            }
                            Err(Busy) => thread::sleep(Duration::from_millis(1)),
                        }
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
        assert_eq!(keys(&templates), [key(1)]);
    }

    #[test]
    fn maker_when_it_fails_leaves_nothing_and_the_next_one_makes_it() {
        let Room { _dir, templates } = room();
        let fail = |_: &Path| Err(Error::Invalid("no".to_owned()));
        templates.obtain(&key(1), fail).expect_err("fails");
        assert_eq!(
            templates.names().expect("list"),
            [format!("{}.lock", key(1))]
        );
        templates.note_failure(&key(1), "no");
        assert_eq!(templates.recent_failure(&key(1)).as_deref(), Some("no"));
        assert_eq!(templates.recent_failure(&key(2)), None);
        let made = templates.obtain(&key(1), write).expect("obtain");
        drop(made.expect("not busy"));
        assert_eq!(templates.recent_failure(&key(1)), None);
    }

    #[test]
    fn maker_when_it_was_killed_is_swept_but_not_while_it_lives() {
        let Room { _dir, templates } = room();
        fs::create_dir_all(templates.unfinished(&key(1)).expect("name")).expect("folder");
        let lock = templates.lock(&key(1));
        let alive = lock::wait(&lock).expect("lock");
        templates.sweep().expect("sweep");
        let busy = templates.obtain(&key(1), never).expect("obtain");
        assert!(busy.is_err());
        assert_eq!(templates.names().expect("list").len(), 2);
        drop(alive);
        templates.sweep().expect("sweep");
        assert!(templates.names().expect("list").is_empty());
        // The next maker does so, too.
        fs::create_dir_all(templates.unfinished(&key(1)).expect("name")).expect("folder");
        let made = templates.obtain(&key(1), write).expect("obtain");
        made.expect("not busy");
        assert_eq!(templates.names().expect("list").len(), 2);
    }

    #[test]
    fn templates_when_there_are_too_many_then_the_longest_unused_go() {
        let Room { _dir, templates } = room();
        for n in 0..3 {
            drop(templates.obtain(&key(n), write).expect("obtain"));
            let used = File::options()
                .write(true)
                .open(templates.template(&key(n)).join(USED))
                .expect("open");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(n.into());
            used.set_modified(time).expect("time");
        }
        assert_eq!(keys(&templates), [key(2), key(1), key(0)]);
        let bytes = templates.list().expect("list")[0].bytes;
        // One that is used now is as good as new, and one that is held stays.
        drop(templates.obtain(&key(0), never).expect("obtain"));
        assert_eq!(keys(&templates), [key(0), key(2), key(1)]);
        let held = templates.obtain(&key(1), never).expect("obtain");
        let keep = key(2);
        templates.keep_within((1, u64::MAX), &keep).expect("keep");
        assert_eq!(keys(&templates), [key(1), key(2)]);
        drop(held);
        templates
            .keep_within((9, 2 * bytes - 1), &keep)
            .expect("keep");
        assert_eq!(keys(&templates), [key(2)]);
    }

    #[test]
    fn templates_when_pruned_then_all_go_but_those_in_use() {
        let Room { _dir, templates } = room();
        templates.prune().expect("nothing there");
        drop(templates.obtain(&key(1), write).expect("obtain"));
        let held = templates.obtain(&key(2), write).expect("obtain");
        let removed = templates.prune().expect("prune");
        assert_eq!(removed.len(), 1);
        assert_eq!(keys(&templates), [key(2)]);
        drop(held);
        templates.note_failure(&key(3), "no");
        drop(lock::wait(&templates.lock(&key(3))).expect("lock"));
        templates.prune().expect("prune");
        assert!(templates.names().expect("list").is_empty());
    }

    #[test]
    fn bad_template_when_removed_is_gone_unless_it_was_replaced() {
        let Room { _dir, templates } = room();
        let get = |make: fn(&Path) -> Result<(), Error>| {
            let template = templates.obtain(&key(1), make).expect("obtain");
            template.expect("not busy")
        };
        let (first, second) = (get(write), get(never));
        // Others still hold it: the last of them removes it.
        templates.remove_bad(first).expect("remove");
        assert_eq!(keys(&templates).len(), 1);
        let old = second.inode;
        templates.remove_bad(second).expect("remove");
        assert!(keys(&templates).is_empty());
        let mut other = get(write);
        other.inode = old.wrapping_add(1 << 40);
        templates.remove_bad(other).expect("remove");
        assert_eq!(keys(&templates).len(), 1);
    }
}
