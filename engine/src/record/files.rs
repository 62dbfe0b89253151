//! Where a container's documents are, and how they are written.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulkhead_container::cgroup::Location;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Config, Processes, State};
use crate::error::{Error, cannot};

/// The files of one container.
#[derive(Debug, Clone)]
pub struct Files {
    /// Its folder, which is there as long as it is.
    pub folder: PathBuf,
    /// Its sandbox's folder, which is there as long as that is up.
    pub sandbox: PathBuf,
}

impl Files {
    /// Held by whoever may change the state: the monitor, while there is one.
    pub fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }
    /// The log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log.ndjson")
    }
    /// The disk that changes go to, if they do not go to memory.
    pub fn upper(&self) -> PathBuf {
        self.folder.join("upper.ext4")
    }
    /// The disk that changes went to, while it is not sure that the container goes on from a checkpoint with
    /// another one.
    pub fn upper_before(&self) -> PathBuf {
        self.folder.join("upper.before")
    }
    /// The disk of a checkpoint, while it is copied.
    pub fn upper_new(&self) -> PathBuf {
        self.folder.join("upper.new")
    }
    /// The checkpoints that were taken of it.
    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }
    /// The disk with copies of the host's folders, while the sandbox is up.
    pub fn copies(&self) -> PathBuf {
        self.folder.join("copies.erofs")
    }
    /// What the monitor and the VMM have to complain about.
    pub fn complaints(&self) -> PathBuf {
        self.folder.join("monitor.log")
    }
    /// What the guest's kernel says.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }
    /// The agent's API.
    pub fn api(&self) -> PathBuf {
        self.sandbox.join("api.sock")
    }
    /// Any other port of the guest.
    pub fn vsock(&self) -> PathBuf {
        self.sandbox.join("vsock.sock")
    }
    /// The VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.sandbox.join("control.sock")
    }
    /// Where the monitor is asked for something.
    pub fn requests(&self) -> PathBuf {
        self.sandbox.join("monitor.sock")
    }
    /// The sockets of the machine that becomes a template, while it does.
    pub fn template_sockets(&self) -> PathBuf {
        self.sandbox.join("template")
    }
    /// The file server's socket.
    pub fn file_server(&self) -> PathBuf {
        self.sandbox.join("files.sock")
    }
    /// Where the file server sees what it serves. Nobody else sees anything there.
    pub fn shared(&self) -> PathBuf {
        self.sandbox.join("shared")
    }
    /// There while the container is paused.
    pub fn paused(&self) -> PathBuf {
        self.sandbox.join("paused")
    }
    fn cgroup(&self) -> PathBuf {
        self.sandbox.join("cgroup.json")
    }
    fn processes(&self) -> PathBuf {
        self.sandbox.join("processes.json")
    }

    /// Reads what the container is.
    pub fn read_config(&self) -> io::Result<Config> {
        read(&self.folder.join("config.json"))
    }
    /// Writes what the container is.
    pub fn write_config(&self, config: &Config) -> io::Result<()> {
        write(&self.folder.join("config.json"), config)
    }
    /// Reads how the container is.
    pub fn read_state(&self) -> io::Result<State> {
        read(&self.folder.join("state.json"))
    }
    /// Writes how the container is.
    pub fn write_state(&self, state: &State) -> io::Result<()> {
        write(&self.folder.join("state.json"), state)
    }
    /// Reads where the sandbox's control group is, if that was written down.
    pub fn read_cgroup(&self) -> io::Result<Location> {
        read(&self.cgroup())
    }
    /// Writes where the sandbox's control group is.
    pub fn write_cgroup(&self, place: &Location) -> io::Result<()> {
        write(&self.cgroup(), place)
    }
    /// Reads which processes the sandbox has.
    pub fn read_processes(&self) -> io::Result<Processes> {
        read(&self.processes())
    }
    /// Writes which processes the sandbox has.
    pub fn write_processes(&self, processes: &Processes) -> io::Result<()> {
        write(&self.processes(), processes)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let message = format!("{} is damaged: {e}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// Reads a document that says in `format` which version of us can read the rest. `other` is what it means that it is not this one.
pub fn read_of_format<T: DeserializeOwned>(
    path: &Path,
    format: u64,
    other: impl FnOnce(u64) -> Error,
) -> Result<T, Error> {
    #[derive(Deserialize)]
    struct Header {
        format: u64,
    }
    let failed = || cannot(format!("read {}", path.display()));
    let text = fs::read(path).map_err(failed())?;
    let header: Header = serde_json::from_slice(&text)
        .map_err(io::Error::from)
        .map_err(failed())?;
    if header.format != format {
        return Err(other(header.format));
    }
    serde_json::from_slice(&text)
        .map_err(io::Error::from)
        .map_err(failed())
}

/// Puts a document at `path`: the old one or the new one is there, and never a part of either.
pub fn write<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    // Its writer holds a lock, so that the name is nobody else's.
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&serde_json::to_vec(document)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Status;

    #[test]
    fn state_when_its_writer_was_killed_is_the_one_before() {
        let dir = tempfile::tempdir().expect("folder");
        let files = Files {
            folder: dir.path().to_owned(),
            sandbox: dir.path().to_owned(),
        };
        let state = State {
            status: Status::Exited,
            exit_code: 3,
            ..State::default()
        };
        files.write_state(&state).expect("write");
        fs::write(dir.path().join("state.new"), "{\"stat").expect("half a write");
        assert_eq!(files.read_state().expect("read"), state);
        files.write_state(&State::default()).expect("write again");
        assert_eq!(files.read_state().expect("read"), State::default());
    }
}
