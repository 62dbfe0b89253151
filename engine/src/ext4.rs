//! Disks that guests write to: an ext4 in a sparse file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, cannot};

/// A disk to be.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// The most bytes it holds. It takes the room it needs.
    pub size_bytes: u64,
    /// Whether it is used again after its machine was killed.
    pub journal: bool,
    /// What is on it from the beginning.
    pub folder: Option<&'a Path>,
    /// What it is for, as the user says it.
    pub purpose: &'a str,
}

impl Disk<'_> {
    /// Makes it.
    pub fn make(&self, path: &Path) -> Result<(), Error> {
        let failed = || format!("make the disk {}", path.display());
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_len(self.size_bytes))
            .map_err(cannot(failed()))?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0"]);
        match self.journal {
            true => mkfs.args(["-J", "size=8"]),
            false => mkfs.args(["-O", "^has_journal"]),
        };
        // Nothing is written that need not be: tables are made by the guest as it needs them.
        mkfs.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
        if let Some(folder) = self.folder {
            mkfs.arg("-d").arg(folder);
        }
        match mkfs.arg(path).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(Error::Invalid(format!(
                "cannot {}: {}",
                failed(),
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Invalid(format!(
                "{} needs mkfs.ext4: install e2fsprogs",
                self.purpose
            ))),
            Err(e) => Err(cannot("run mkfs.ext4")(e)),
        }
    }
}
