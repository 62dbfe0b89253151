//! The images on this machine: an OCI image layout (image-spec image-layout.md), and the disks made of
//! the layers.
//!
//! ```text
//! oci-layout, index.json      which images there are; other programs can read them
//! blobs/sha256/HEX            manifests, configurations, layers as they came; never changed
//! disks/CHAIN.erofs           the layers of an image as one file system
//! trees/CHAIN.OWNERS/root     its files, where that cannot be mounted
//! ingest/                     what is being fetched; survives its process, and is gone on with
//! leases/, lock               who uses what
//! ```
//!
//! Whatever has its final name is complete and was checked before it got it: files are written under
//! another name and renamed. So any process may be killed at any moment; the next one finds a store
//! that is right, with some rubbish that the collector takes away.

mod blob;
mod disk;
mod garbage;
mod index;
mod layer;
mod lock;
mod tree;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

pub use blob::{BlobWriter, Ingest};
pub use garbage::Garbage;
pub use index::{RemoveOptions, Removed};
pub use layer::LayerReader;
pub(crate) use layer::decompress;
use lock::Guard;
pub use lock::{Held, Lease};
pub use tree::Owners;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result, in_manifest, io_error};
use crate::manifest::{Descriptor, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::reference::Reference;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A folder with images. Any number of processes and threads may use one at the same time.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// One image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name, unless another image took it over.
    pub name: Option<Reference>,
    /// Where it came from: a repository and the digest it has there, which may be an index's.
    pub source: Option<Reference>,
    /// The digest of its configuration, which Docker calls the image's ID.
    pub id: Digest,
    /// Its manifest.
    pub manifest: Descriptor,
    /// What to run, and how.
    pub config: ImageConfiguration,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// What it takes in the store, in bytes: configuration and layers, as they came.
    pub size: u64,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob, compressed or not.
    pub blob: Descriptor,
    /// The digest of the tar inside.
    pub diff_id: Digest,
}

impl Image {
    /// What to call it in a sentence: its name, or else its short ID.
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => name.familiar(),
            None => self.id.short(),
        }
    }

    /// The ID of its layer chain (OCI image-spec config.md#layer-chainid), which names its disk: images
    /// with the same content share one.
    pub fn chain_id(&self) -> Digest {
        let mut ids = self.layers.iter().map(|layer| layer.diff_id);
        let first = ids.next().unwrap_or_else(|| Digest::of(b""));
        ids.fold(first, |chain, diff_id| {
            Digest::of(format!("{chain} {diff_id}").as_bytes())
        })
    }
}

impl Store {
    /// Opens the store at `root`; makes an empty one if there is nothing.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Store {
            root: std::path::absolute(root).map_err(io_error("find", root))?,
        };
        for folder in ["blobs/sha256", "disks", "ingest", "leases"] {
            let path = store.path(folder);
            if path.is_dir() {
                continue;
            }
            // What is in images is nobody else's business.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(io_error("make", &path))?;
        }
        let missing = |name| !store.path(name).exists();
        if missing("oci-layout") || missing("index.json") {
            let guard = store.lock_exclusive()?;
            if missing("index.json") {
                store.write_index(Vec::new(), &guard)?;
            }
            store.replace("oci-layout", LAYOUT, &guard)?;
        }
        Ok(store)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All images, once for each of their names. One that cannot be read any more is left out: asking
    /// for it by name says why.
    pub fn images(&self) -> Result<Vec<Image>> {
        Ok(self
            .read_index()?
            .iter()
            .filter_map(|entry| self.read_image(entry).ok())
            .collect())
    }

    /// The image with this name.
    pub fn image(&self, reference: &Reference) -> Result<Image> {
        match index::by_reference(&self.read_index()?, reference) {
            Some(entry) => self.read_image(entry),
            None => Err(Error::NoSuchImage(reference.familiar())),
        }
    }

    /// The image that people mean: a name, an ID, or the beginning of an ID.
    pub fn find(&self, text: &str) -> Result<Image> {
        if let Ok(reference) = text.parse()
            && let Some(entry) = index::by_reference(&self.read_index()?, &reference)
        {
            return self.read_image(entry);
        }
        let begin = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = !begin.is_empty() && begin.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            // Not even a name: say what is wrong with it.
            text.parse::<Reference>()?;
            return Err(Error::NoSuchImage(text.into()));
        }
        let begin = begin.to_ascii_lowercase();
        let mut found: Option<Image> = None;
        for image in self.images()? {
            let matches = image.id.hex().starts_with(&begin)
                || image.manifest.digest.hex().starts_with(&begin);
            match &found {
                Some(other) if matches && other.id != image.id => {
                    return Err(Error::Ambiguous(text.into()));
                }
                None if matches => found = Some(image),
                _ => (),
            }
        }
        found.ok_or_else(|| Error::NoSuchImage(text.into()))
    }

    /// Gives the image one more name. Whatever had the name stays, without it.
    pub fn tag(&self, image: &Image, name: &Reference) -> Result<Image> {
        // It could have been removed since it was looked up.
        let lease = self.lease()?;
        lease.hold(Held::Image(image.manifest.digest))?;
        self.record(&image.manifest, Some(name), image.source.as_ref())
    }

    /// The image with this manifest, whether or not it has a name.
    pub fn image_of(&self, manifest: &Digest) -> Result<Image> {
        let listed = self.read_index()?;
        if let Some(entry) = listed.iter().find(|entry| entry.digest == *manifest) {
            return self.read_image(entry);
        }
        let path = self.blob_path(manifest);
        let found = fs::metadata(&path).map_err(|_| Error::Lost(*manifest))?;
        self.read_image(&Descriptor::new("", *manifest, found.len()))
    }

    fn read_image(&self, entry: &Descriptor) -> Result<Image> {
        let (name, source) = (index::name(entry), index::source(entry));
        let title = match &name {
            Some(name) => format!("image {}", name.familiar()),
            None => format!("image {}", entry.digest.short()),
        };
        let bytes = self.read_document(entry, MAX_MANIFEST)?;
        let manifest = Manifest::parse(&bytes).map_err(in_manifest(&title))?;
        let bytes = self.read_document(&manifest.config, MAX_CONFIG)?;
        let (config, diff_ids) = manifest.parse_config(&bytes).map_err(in_manifest(&title))?;
        let sizes = manifest.layers.iter().map(|layer| layer.size);
        Ok(Image {
            name,
            source,
            id: manifest.config.digest,
            size: sizes.fold(manifest.config.size, u64::saturating_add),
            manifest: Descriptor::new(manifest.media_type(), entry.digest, entry.size),
            config,
            layers: manifest
                .layers
                .into_iter()
                .zip(diff_ids)
                .map(|(blob, diff_id)| Layer { blob, diff_id })
                .collect(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.hex())
    }

    fn disk_path(&self, chain: &Digest) -> PathBuf {
        self.path("disks").join(format!("{}.erofs", chain.hex()))
    }

    /// Puts a small file in the place of another, so that there is always one of the two.
    fn replace(&self, name: &str, bytes: &[u8], guard: &Guard) -> Result<()> {
        use std::io::Write;
        let path = self.path(name);
        let mut file = self.temporary_locked(guard)?;
        file.write_all(bytes)
            .and_then(|()| file.as_file().sync_data())
            .map_err(io_error("write", file.path()))?;
        file.persist(&path)
            .map_err(|e| io_error("replace", &path)(e.error))?;
        Ok(())
    }
}

/// Hashes a file from where it stands to its end.
fn hash_file(file: &mut fs::File, hasher: &mut Hasher) -> std::io::Result<()> {
    use std::io::Read;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
