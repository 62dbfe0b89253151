//! A bundle: a configuration, and the root filesystem that it names.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_container::spec::Spec;

use crate::failure::{Outcome, cannot};

/// What a container is made from.
pub struct Source {
    /// Absolute.
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub spec: Spec,
    /// The configuration as it is written.
    pub text: Vec<u8>,
}

impl Source {
    /// Reads a bundle's configuration, or that of another file.
    pub fn read(bundle: &Path, config: Option<&Path>) -> Outcome<Source> {
        let open = |path: &Path| {
            fs::canonicalize(path).map_err(cannot(format_args!("open {}", path.display())))
        };
        let bundle = open(bundle)?;
        let path = bundle.join(config.unwrap_or(Path::new("config.json")));
        let text = fs::read(&path).map_err(cannot(format_args!("open {}", path.display())))?;
        let spec: Spec = serde_json::from_slice(&text)
            .map_err(cannot(format_args!("read {}", path.display())))?;
        let root = spec.root.as_ref().ok_or("root: there is none".to_owned())?;
        let rootfs = open(&bundle.join(&root.path))?;
        Ok(Source {
            bundle,
            rootfs,
            spec,
            text,
        })
    }
}
