//! Volumes: what is kept under a name, whatever becomes of the containers that use it.
//!
//! A volume is a folder, `_data`, which containers get through a file server. One that is first written
//! to where there is no file server is a disk instead, `disk.ext4`, and stays one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::engine::make_folder;
use crate::error::{Error, cannot};
use crate::ext4::Disk;
use crate::layout::Layout;
use crate::lock;
use crate::names;

/// The folder that containers see, in a volume's own or on its disk. Docker calls it so.
pub const DATA: &str = "_data";
/// The most that a disk holds. It takes the room it needs.
const DISK_BYTES: u64 = 32 << 30;
/// How long a sandbox that uses the disk gets to end. One that is not about to is not waited for in vain.
const PATIENCE: Duration = Duration::from_secs(30);

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    name: String,
    folder: PathBuf,
}

impl Named {
    /// Finds a volume, or makes one of which nothing is settled but its name.
    pub fn obtain(layout: &Layout, name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let folder = layout.volumes().join(name);
        make_folder(&folder)?;
        Ok(Named {
            name: name.to_owned(),
            folder,
        })
    }

    /// Where the contents of a volume are, as far as there are any.
    pub fn path(layout: &Layout, name: &str) -> PathBuf {
        let folder = layout.volumes().join(name);
        let disk = folder.join("disk.ext4");
        match disk.exists() {
            true => disk,
            false => folder.join(DATA),
        }
    }

    /// Whether the volume of this name, in the folder of all of them, is a disk.
    pub fn is_disk(volumes: &Path, name: &str) -> bool {
        check_name(name).is_ok() && volumes.join(name).join("disk.ext4").exists()
    }

    /// Its folder, if it is not a disk.
    pub fn data(&self) -> PathBuf {
        self.folder.join(DATA)
    }

    /// Its disk, if it is one.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.ext4")
    }

    /// There while the disk was not filled from an image, and is to be.
    pub fn unfilled(&self) -> PathBuf {
        self.folder.join("unfilled")
    }

    /// Makes it a folder, if it is nothing yet. Whether nothing is in it.
    pub fn make_folder(&self) -> Result<bool, Error> {
        let data = self.data();
        let failed = || format!("use the volume {}", self.name);
        match fs::read_dir(&data) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Containers' users get in there; others on this host do not come so far.
                fs::create_dir(&data).map_err(cannot(failed()))?;
                Ok(true)
            }
            Err(e) => Err(cannot(failed())(e)),
        }
    }

    /// Makes it a disk, if it is nothing yet. The caller has it to itself.
    pub fn make_disk(&self, fill: bool) -> Result<(), Error> {
        let disk = self.disk();
        // One that was to be filled and was not is no better than none.
        if disk.exists() && !self.unfilled().exists() {
            return Ok(());
        }
        let failed = || format!("make the volume {}", self.name);
        if fill {
            File::create(self.unfilled()).map_err(cannot(failed()))?;
        }
        let on_it = self.folder.join("new");
        fs::create_dir_all(on_it.join(DATA)).map_err(cannot(failed()))?;
        let new = self.folder.join("disk.new");
        let made = Disk {
            size_bytes: DISK_BYTES,
            journal: true,
            folder: Some(&on_it),
            purpose: "a volume without virtiofsd",
        }
        .make(&new);
        let _ = fs::remove_dir_all(&on_it);
        made?;
        fs::rename(&new, &disk).map_err(cannot(failed()))
    }

    /// Takes the volume for a machine that writes to its disk. One machine at a time can.
    pub fn take(&self) -> Result<File, Error> {
        self.take_by(FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the volume for itself or together with others.
    pub(super) fn take_by(&self, how: FlockOperation) -> Result<File, Error> {
        let until = Instant::now() + PATIENCE;
        let path: &Path = &self.folder.join("lock");
        loop {
            let taken = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .and_then(|_| lock::try_take_by(path, how));
            match taken.map_err(cannot(format!("lock the volume {}", self.name)))? {
                Some(lock) => return Ok(lock),
                // Its container may have ended already, and the sandbox be about to.
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                None => {
                    return Err(Error::Invalid(format!(
                        "another container uses the volume {}, which is a disk: stop that one first",
                        self.name
                    )));
                }
            }
        }
    }
}

/// Names are names of folders.
fn check_name(name: &str) -> Result<(), Error> {
    if names::is_valid(name) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "`{name}` cannot be a volume's name: use letters, digits, `_`, `.` and `-`, the first a letter \
         or a digit; a folder of this machine begins with / or ./"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().expect("folder");
        let layout = Layout::under(dir.path()).expect("layout");
        let volume = Named::obtain(&layout, "vol").expect("made");
        assert!(volume.make_folder().expect("folder"));
        assert_eq!(volume.data(), dir.path().join("volumes/vol/_data"));
        assert_eq!(Named::path(&layout, "vol"), volume.data());
        fs::write(volume.data().join("a"), "1").expect("write");
        let again = Named::obtain(&layout, "vol").expect("found");
        assert!(!again.make_folder().expect("folder"));
        for wrong in ["", "v", "..", "a/b", ".ab", "-ab"] {
            assert!(Named::obtain(&layout, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn disk_is_made_again_while_it_was_not_filled_and_then_never_more() {
        let dir = tempfile::tempdir().expect("folder");
        let layout = Layout::under(dir.path()).expect("layout");
        let volume = Named::obtain(&layout, "vol").expect("made");
        let number = || {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(volume.disk()).expect("disk").ino()
        };
        let _lock = volume.take().expect("free");
        volume.make_disk(true).expect("mkfs.ext4, of e2fsprogs");
        let first = number();
        volume.make_disk(true).expect("again");
        assert_ne!(number(), first);
        let second = number();
        fs::remove_file(volume.unfilled()).expect("filled");
        volume.make_disk(true).expect("kept");
        assert_eq!(number(), second);
        assert_eq!(Named::path(&layout, "vol"), volume.disk());
    }
}
