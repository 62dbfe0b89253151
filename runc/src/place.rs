//! What is kept of a container between commands: a directory of its own, with its configuration as it was when the container was
//! made, what was made of it, and the socket at which it waits to be started.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bulkhead_container::spec::Spec;
use bulkhead_container::{Bundle, Container, Known, Opened, Record};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Outcome, cannot, warn};
use crate::systemd::Scope;

/// A container's directory.
#[derive(Debug)]
pub struct Place {
    pub id: String,
    directory: PathBuf,
}

/// What was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    pub record: Record,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// As RFC 3339 has it.
    pub created: String,
    /// Who made it.
    pub owner: u32,
    /// The unit that systemd has of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

/// Where in its life a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// Nobody else changes the container as long as this is there.
pub struct Locked(#[allow(dead_code)] File);

impl Place {
    pub fn new(root: &Path, id: &str) -> Outcome<Place> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.bytes().all(is_plain) {
            let rule = "letters, digits and _+-. and none of these dots at its beginning";
            let problem = "it is empty, too long, or has an invalid character";
            return Err(format!("invalid container ID {id:?}: {problem}; it is {rule}").into());
        }
        let directory = root.join(id);
        Ok(Place {
            id: id.to_owned(),
            directory,
        })
    }

    /// All containers of a directory, in the order of their names.
    pub fn all(root: &Path) -> Outcome<Vec<Place>> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(cannot(format_args!("list {}", root.display())))?,
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        let places = names.iter().filter_map(|name| Place::new(root, name).ok());
        Ok(places.collect())
    }

    /// Takes the name for a new container. Who calls holds the lock, and gives the place back if it comes to nothing.
    pub fn claim(&self) -> Outcome<Locked> {
        let failed = || format!("make container {}", self.id);
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        if let Some(root) = self.directory.parent() {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root);
            made.map_err(cannot(failed()))?;
        }
        match builder.create(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(format!("container {} exists already", self.id).into())
            }
            made => {
                made.map_err(cannot(failed()))?;
                self.lock()
            }
        }
    }

    /// Waits until nobody else changes the container.
    pub fn lock(&self) -> Outcome<Locked> {
        let directory = File::open(&self.directory).map_err(|error| self.missing(&error))?;
        flock(&directory, FlockOperation::LockExclusive)
            .map_err(cannot(format_args!("lock container {}", self.id)))?;
        Ok(Locked(directory))
    }

    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Gives the name back, and what systemd has of the container.
    pub fn remove(&self) -> Outcome<()> {
        if let Ok(Some(Kept {
            scope: Some(scope), ..
        })) = self.kept()
        {
            scope.stop()?;
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(cannot(format_args!("remove container {}", self.id))),
        }
    }

    /// Where the container waits to be started; the socket is there as long as it does.
    pub fn gate(&self) -> PathBuf {
        self.directory.join("start")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    /// Writes down what was made, all of it or nothing: with this the container is created.
    pub fn keep(&self, kept: &Kept, config: &[u8]) -> Outcome<()> {
        let write = || {
            fs::write(self.config(), config)?;
            let new = self.directory.join("state.new");
            File::create(&new)?.write_all(&serde_json::to_vec(kept)?)?;
            fs::rename(new, self.state())
        };
        write().map_err(cannot::<io::Error>(format_args!("write down {}", self.id)))
    }

    /// None: it is being created.
    pub fn kept(&self) -> Outcome<Option<Kept>> {
        let text = match fs::read(self.state()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.exists() => {
                return Ok(None);
            }
            text => text.map_err(|error| self.missing(&error))?,
        };
        let read = serde_json::from_slice(&text);
        read.map(Some)
            .map_err(cannot(format_args!("read {}", self.state().display())))
    }

    /// The configuration, as it was when the container was made.
    pub fn spec(&self) -> Outcome<Spec> {
        let path = self.config();
        let text = fs::read(&path).map_err(|error| self.missing(&error))?;
        serde_json::from_slice(&text).map_err(cannot(format_args!("read {}", path.display())))
    }

    /// What was made, of a container that is whole.
    pub fn whole(&self) -> Outcome<Kept> {
        let creating = || {
            format!(
                "container {} does not exist yet: it is being created",
                self.id
            )
        };
        self.kept()?.ok_or_else(|| creating().into())
    }

    /// Goes on with the container. For programs executed in it there is its filter.
    pub fn open(&self, kept: &Kept, with_filter: bool) -> Outcome<(Opened, Spec)> {
        let mut spec = self.spec()?;
        if let Some(linux) = spec.linux.as_mut().filter(|_| !with_filter) {
            linux.seccomp = None;
        }
        let bundle = Bundle {
            path: kept.bundle.clone(),
            warn,
        };
        let known = Known {
            id: &self.id,
            spec: &spec,
            bundle: Some(bundle),
        };
        let opened = Container::open(&kept.record, known)?;
        Ok((opened, spec))
    }

    pub fn status(&self, kept: &Kept, opened: &Opened) -> Status {
        match opened {
            Opened::Ended(_) => Status::Stopped,
            Opened::Alive(container) if container.is_paused() => Status::Paused,
            Opened::Alive(_) if kept.record.gate.is_some() && self.gate().exists() => {
                Status::Created
            }
            Opened::Alive(_) => Status::Running,
        }
    }

    fn missing(&self, error: &io::Error) -> Failure {
        let id = &self.id;
        match error.kind() {
            io::ErrorKind::NotFound => format!("container {id} does not exist").into(),
            _ => format!("cannot open container {id}: {error}").into(),
        }
    }
}
