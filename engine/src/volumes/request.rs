//! What is to be seen of the host in a container, and where.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::named::Named;
use crate::error::{Error, cannot};
use crate::layout::Layout;

/// A folder or file of the host, or a volume, at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// What is there.
    pub source: Source,
    /// Where, in the container.
    pub destination: String,
    /// Whether the container may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// What is at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A folder or file of the host.
    Path {
        /// Where it is.
        path: PathBuf,
        /// Whether a folder is made if nothing is there.
        #[serde(default)]
        make: bool,
    },
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// Whether it is filled with what the image has at the destination, while it is empty.
        #[serde(default)]
        fill: bool,
    },
}

/// What a source turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

impl VolumeMount {
    /// Checks what can be checked without a look at the host, and brings the destination into order.
    pub fn check(mut self) -> Result<Self, Error> {
        let wrong = |problem: &str| {
            Err(Error::Invalid(format!(
                "`{}` cannot be a place for a volume: {problem}",
                self.destination
            )))
        };
        let path = Path::new(&self.destination);
        if !path.is_absolute() {
            return wrong("begin it with /");
        }
        let mut clean = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => return wrong("leave out the `..`"),
                _ => {}
            }
        }
        if clean == Path::new("/") {
            return wrong("the root is the image's");
        }
        // It came from a string.
        self.destination = clean.to_string_lossy().into_owned();
        Ok(self)
    }
}

/// Makes sure, when a container is made, that what it asks for is there, or makes it.
pub fn prepare(layout: &Layout, volumes: &[VolumeMount]) -> Result<(), Error> {
    for volume in volumes {
        match &volume.source {
            Source::Path { path, make } => resolve(path, *make).map(drop)?,
            Source::Volume { name, .. } => Named::obtain(layout, name).map(drop)?,
        }
    }
    Ok(())
}

/// Finds a source of the host: its path without links, and what is there.
pub fn resolve(path: &Path, make: bool) -> Result<(PathBuf, Kind), Error> {
    let failed = || format!("use {} as a volume", path.display());
    let found = match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && make => {
            fs::create_dir_all(path).map_err(cannot(failed()))?;
            fs::canonicalize(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Invalid(format!(
                "the source {} of a bind mount does not exist: make it first, or use --volume, which \
                 does",
                path.display()
            )));
        }
        found => found,
    };
    let found = found.map_err(cannot(failed()))?;
    let kind = fs::metadata(&found).map_err(cannot(failed()))?;
    let kind = match kind.is_dir() {
        true => Kind::Folder,
        false => Kind::File,
    };
    Ok((found, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(destination: &str) -> Result<VolumeMount, Error> {
        VolumeMount {
            source: Source::Volume {
                name: "v".into(),
                fill: true,
            },
            destination: destination.to_owned(),
            read_only: false,
        }
        .check()
    }

    #[test]
    fn destination_is_brought_into_order_or_refused() {
        for (given, clean) in [("/data/", "/data"), ("//a/./b", "/a/b")] {
            assert_eq!(at(given).expect("good").destination, clean);
        }
        for wrong in ["", "data", "/", "//", "/a/../b", "/.."] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn source_when_missing_is_made_only_if_that_was_said() {
        let dir = tempfile::tempdir().expect("folder");
        let missing = dir.path().join("a/b");
        let error = resolve(&missing, false).expect_err("missing");
        assert!(error.to_string().contains("does not exist"), "{error}");
        assert!(!missing.exists());
        let (found, kind) = resolve(&missing, true).expect("made");
        assert_eq!(kind, Kind::Folder);
        assert!(found.is_dir());
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("write");
        std::os::unix::fs::symlink(&file, dir.path().join("link")).expect("link");
        let (found, kind) = resolve(&dir.path().join("link"), false).expect("file");
        assert_eq!(kind, Kind::File);
        assert!(found.ends_with("file"));
    }
}
