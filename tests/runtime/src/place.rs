//! A container's place in the directory of all: taken by who creates it, with the socket of its keeper.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use bulkhead_container::State;

use crate::keeper::{self, Request};

/// Where a container is found.
pub struct Place {
    pub id: String,
    directory: PathBuf,
}

impl Place {
    pub fn new(root: &Path, id: &str) -> Result<Place, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.starts_with('.') || !id.chars().all(allowed) {
            return Err(format!("{id:?} is no ID of a container"));
        }
        Ok(Place {
            id: id.to_owned(),
            directory: root.join(id),
        })
    }

    /// Takes it, unless somebody has it.
    pub fn claim(&self) -> Result<(), String> {
        let failed = |e: io::Error| format!("cannot make container {}: {e}", self.id);
        if let Some(root) = self.directory.parent() {
            fs::create_dir_all(root).map_err(failed)?;
        }
        match fs::create_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(format!("there is a container {} already", self.id))
            }
            made => made.map_err(failed),
        }
    }

    pub fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind(self.socket())
    }

    /// Has the keeper do something; the state is from after that.
    pub fn ask(&self, request: &Request) -> Result<State, String> {
        let failed = |e: io::Error| format!("cannot ask the keeper of container {}: {e}", self.id);
        if !self.directory.exists() {
            return Err(format!("there is no container {}", self.id));
        }
        let stream = UnixStream::connect(self.socket()).map_err(failed)?;
        serde_json::to_writer(&stream, request).map_err(|e| failed(e.into()))?;
        stream.shutdown(Shutdown::Write).map_err(failed)?;
        keeper::read_reply(stream)
    }

    pub fn remove(&self) {
        if let Err(e) = fs::remove_dir_all(&self.directory) {
            eprintln!("oci-runtime: {}: {e}", self.directory.display());
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }
}
