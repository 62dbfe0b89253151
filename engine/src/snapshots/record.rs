//! `snapshot.json`: what we know of a snapshot beside what the VMM has written.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bulkhead_vmm::config::DiskConfig;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, cannot};
use crate::record;

/// The only version that is read and written.
pub const FORMAT: u64 = 1;
/// The file, in a snapshot's folder.
const FILE: &str = "snapshot.json";

/// What we know of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u64,
    /// When it was taken.
    pub created: Timestamp,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// What it took on the disk when it was made, in bytes. What the file system shares is counted.
    pub size_bytes: u64,
    /// Whether our agent answered in the guest when it was taken.
    pub agent: bool,
    /// Whether the container in it was paused by its user. One that was not is held for the snapshot alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// All disks of the VM.
    pub disks: Vec<Disk>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its number: those that the VM was made with come first, those in spare windows behind them.
    pub index: usize,
    /// Where it was, absolute.
    pub path: PathBuf,
    /// Whether the guest may only read. Such a disk is not copied.
    pub read_only: bool,
    /// How a file that is not copied is known again.
    #[serde(default)]
    pub stamp: Option<Stamp>,
}

/// How a file is known again that should not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// In bytes.
    pub size: u64,
    /// When it was last written to, in seconds since 1970.
    pub modified: i64,
    /// And nanoseconds.
    pub modified_ns: i64,
}

impl From<&fs::Metadata> for Stamp {
    fn from(metadata: &fs::Metadata) -> Self {
        Stamp {
            size: metadata.len(),
            modified: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }
}

impl Disk {
    /// The name of its copy in a snapshot's folder.
    pub fn copy_name(&self) -> String {
        format!("disk{}", self.index)
    }

    /// Fails if a file that was not copied is not what it was.
    pub fn check(&self) -> Result<(), Error> {
        let Some(stamp) = self.stamp else {
            return Ok(());
        };
        let metadata = fs::metadata(&self.path)
            .map_err(cannot(format!("find the disk {}", self.path.display())))?;
        match Stamp::from(&metadata) == stamp {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "the disk {} is not what it was when the snapshot was taken, and its guest would not \
                 survive that: put the old one back, or take the snapshot again",
                self.path.display()
            ))),
        }
    }
}

impl Record {
    /// Whether these are its disks.
    pub fn is_of<'a>(&self, disks: impl Iterator<Item = &'a DiskConfig>) -> bool {
        let mut theirs = disks
            .enumerate()
            .filter_map(|(index, disk)| Some((index, disk.read_only, disk.path.as_ref()?)));
        let is_same = |ours: &Disk, (index, read_only, path): (usize, bool, &PathBuf)| {
            // One that is relative to where the VMM was is kept as it is, as nobody can tell.
            let is_there = path.is_relative() || *path == ours.path;
            (ours.index, ours.read_only) == (index, read_only) && is_there
        };
        self.disks.iter().all(|ours| {
            let next = theirs.next();
            next.is_some_and(|disk| is_same(ours, disk))
        }) && theirs.next().is_none()
    }

    /// Writes it into a snapshot's folder.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from);
        let written = text.and_then(|text| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(text.as_bytes())
        });
        written.map_err(cannot(format!("write {}", path.display())))
    }

    /// Reads that of the snapshot in `folder`.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE);
        record::read_of_format(&path, FORMAT, |format| {
            Error::Invalid(format!(
                "{} has format {format}, and this Bulkhead reads {FORMAT}: take the snapshot again with this one",
                path.display()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_when_of_another_format_is_refused_by_its_number() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join(FILE);
        for (text, said) in [
            ("{\"format\": 2}", "has format 2"),
            ("{\"format\": 1}", "missing field"),
            ("", "cannot read"),
        ] {
            fs::write(&path, text).expect("write");
            let refused = Record::read(dir.path()).expect_err(text).to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn record_when_it_has_other_disks_than_the_vm_is_told() {
        let config = |path: Option<&str>, read_only| DiskConfig {
            path: path.map(PathBuf::from),
            read_only,
            serial: None,
            rate_limit: None,
        };
        let ours = |index, path: &str, read_only| Disk {
            index,
            path: path.into(),
            read_only,
            stamp: None,
        };
        let theirs = [
            config(Some("/root"), true),
            config(None, false),
            config(Some("data"), false),
        ];
        let is_of = |disks: &[Disk]| {
            let record = Record {
                format: FORMAT,
                created: Timestamp::UNIX_EPOCH,
                cpus: 1,
                memory_mib: 128,
                size_bytes: 0,
                agent: false,
                paused: false,
                disks: disks.to_vec(),
            };
            record.is_of(theirs.iter())
        };
        let root = || ours(0, "/root", true);
        let data = || ours(2, "/where/it/was/data", false);
        assert!(is_of(&[root(), data()]));
        for other in [
            &[root()][..],
            &[data()],
            &[root(), ours(1, "/where/it/was/data", false)],
            &[root(), ours(2, "/where/it/was/data", true)],
            &[ours(0, "/boot", true), data()],
            &[root(), data(), ours(3, "/more", false)],
        ] {
            assert!(!is_of(other), "{other:?}");
        }
    }

    #[test]
    fn disk_when_it_was_replaced_is_refused() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("disk");
        fs::write(&path, "one").expect("write");
        let disk = Disk {
            index: 0,
            stamp: Some(Stamp::from(&fs::metadata(&path).expect("stat"))),
            path: path.clone(),
            read_only: true,
        };
        disk.check().expect("the same");
        fs::write(&path, "three").expect("write");
        let refused = disk.check().expect_err("another").to_string();
        assert!(refused.contains("not what it was"), "{refused}");
        fs::remove_file(&path).expect("remove");
        disk.check().expect_err("gone");
    }
}
