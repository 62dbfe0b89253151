//! Where snapshots are kept, containers' checkpoints and templates of the user's own: a folder for each, by its name, and a lock
//! beside it. Whoever restores from one shares the lock until the VMM has it open; whoever makes or removes one has it alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_vmm::snapshot::document::State;
use rustix::fs::FlockOperation;

use super::copy::copy_disk;
use super::record::{Disk, Record};
use super::take::{self, Request};
use crate::engine::{list_folder, make_folder};
use crate::error::{Error, cannot};
use crate::folder::{bytes_in, sync};
use crate::layout::Layout;
use crate::lock::try_make;
use crate::names;
use crate::record::Files;

/// What the names of folders begin with in which a snapshot is made or removed.
const UNFINISHED: &str = ".making.";

/// Snapshots that are kept in one folder.
#[derive(Debug, Clone)]
pub struct Snapshots {
    folder: PathBuf,
    words: Words,
}

/// What the user calls them.
#[derive(Debug, Clone)]
struct Words {
    noun: &'static str,
    /// The command that lists them.
    list: String,
}

/// A snapshot, held: nobody removes it meanwhile.
#[derive(Debug)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// What we know of it.
    pub record: Record,
    folder: PathBuf,
    _lock: File,
}

/// A snapshot as a list has it.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What we know of it, or why we know nothing.
    pub record: Result<Record, Error>,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
}

impl Snapshot {
    /// The folder that the VMM reads.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the VMM has written of the machine. Fails if that is damaged or of another version, or has other disks
    /// than our record, whose numbers say which are replaced by copies: the others would be written to.
    pub fn state(&self) -> Result<State, Error> {
        let state = State::load(&self.folder)?;
        let all = state.config.disks.iter().chain(&state.added.disks);
        match self.record.is_of(all) {
            true => Ok(state),
            false => Err(Error::Invalid(format!(
                "{} is damaged: its files are not of the same disks",
                self.folder.display()
            ))),
        }
    }

    /// Where the disks of a machine that goes on from it are: those that it may write to are copied to where
    /// `place` says.
    pub fn disks(
        &self,
        mut place: impl FnMut(&Disk) -> PathBuf,
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<BTreeMap<usize, PathBuf>, Error> {
        let mut disks = BTreeMap::new();
        for disk in &self.record.disks {
            let path = match disk.read_only {
                true => {
                    disk.check()?;
                    disk.path.clone()
                }
                false => {
                    let path = place(disk);
                    copy_disk(&self.folder.join(disk.copy_name()), &path, is_interrupted)?;
                    path
                }
            };
            disks.insert(disk.index, path);
        }
        Ok(disks)
    }
}

impl Snapshots {
    /// Those of microVMs, under this layout.
    pub fn of(layout: &Layout) -> Self {
        Snapshots {
            folder: layout.snapshots(),
            words: Words {
                noun: "snapshot",
                list: "bulkhead snapshot ls".to_owned(),
            },
        }
    }

    /// The checkpoints of a container.
    pub fn of_container(files: &Files, name: &str) -> Self {
        Snapshots {
            folder: files.checkpoints(),
            words: Words {
                noun: "checkpoint",
                list: format!("bulkhead checkpoint ls {name}"),
            },
        }
    }

    /// Templates of virtual machines that the user has made, under this layout.
    pub(crate) fn of_templates(layout: &Layout) -> Self {
        Snapshots {
            folder: layout.own_templates(),
            words: Words {
                noun: "template",
                list: "bulkhead template ls".to_owned(),
            },
        }
    }

    /// Fails if none can be kept under this name.
    pub fn check_free(&self, name: &str) -> Result<(), Error> {
        self.check_name(name)?;
        match fs::symlink_metadata(self.folder.join(name)) {
            Ok(_) => Err(Error::Invalid(format!(
                "there is a {} {name} already: remove it first, or choose another name",
                self.words.noun
            ))),
            Err(_) => Ok(()),
        }
    }

    /// Takes a snapshot of a running machine and keeps it under a name that is free.
    pub fn create(&self, name: &str, request: &Request<'_>) -> Result<(), Error> {
        self.reserve(name)?.fill(request, &|_| Ok(()))
    }

    /// Takes a name that is free, so that nobody else takes it meanwhile.
    pub(crate) fn reserve(&self, name: &str) -> Result<Reserved<'_>, Error> {
        self.check_name(name)?;
        make_folder(&self.folder)?;
        self.sweep()?;
        let lock = self.alone(name)?;
        self.check_free(name)?;
        Ok(Reserved {
            snapshots: self,
            name: name.to_owned(),
            _lock: lock,
        })
    }

    /// Finds a snapshot.
    pub fn open(&self, name: &str) -> Result<Snapshot, Error> {
        self.check_name(name)?;
        let folder = self.find(name)?;
        let shared = FlockOperation::NonBlockingLockShared;
        let lock = try_make(&self.lock(name), shared).map_err(cannot(self.words.to("lock")))?;
        let lock = lock.ok_or_else(|| self.words.busy(name))?;
        // It may have gone before it was ours.
        self.find(name)?;
        Ok(Snapshot {
            name: name.to_owned(),
            record: Record::read(&folder)?,
            folder,
            _lock: lock,
        })
    }

    /// All snapshots, by their names.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        self.sweep()?;
        let mut names = list_folder(&self.folder)?;
        names.retain(|name| names::is_valid(name));
        names.sort();
        let listed = names.into_iter().map(|name| {
            let folder = self.folder.join(&name);
            Listed {
                record: Record::read(&folder),
                bytes: bytes_in(&folder),
                name,
            }
        });
        Ok(listed.collect())
    }

    /// Removes a snapshot. Machines that were restored from it go on.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.check_name(name)?;
        self.sweep()?;
        self.find(name)?;
        let _lock = self.alone(name)?;
        // Another may have removed it since.
        let folder = self.find(name);
        let folder = folder.inspect_err(|_| _ = fs::remove_file(self.lock(name)))?;
        let failed = || {
            cannot(format!(
                "remove the {} {}",
                self.words.noun,
                folder.display()
            ))
        };
        // By one step it is gone; what follows can be finished by anybody.
        let grave = self.unfinished(name)?;
        fs::rename(&folder, &grave).map_err(failed())?;
        fs::remove_dir_all(&grave).map_err(failed())?;
        // Whoever waits for it sees that it is not the lock any more.
        let _ = fs::remove_file(self.lock(name));
        Ok(())
    }

    /// Removes what killed processes have left.
    fn sweep(&self) -> Result<(), Error> {
        for unfinished in list_folder(&self.folder)? {
            let Some(name) = unfinished_name(&unfinished) else {
                continue;
            };
            let alone = FlockOperation::NonBlockingLockExclusive;
            let lock = try_make(&self.lock(name), alone).map_err(cannot(self.words.to("lock")))?;
            // Else somebody is at it.
            if let Some(_lock) = lock {
                let path = self.folder.join(&unfinished);
                match fs::remove_dir_all(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(cannot(format!("remove {}", path.display()))(e));
                    }
                    _ => {}
                }
                if !self.folder.join(name).exists() {
                    let _ = fs::remove_file(self.lock(name));
                }
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.folder.join(name);
        match folder.is_dir() {
            true => Ok(folder),
            false => Err(Error::Invalid(format!(
                "there is no {} {name} (`{}` lists them)",
                self.words.noun, self.words.list
            ))),
        }
    }

    /// The lock of a name, for oneself.
    fn alone(&self, name: &str) -> Result<File, Error> {
        let path = self.lock(name);
        let made = try_make(&path, FlockOperation::NonBlockingLockExclusive);
        made.map_err(cannot(self.words.to("lock")))?
            .ok_or_else(|| self.words.busy(name))
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.folder.join(format!(".{name}.lock"))
    }

    /// Names are names of folders.
    fn check_name(&self, name: &str) -> Result<(), Error> {
        if names::is_valid(name) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "`{name}` cannot be a {}'s name: use at least two letters, digits, `_`, `.` and `-`, the \
             first a letter or a digit",
            self.words.noun
        )))
    }

    /// A folder for one that is made or removed. Nobody had its name before.
    fn unfinished(&self, name: &str) -> Result<PathBuf, Error> {
        let mut number = [0; 4];
        names::random(&mut number).map_err(cannot(self.words.to("make")))?;
        let number = u32::from_le_bytes(number);
        Ok(self.folder.join(format!("{UNFINISHED}{name}.{number:08x}")))
    }
}

/// A name that nobody else can take. Dropped, it is free again if there is nothing under it.
#[derive(Debug)]
pub(crate) struct Reserved<'a> {
    snapshots: &'a Snapshots,
    name: String,
    _lock: File,
}

impl Reserved<'_> {
    /// A path for what is needed only meanwhile: what a killed process leaves there is swept with the rest.
    pub(crate) fn scratch(&self) -> Result<PathBuf, Error> {
        self.snapshots.unfinished(&self.name)
    }

    /// Takes a snapshot of a running machine and keeps it under this name. `add` can put more into its folder
    /// before that.
    pub(crate) fn fill(
        self,
        request: &Request<'_>,
        add: &dyn Fn(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let snapshots = self.snapshots;
        let folder = snapshots.folder.join(&self.name);
        let unfinished = self.scratch()?;
        let put_in_place = || {
            add(&unfinished)?;
            // What a machine that loses its power leaves must not be taken for whole.
            sync(&unfinished)
                .and_then(|()| fs::rename(&unfinished, &folder))
                .and_then(|()| File::open(&snapshots.folder)?.sync_all())
                .map_err(cannot(format!(
                    "keep the {} {}",
                    snapshots.words.noun,
                    folder.display()
                )))
        };
        let taken = take::take(request, &unfinished, &put_in_place);
        if taken.is_err() {
            let _ = fs::remove_dir_all(&unfinished); // else swept later
        }
        taken
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // One under which something is kept has its lock for whoever uses that.
        if fs::symlink_metadata(self.snapshots.folder.join(&self.name)).is_err() {
            let _ = fs::remove_file(self.snapshots.lock(&self.name));
        }
    }
}

/// The name of the snapshot that is made or removed in this folder.
fn unfinished_name(folder: &str) -> Option<&str> {
    let (name, _) = folder.strip_prefix(UNFINISHED)?.rsplit_once('.')?;
    names::is_valid(name).then_some(name)
}

impl Words {
    fn to(&self, verb: &str) -> String {
        format!("{verb} a {}", self.noun)
    }

    fn busy(&self, name: &str) -> Error {
        Error::Invalid(format!(
            "another command makes, restores or removes the {} {name}: try again when it is done",
            self.noun
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use serde_json::{Value, json};

    use super::*;

    /// Names in a folder, in their order.
    fn listed(folder: &Path) -> Vec<String> {
        let mut names = list_folder(folder).expect("list");
        names.sort();
        names
    }

    /// A VMM of which only the control socket is real. Its machine has one disk that it writes to and one that it
    /// reads.
    struct Vmm {
        dir: tempfile::TempDir,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Vmm {
        fn start(state: &'static str) -> Self {
            let dir = tempfile::tempdir().expect("folder");
            fs::write(dir.path().join("written"), "as it was").expect("disk");
            fs::write(dir.path().join("read"), "only").expect("disk");
            let config = json!({
                "kernel": {"path": "vmlinux"},
                "disks": [
                    {"path": dir.path().join("read"), "read_only": true},
                    {"path": dir.path().join("written")},
                ],
            });
            let vm = json!({"state": state, "pid": 1, "config": config, "restored": null});
            let asked = Arc::<Mutex<Vec<String>>>::default();
            let listener = UnixListener::bind(dir.path().join("control.sock")).expect("bind");
            let log = Arc::clone(&asked);
            thread::spawn(move || serve(&listener, &vm, &log));
            Vmm { dir, asked }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().expect("lock").clone()
        }

        fn create(&self, snapshots: &Snapshots, name: &str, stop: bool) -> Result<(), Error> {
            let request = Request {
                directory: self.dir.path(),
                stop,
                paused: false,
                is_interrupted: &|| false,
            };
            snapshots.create(name, &request)
        }
    }

    /// Answers until it is told to shut down.
    fn serve(listener: &UnixListener, vm: &Value, log: &Mutex<Vec<String>>) {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let mut reader = BufReader::new(stream.try_clone().expect("clone"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).expect("read") == 0 {
                    break;
                }
            }
            let Some((_, length)) = head.split_once("Content-Length: ") else {
                continue; // only to see whether it is there
            };
            let mut body = vec![0; length.trim().parse().expect("a number")];
            reader.read_exact(&mut body).expect("body");
            let target = head.split(' ').nth(1).expect("target").to_owned();
            let mut answer = String::new();
            match &*target {
                "/v1/vm" => answer = vm.to_string(),
                "/v1/snapshot" => {
                    let body: Value = serde_json::from_slice(&body).expect("JSON");
                    let folder = Path::new(body["path"].as_str().expect("path"));
                    fs::create_dir(folder).expect("make");
                    fs::write(folder.join("memory"), [1; 8192]).expect("write");
                }
                _ => {}
            }
            log.lock().expect("lock").push(target.clone());
            let length = answer.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}"
            )
            .expect("answer");
            if target == "/v1/shutdown" {
                return;
            }
        }
    }

    fn room() -> (tempfile::TempDir, Snapshots) {
        let dir = tempfile::tempdir().expect("folder");
        let layout = Layout::under(dir.path()).expect("layout");
        (dir, Snapshots::of(&layout))
    }

    #[test]
    fn snapshot_when_taken_has_the_disks_and_the_vm_runs_on() {
        let (dir, snapshots) = room();
        let vmm = Vmm::start("running");
        vmm.create(&snapshots, "one", false).expect("create");
        let wanted = ["/v1/vm", "/v1/pause", "/v1/snapshot", "/v1/resume"];
        assert_eq!(vmm.asked(), wanted);
        let folder = dir.path().join("snapshots/one");
        assert_eq!(listed(&folder), ["disk1", "memory", "snapshot.json"]);

        let snapshot = snapshots.open("one").expect("open");
        let record = &snapshot.record;
        assert_eq!((record.cpus, record.memory_mib), (1, 128));
        assert!(record.size_bytes >= 8192 && !record.agent, "{record:?}");
        // Each that is restored has what was on the disk then.
        fs::write(vmm.dir.path().join("written"), "changed").expect("write");
        for name in ["a", "b"] {
            let place = |_: &Disk| dir.path().join(name);
            let disks = snapshot.disks(place, &|| false).expect("disks");
            let paths: Vec<_> = disks.into_iter().collect();
            let (read, copy) = (vmm.dir.path().join("read"), dir.path().join(name));
            assert_eq!(paths, [(0, read), (1, copy.clone())]);
            assert_eq!(fs::read_to_string(copy).expect("read"), "as it was");
        }

        // It is not removed while somebody begins to restore it.
        let busy = snapshots.remove("one").expect_err("held").to_string();
        assert!(busy.contains("try again"), "{busy}");
        drop(snapshot);
        let all = snapshots.list().expect("list");
        assert_eq!(all.len(), 1);
        assert!(all[0].record.is_ok() && all[0].bytes >= 8192, "{all:?}");
        snapshots.remove("one").expect("remove");
        assert_eq!(listed(&dir.path().join("snapshots")), [""; 0]);
        snapshots.open("one").expect_err("gone");
        snapshots.remove("one").expect_err("gone");
    }

    #[test]
    fn vm_when_it_was_paused_stays_so_and_when_it_is_to_stop_never_runs_again() {
        let (_dir, snapshots) = room();
        let paused = Vmm::start("paused");
        paused.create(&snapshots, "paused", false).expect("create");
        assert_eq!(paused.asked(), ["/v1/vm", "/v1/snapshot"]);
        let stopped = Vmm::start("running");
        stopped.create(&snapshots, "stopped", true).expect("create");
        let wanted = ["/v1/vm", "/v1/pause", "/v1/snapshot", "/v1/shutdown"];
        assert_eq!(stopped.asked(), wanted);
    }

    #[test]
    fn snapshot_when_it_fails_or_is_interrupted_leaves_nothing_and_the_vm_runs_on() {
        let (dir, snapshots) = room();
        let vmm = Vmm::start("running");
        let calls = std::cell::Cell::new(0);
        let request = Request {
            directory: vmm.dir.path(),
            stop: true,
            paused: false,
            // After the memory.
            is_interrupted: &|| calls.replace(calls.get() + 1) > 0,
        };
        let failed = snapshots.create("one", &request).expect_err("interrupted");
        assert!(failed.to_string().contains("interrupted"), "{failed}");
        assert_eq!(vmm.asked().last().map(String::as_str), Some("/v1/resume"));
        assert_eq!(listed(&dir.path().join("snapshots")), [""; 0]);

        let nowhere = tempfile::tempdir().expect("folder");
        let request = Request {
            directory: nowhere.path(),
            ..request
        };
        let failed = snapshots.create("one", &request).expect_err("no VM");
        assert!(failed.to_string().contains("cannot reach a VM"), "{failed}");
    }

    #[test]
    fn name_when_it_is_taken_or_none_is_refused_before_the_vm_notices() {
        let (dir, snapshots) = room();
        let vmm = Vmm::start("running");
        fs::create_dir_all(dir.path().join("snapshots/one")).expect("folder");
        let taken = vmm.create(&snapshots, "one", false);
        let taken = taken.expect_err("taken").to_string();
        assert!(taken.contains("a snapshot one already"), "{taken}");
        for wrong in ["", "a", "..", "a/b", "-ab", ".ab", "a b"] {
            vmm.create(&snapshots, wrong, false).expect_err(wrong);
            snapshots.open(wrong).expect_err(wrong);
            snapshots.remove(wrong).expect_err(wrong);
        }
        assert_eq!(vmm.asked(), [""; 0]);
    }

    #[test]
    fn snapshot_when_half_made_is_swept_unless_somebody_is_at_it() {
        let (dir, snapshots) = room();
        let folder = dir.path().join("snapshots");
        let half = |name: &str| folder.join(format!(".making.{name}.0123abcd"));
        for name in ["dead.one", "busy"] {
            fs::create_dir_all(half(name)).expect("folder");
            fs::write(half(name).join("memory"), "half").expect("write");
        }
        let busy = snapshots.alone("busy").expect("lock");
        assert!(snapshots.list().expect("list").is_empty());
        assert!(!half("dead.one").exists() && half("busy").exists());
        drop(busy);
        assert!(snapshots.list().expect("list").is_empty());
        assert_eq!(listed(&folder), [""; 0]);
    }
}
