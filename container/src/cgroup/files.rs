//! The files of a control group, and the directories below it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdir, openat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::error::Error;

/// More than the longest file that is read here.
const MAX_FILE: u64 = 1 << 20;
const MODE: Mode = Mode::from_raw_mode(0o755);

/// Makes a group, and those above it that are missing; whether it was not there.
pub fn make(path: &Path) -> Result<bool, Error> {
    let made = match mkdir(path, MODE) {
        Err(Errno::NOENT) => {
            let parent = path.parent().unwrap_or(path);
            std::fs::create_dir_all(parent).map_err(|e| not_made(parent, e))?;
            mkdir(path, MODE)
        }
        made => made,
    };
    match made {
        Err(Errno::EXIST) => Ok(false),
        made => made.map(|()| true).map_err(|e| not_made(path, e)),
    }
}

pub fn not_made(path: &Path, error: impl Into<io::Error>) -> Error {
    Error::step("make the control group", path.display().to_string(), error)
}

pub fn write(at: impl AsFd, file: impl Arg, value: &str) -> Result<(), Errno> {
    let file = openat(at, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, value.as_bytes()).map(drop)
}

/// The text of a file; none if there is no such file, because its controller is not enabled, or if the group is gone.
pub fn read(at: impl AsFd, file: impl Arg) -> Result<Option<String>, io::Error> {
    let opened = match openat(at, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
        opened => opened?,
    };
    let mut text = String::new();
    match File::from(opened).take(MAX_FILE).read_to_string(&mut text) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        read => read.map(|_| Some(text)),
    }
}

/// Removes a group and those that the container has made in it, the deepest first. One that is gone is no error.
pub fn remove_tree(path: &Path) -> Result<(), Errno> {
    let remove = |path: &Path| match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    };
    match remove(path) {
        Err(Errno::BUSY) => {}
        removed => return removed,
    }
    for group in subgroups(path).into_iter().rev() {
        remove(&group)?;
    }
    remove(path)
}

/// Groups below, each before those below it.
pub fn subgroups(path: &Path) -> Vec<PathBuf> {
    const MOST: usize = 10_000;
    let mut groups = vec![path.to_owned()];
    let mut next = 0;
    while let Some(group) = groups.get(next).filter(|_| groups.len() < MOST) {
        let inside = std::fs::read_dir(group).into_iter().flatten().flatten();
        let below: Vec<_> = inside
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path())
            .collect();
        groups.extend(below);
        next += 1;
    }
    groups.split_off(1)
}

/// The numbers of all processes of a group and of those below it, in no order.
pub fn processes(path: &Path) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    for group in [path.to_owned()].into_iter().chain(subgroups(path)) {
        let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    // Zero are those of process namespaces that the reader does not see.
    all.retain(|&pid| pid != 0);
    all
}
