//! Importing: a tar archive of a root's files becomes an image of one layer.

use std::io::{BufReader, Read, Write};
use std::path::Path;

use jiff::Timestamp;
use serde_json::json;

use super::changes::apply;
use super::in_archive;
use super::load::contents_digest;
use crate::digest::Digest;
use crate::error::{Result, io_error};
use crate::layers::tar::{Archive, Entry};
use crate::manifest::{Descriptor, Manifest, Platform, media_type};
use crate::progress::{Progress, State};
use crate::reference::Reference;
use crate::store::{Held, Image, Store, decompress};

const BUFFER: usize = 256 << 10;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// What to call the image.
    pub name: Option<Reference>,
    /// Dockerfile instructions for its configuration: `CMD ["/bin/sh"]`, `ENV A=b`.
    pub changes: Vec<String>,
    /// What history says about it.
    pub message: Option<String>,
    /// What it is for, if not this machine.
    pub platform: Option<Platform>,
}

/// Makes an image of the archive that `stream` is, which may be packed with gzip or zstd. `path` is what
/// errors call it.
pub fn import(
    store: &Store,
    mut stream: impl Read,
    path: &Path,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    let bad = in_archive(path);
    // Before anything is copied: a mistake in them is found at once.
    let runs = apply(&options.changes)?;
    let lease = store.lease()?;
    let mut writer = store.blob_writer()?;
    let item = path.display().to_string();
    let mut buffer = vec![0; BUFFER];
    let mut begin = Vec::new();
    let mut done = 0;
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(io_error("read", path)(e)),
        };
        if begin.len() < 4 {
            begin.extend(buffer[..n].iter().take(4));
        }
        writer
            .write_all(&buffer[..n])
            .map_err(io_error("write", store.root()))?;
        done += n as u64;
        progress.report(&item, State::Reading(done, done));
    }
    let (digest, size) = writer.commit(&lease, None)?;
    let kind = match begin.get(..4) {
        Some([0x1f, 0x8b, ..]) => media_type::LAYER_GZIP,
        Some([0x28, 0xb5, 0x2f, 0xfd]) => media_type::LAYER_ZSTD,
        _ => media_type::LAYER,
    };
    let layer = Descriptor::new(kind, digest, size);
    // That it is an archive is seen by its first entry; the rest is looked at when its disk is made.
    let begin = decompress(BufReader::with_capacity(BUFFER, store.open_blob(&layer)?))
        .map_err(|e| bad(format!("it is no archive: {e}")))?;
    match Archive::new(begin.take(16 << 20), u64::MAX).next_entry(&mut Entry::default()) {
        Ok(true) => (),
        Ok(false) => return Err(bad("it is empty".into())),
        Err(e) => return Err(bad(format!("it is no tar archive: {e}"))),
    }
    let diff_id: Digest = match kind {
        media_type::LAYER => digest,
        _ => contents_digest(store.open_blob(&layer)?).map_err(|e| bad(e.to_string()))?,
    };

    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let now = Timestamp::now().to_string();
    let comment = match &options.message {
        Some(message) => message.clone(),
        None => format!("Imported from {}", path.display()),
    };
    let mut config = json!({
        "created": now,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": runs,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": now, "comment": comment}],
    });
    if let Some(variant) = platform.variant {
        config["variant"] = variant.into();
    }
    let config = store.add_blob(&lease, media_type::CONFIG, config.to_string().as_bytes())?;
    let manifest = Manifest::new(config, vec![layer]);
    let bytes = serde_json::to_vec(&manifest).map_err(|e| bad(e.to_string()))?;
    let manifest = store.add_blob(&lease, media_type::MANIFEST, &bytes)?;
    lease.hold(Held::Image(manifest.digest))?;
    let image = store.record(&manifest, options.name.as_ref(), None)?;
    progress.report(&item, State::Done);
    Ok(image)
}
