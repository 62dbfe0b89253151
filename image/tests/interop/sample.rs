//! Images to try things with.

use std::fs;
use std::path::Path;

use bulkhead_image::archive::{LoadOptions, load};
use bulkhead_image::progress::Silent;
use bulkhead_image::{Digest, Image, Reference, Store};
use tempfile::TempDir;

use crate::tools::{run, umoci};

/// A folder for a test, with a store in it.
pub struct Place {
    pub folder: TempDir,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(&folder.path().join("store")).expect("store");
        Place { folder, store }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

pub fn name(text: &str) -> Reference {
    text.parse().expect(text)
}

/// Bytes that cannot be compressed, the same for the same seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// umoci makes an OCI layout whose image `it` has `layers` layers of `size` bytes.
pub fn layout(folder: &Path, layers: u64, size: usize) -> std::path::PathBuf {
    let layout = folder.join("layout");
    run(umoci().args(["init", "--layout"]).arg(&layout));
    let image = format!("{}:it", layout.display());
    run(umoci().args(["new", "--image", &image]));
    for n in 0..layers {
        let file = folder.join(format!("file{n}"));
        fs::write(&file, noise(n + 1, size)).expect("written");
        run(umoci()
            .args(["insert", "--image", &image])
            .arg(&file)
            .arg(format!("/file{n}")));
    }
    run(umoci().args(["config", "--image", &image]).args([
        "--config.cmd",
        "/file0",
        "--config.env",
        "A=b c",
    ]));
    layout
}

/// The same in a store, under this name.
pub fn loaded(place: &Place, title: &str, layers: u64, size: usize) -> Image {
    let layout = layout(place.folder.path(), layers, size);
    let options = LoadOptions {
        name: Some(name(title)),
        ..LoadOptions::default()
    };
    let images = load(&place.store, &layout, &options, &Silent).expect("loaded");
    assert_eq!(images.len(), 1);
    images.into_iter().next().expect("one")
}

/// Sees that an image is whole: every blob is what its name says, and the layers make a disk.
pub fn check(store: &Store, image: &Image) {
    for blob in image
        .layers
        .iter()
        .map(|layer| &layer.blob)
        .chain([&image.manifest])
    {
        let bytes = fs::read(store.root().join("blobs/sha256").join(blob.digest.hex()));
        let bytes = bytes.expect("blob");
        assert_eq!(Digest::of(&bytes), blob.digest);
        assert_eq!(bytes.len() as u64, blob.size);
    }
    let disk = store.disk(image, &Silent).expect("disk");
    assert!(fs::metadata(disk).expect("disk").len() > 0);
}

/// The files below a folder, by name.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("folder")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}
