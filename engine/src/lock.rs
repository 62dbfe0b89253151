//! Locks between processes: `flock`, which the kernel lets go of when the holder ends, however it does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Opens the lock's file, which is made if it is not there, without taking the lock.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Takes the lock at `path`, however long that takes. It is held until the file is closed, by every
/// process that has it.
pub fn wait(path: &Path) -> io::Result<File> {
    loop {
        let file = open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        // Whoever held it may have removed the file, and a new one may be somebody else's lock.
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Takes the lock at `path` if it is free. `None` if it is not, or if there is no such file.
pub fn try_take(path: &Path) -> io::Result<Option<File>> {
    try_take_by(path, FlockOperation::NonBlockingLockExclusive)
}

/// Takes the lock at `path`, for oneself or together with others, if that can be done at once. Its file is made
/// if it is not there.
pub fn try_make(path: &Path, how: FlockOperation) -> io::Result<Option<File>> {
    drop(open(path)?);
    try_take_by(path, how)
}

/// Takes the lock at `path`, for oneself or together with others, if that can be done at once.
pub fn try_take_by(path: &Path, how: FlockOperation) -> io::Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match flock(&file, how) {
        Ok(()) if is_at(&file, path)? => Ok(Some(file)),
        Ok(()) | Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether the file is the one that `path` leads to.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((open.dev(), open.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_when_held_cannot_be_taken_and_when_dropped_can() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("lock");
        assert!(try_take(&path).expect("no file").is_none());
        let held = wait(&path).expect("lock");
        assert!(try_take(&path).expect("held").is_none());
        drop(held);
        assert!(try_take(&path).expect("free").is_some());
    }

    #[test]
    fn lock_when_its_file_was_replaced_meanwhile_is_the_new_ones() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("lock");
        let held = wait(&path).expect("lock");
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || wait(&path).expect("lock").metadata().expect("stat").ino()
        });
        std::fs::rename(&path, dir.path().join("old")).expect("rename");
        let new = open(&path).expect("new");
        drop(held);
        assert_eq!(
            waiter.join().expect("waiter"),
            new.metadata().expect("stat").ino()
        );
    }
}
