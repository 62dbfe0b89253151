//! Loading: archives of `docker save`, OCI archives, and OCI layouts as directories.
//!
//! An archive is read once, from front to back, so that it may come through a pipe: each of its files
//! goes into the store as a blob, and when all are there, it is seen which of them make images. The
//! rest is garbage, which nobody holds any more.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::in_archive;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result, in_manifest, io_error};
use crate::layers::Limits;
use crate::layers::tar::{Archive, Entry, Kind};
use crate::manifest::{
    Descriptor, Document, Index, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, Manifest, Platform,
    media_type, parse_config,
};
use crate::progress::{Progress, State};
use crate::reference::Reference;
use crate::store::{Held, Image, Lease, Store, decompress};

/// The most files an archive may have. `docker save` makes three or four per layer.
const MAX_FILES: usize = 65_536;
/// The longest name of a file that is looked at.
const MAX_NAME: usize = 512;
/// How many links may lead to one another.
const MAX_LINKS: usize = 4;
/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 3;
const BUFFER: usize = 256 << 10;
/// The annotation in which containerd and Docker have the whole name; the OCI's often has the tag only.
const WHOLE_NAME: &str = "io.containerd.image.name";
const NAME: &str = "org.opencontainers.image.ref.name";

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// What to call an image whose archive does not say it.
    pub name: Option<Reference>,
    /// Which image of a multi-platform one, if not this machine's.
    pub platform: Option<Platform>,
}

/// Loads all images of the archive or directory at `path`.
pub fn load(
    store: &Store,
    path: &Path,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Vec<Image>> {
    let metadata = fs::metadata(path).map_err(io_error("open", path))?;
    if metadata.is_dir() {
        let lease = store.lease()?;
        let files = Files::Folder(path.to_owned());
        return Loading::new(store, &lease, path, files, progress).images(options);
    }
    let file = File::open(path).map_err(io_error("open", path))?;
    load_stream(store, file, path, options, progress)
}

/// Loads all images of an archive that comes as a stream. `path` is what errors call it.
pub fn load_stream(
    store: &Store,
    stream: impl Read + Send,
    path: &Path,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Vec<Image>> {
    let lease = store.lease()?;
    let files = read_archive(store, &lease, stream, path, progress)?;
    Loading::new(store, &lease, path, files, progress).images(options)
}

/// A file of an archive: its blob in the store, or what it is another name of.
#[derive(Debug, Clone)]
enum Found {
    Blob(Digest, u64),
    Link(String),
}

/// What there is to load from.
enum Files {
    /// By their names in the archive.
    Archive(HashMap<String, Found>),
    /// Still in their directory.
    Folder(PathBuf),
}

fn read_archive(
    store: &Store,
    lease: &Lease<'_>,
    stream: impl Read + Send,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Files> {
    let bad = in_archive(path);
    let stream = decompress(BufReader::with_capacity(BUFFER, stream))
        .map_err(|e| bad(format!("it is no archive: {e}")))?;
    // No more than a disk may be made of: a bomb ends there, if the store's disk has not before.
    let mut archive = Archive::new(stream, Limits::default().layer_bytes);
    let mut entry = Entry::default();
    let mut files = HashMap::new();
    while archive
        .next_entry(&mut entry)
        .map_err(|e| bad(format!("it is no sound tar archive: {e}")))?
    {
        let Some(name) = clean_name(&entry.path) else {
            continue;
        };
        if files.len() == MAX_FILES {
            return Err(bad(format!("it has more than {MAX_FILES} files")));
        }
        let found = match entry.kind {
            Kind::Regular if entry.pieces.is_some() => {
                return Err(bad(format!("its file {name:?} has holes")));
            }
            Kind::Regular => {
                let mut writer = store.blob_writer()?;
                let item = short_item(&name);
                copy(&mut archive, &mut writer, entry.size, |done| {
                    progress.report(&item, State::Reading(done, entry.size));
                })
                .map_err(|e| bad(format!("cannot copy its file {name:?}: {e}")))?;
                let (digest, size) = writer.commit(lease, None)?;
                progress.report(&item, State::Done);
                Found::Blob(digest, size)
            }
            Kind::HardLink => match clean_name(&entry.link) {
                Some(target) => Found::Link(target),
                None => continue,
            },
            Kind::Symlink => match relative(&name, &entry.link) {
                Some(target) => Found::Link(target),
                None => continue,
            },
            _ => continue,
        };
        files.insert(name, found);
    }
    Ok(Files::Archive(files))
}

/// Copies exactly `size` bytes.
fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    size: u64,
    mut told: impl FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(BUFFER).clamp(1, BUFFER)];
    let mut done = 0;
    loop {
        match from.read(&mut buffer)? {
            0 if done == size => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                to.write_all(&buffer[..n])?;
                done += n as u64;
                told(done);
            }
        }
    }
}

/// What the progress of a file is shown as: the digest it is named after, or its name.
fn short_item(name: &str) -> String {
    let digest = name
        .split(['/', '.'])
        .find_map(|part| Digest::from_hex(part).ok());
    digest.map_or_else(|| name.to_owned(), |digest| digest.short())
}

/// A name without `.` and leading slashes; none that leaves the archive.
fn clean_name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    if text.len() > MAX_NAME {
        return None;
    }
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// What a symbolic link at `name` points to. Docker used `../ID/layer.tar`.
fn relative(name: &str, link: &[u8]) -> Option<String> {
    let link = std::str::from_utf8(link).ok()?;
    if link.starts_with('/') || link.len() > MAX_NAME {
        return None;
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    clean_name(parts.join("/").as_bytes())
}

/// One image in the `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

struct Loading<'a> {
    store: &'a Store,
    lease: &'a Lease<'a>,
    path: &'a Path,
    files: Files,
    progress: &'a dyn Progress,
}

impl<'a> Loading<'a> {
    fn new(
        store: &'a Store,
        lease: &'a Lease<'a>,
        path: &'a Path,
        files: Files,
        progress: &'a dyn Progress,
    ) -> Self {
        Loading {
            store,
            lease,
            path,
            files,
            progress,
        }
    }

    fn bad(&self, why: impl ToString) -> Error {
        in_archive(self.path)(why.to_string())
    }

    fn images(&self, options: &LoadOptions) -> Result<Vec<Image>> {
        // Where there are both, the index says more: names of several platforms, media types.
        let mut loaded = if let Some(bytes) = self.small("index.json", MAX_MANIFEST)? {
            self.layout(&bytes, options)?
        } else if let Some(bytes) = self.small("manifest.json", MAX_MANIFEST)? {
            self.docker(&bytes)?
        } else {
            return Err(self.bad("it has neither an index.json nor a manifest.json, so it is no image; `bulkhead import` takes the files of a root"));
        };
        let mut images = Vec::new();
        let nameless = loaded.iter().filter(|(_, names)| names.is_empty()).count();
        for (manifest, names) in &mut loaded {
            if let Some(name) = &options.name
                && names.is_empty()
                && nameless == 1
            {
                names.push(name.clone());
            }
            self.lease.hold(Held::Image(manifest.digest))?;
            if names.is_empty() {
                images.push(self.store.record(manifest, None, None)?);
            }
            for name in names {
                images.push(self.store.record(manifest, Some(name), None)?);
            }
        }
        if images.is_empty() {
            return Err(self.bad("there is no image in it"));
        }
        Ok(images)
    }

    /// Reads a small file, if it is there.
    fn small(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        match &self.files {
            Files::Archive(_) => match self.lookup(name)? {
                Some((digest, size)) => self
                    .store
                    .read_document(&Descriptor::new("", digest, size), most)
                    .map(Some),
                None => Ok(None),
            },
            Files::Folder(folder) => {
                let path = folder.join(name);
                let Some((file, _)) = self.open(&path)? else {
                    return Ok(None);
                };
                let mut bytes = Vec::new();
                file.take(most.saturating_add(1))
                    .read_to_end(&mut bytes)
                    .map_err(io_error("read", &path))?;
                if bytes.len() as u64 > most {
                    return Err(self.bad(format!("its {name} is longer than {most} bytes")));
                }
                Ok(Some(bytes))
            }
        }
    }

    /// Finds a file of the archive by its name, or puts that of a directory into the store.
    fn lookup(&self, name: &str) -> Result<Option<(Digest, u64)>> {
        let files = match &self.files {
            Files::Archive(files) => files,
            Files::Folder(folder) => return self.take(folder, name),
        };
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match files.get(name) {
                None => return Ok(None),
                Some(Found::Blob(digest, size)) => return Ok(Some((*digest, *size))),
                Some(Found::Link(target)) => name = target,
            }
        }
        Ok(None)
    }

    /// Opens a file of the folder, if it is there, and tells its size.
    fn open(&self, path: &Path) -> Result<Option<(File, u64)>> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open", path)(e)),
        };
        // To open a pipe would be to wait for somebody who writes to it.
        if !metadata.is_file() {
            return Err(self.bad(format!("{} is no file", path.display())));
        }
        let file = File::open(path).map_err(io_error("open", path))?;
        Ok(Some((file, metadata.len())))
    }

    fn take(&self, folder: &Path, name: &str) -> Result<Option<(Digest, u64)>> {
        let Some(name) = clean_name(name.as_bytes()) else {
            return Ok(None);
        };
        let path = folder.join(&name);
        let Some((file, size)) = self.open(&path)? else {
            return Ok(None);
        };
        let item = short_item(&name);
        let mut writer = self.store.blob_writer()?;
        copy(&mut file.take(size), &mut writer, size, |done| {
            self.progress.report(&item, State::Reading(done, size));
        })
        .map_err(io_error("copy", &path))?;
        let taken = writer.commit(self.lease, None)?;
        self.progress.report(&item, State::Done);
        Ok(Some(taken))
    }

    /// Brings a blob of a layout into the store, if it is not there.
    fn blob(&self, blob: &Descriptor) -> Result<()> {
        if self.store.has_blob(self.lease, blob)? {
            return Ok(());
        }
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        let found = self.lookup(&name)?;
        match found {
            Some(found) if found == (blob.digest, blob.size) => Ok(()),
            Some((found, _)) if found != blob.digest => Err(Error::Damaged {
                what: format!("{name} in {}", self.path.display()),
                expected: blob.digest,
                found,
            }),
            Some((_, found)) => Err(Error::Size {
                what: format!("{name} in {}", self.path.display()),
                expected: blob.size,
                found,
            }),
            None => Err(self.bad(format!("it has no {name}; it is not complete"))),
        }
    }

    fn document(&self, blob: &Descriptor) -> Result<Document> {
        self.blob(blob)?;
        let bytes = self.store.read_document(blob, MAX_MANIFEST)?;
        Document::parse(&bytes).map_err(in_manifest(self.path.display()))
    }

    /// The images of an OCI layout (image-spec image-layout.md).
    fn layout(
        &self,
        bytes: &[u8],
        options: &LoadOptions,
    ) -> Result<Vec<(Descriptor, Vec<Reference>)>> {
        let Document::Index(index) =
            Document::parse(bytes).map_err(in_manifest(self.path.display()))?
        else {
            return Err(self.bad("its index.json is no index"));
        };
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let mut loaded: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
        for entry in &index.manifests {
            let Some(manifest) = self.resolve(entry, &platform, 0)? else {
                continue;
            };
            let names: Vec<Reference> = name_of(entry).into_iter().collect();
            match loaded
                .iter_mut()
                .find(|(known, _)| known.digest == manifest.digest)
            {
                Some((_, known)) => known.extend(names),
                None => loaded.push((manifest, names)),
            }
        }
        if loaded.is_empty() {
            // One for several platforms, spread out, of which none is ours: say which there are.
            Index::choose(&index, &platform).map_err(in_manifest(self.path.display()))?;
        }
        Ok(loaded)
    }

    /// The manifest that an entry means, with all that belongs to it. None: another platform's, or no
    /// image at all.
    fn resolve(
        &self,
        entry: &Descriptor,
        platform: &Platform,
        depth: usize,
    ) -> Result<Option<Descriptor>> {
        if let Some(offered) = &entry.platform
            && depth == 0
            && !platform.takes(offered)
        {
            return Ok(None);
        }
        if depth == MAX_DEPTH {
            return Err(self.bad("its indexes name only further indexes"));
        }
        match self.document(entry)? {
            Document::Index(index) => {
                let chosen = index
                    .choose(platform)
                    .map_err(in_manifest(self.path.display()))?;
                self.resolve(chosen, platform, depth + 1)
            }
            Document::Manifest(manifest) => {
                manifest
                    .check_image()
                    .map_err(in_manifest(self.path.display()))?;
                self.blob(&manifest.config)?;
                let config = self.store.read_document(&manifest.config, MAX_CONFIG)?;
                manifest
                    .parse_config(&config)
                    .map_err(in_manifest(self.path.display()))?;
                for layer in &manifest.layers {
                    self.blob(layer)?;
                }
                Ok(Some(Descriptor::new(
                    manifest.media_type(),
                    entry.digest,
                    entry.size,
                )))
            }
        }
    }

    /// The images of `docker save`: configurations and layers, for which manifests are made here.
    fn docker(&self, bytes: &[u8]) -> Result<Vec<(Descriptor, Vec<Reference>)>> {
        let saved: Vec<Saved> = serde_json::from_slice(bytes)
            .map_err(|e| self.bad(format!("its manifest.json is not what it should be: {e}")))?;
        saved.iter().map(|saved| self.saved(saved)).collect()
    }

    fn saved(&self, saved: &Saved) -> Result<(Descriptor, Vec<Reference>)> {
        let missing = |name: &str| self.bad(format!("it has no {name:?}; it is not complete"));
        if saved.layers.len() > MAX_LAYERS {
            return Err(self.bad(format!("it has more than {MAX_LAYERS} layers")));
        }
        let (digest, size) = self
            .lookup(&saved.config)?
            .ok_or_else(|| missing(&saved.config))?;
        let config = Descriptor::new(media_type::CONFIG, digest, size);
        let bytes = self.store.read_document(&config, MAX_CONFIG)?;
        let (_, diff_ids) = parse_config(&bytes).map_err(in_manifest(self.path.display()))?;

        let mut layers = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(&diff_ids) {
            let (digest, size) = self.lookup(name)?.ok_or_else(|| missing(name))?;
            let mut layer = Descriptor::new(media_type::LAYER, digest, size);
            if digest != *diff_id {
                layer.media_type = self.compressed_layer(&layer, *diff_id)?.into();
            }
            layers.push(layer);
        }
        let manifest = Manifest::new(config, layers);
        if saved.layers.len() != diff_ids.len() {
            manifest
                .parse_config(&bytes)
                .map_err(in_manifest(self.path.display()))?;
            return Err(self.bad("its layers are not those of its configuration"));
        }
        let bytes = serde_json::to_vec(&manifest).map_err(|e| self.bad(e))?;
        let manifest = self
            .store
            .add_blob(self.lease, media_type::MANIFEST, &bytes)?;
        let names = saved.repo_tags.iter().flatten();
        Ok((
            manifest,
            names.filter_map(|name| name.parse().ok()).collect(),
        ))
    }

    /// Checks a layer that is packed, though `docker save` does not pack them, and returns its type.
    fn compressed_layer(&self, layer: &Descriptor, diff_id: Digest) -> Result<&'static str> {
        let mut file = self.store.open_blob(layer)?;
        let mut begin = [0; 2];
        let kind = match file.read_exact(&mut begin) {
            Ok(()) if begin == [0x1f, 0x8b] => media_type::LAYER_GZIP,
            _ => media_type::LAYER_ZSTD,
        };
        let file = self.store.open_blob(layer)?;
        let found = contents_digest(file).map_err(|e| self.bad(e))?;
        if found != diff_id {
            return Err(Error::Damaged {
                what: format!("a layer in {}", self.path.display()),
                expected: diff_id,
                found,
            });
        }
        Ok(kind)
    }
}

/// The digest of what is packed in a file.
pub(super) fn contents_digest(file: File) -> io::Result<Digest> {
    let mut contents = decompress(BufReader::with_capacity(BUFFER, file))?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    // A disk cannot be made of more, and a bomb would keep us busy for years.
    let most = Limits::default().layer_bytes;
    while hasher.len() <= most {
        match contents.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
    let why = format!("unpacked it has more than {most} bytes");
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// The name that an entry of an index gives. A tag alone is no name: nobody knows of what.
fn name_of(entry: &Descriptor) -> Option<Reference> {
    let whole = entry.annotation(WHOLE_NAME);
    let name = whole.or_else(|| {
        entry
            .annotation(NAME)
            .filter(|name| name.contains([':', '/']))
    })?;
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_when_it_leaves_the_archive_is_none() {
        assert_eq!(clean_name(b"./a//b/"), Some("a/b".into()));
        assert_eq!(clean_name(b"/a"), Some("a".into()));
        for bad in [
            &b""[..],
            b".",
            b"/",
            b"../a",
            b"a/../b",
            b"\xff",
            &[b'a'; 600],
        ] {
            assert_eq!(clean_name(bad), None);
        }
        assert_eq!(
            relative("a/layer.tar", b"../b/layer.tar"),
            Some("b/layer.tar".into())
        );
        assert_eq!(relative("a/layer.tar", b"../../b"), None);
        assert_eq!(relative("a", b"/etc/passwd"), None);
    }

    #[test]
    fn name_of_an_entry_is_never_a_tag_alone() {
        let entry = |key: &str, value: &str| {
            let mut entry = Descriptor::new("", Digest::of(b""), 0);
            entry.annotations = Some([(key.to_owned(), value.to_owned())].into());
            name_of(&entry).map(|name| name.familiar())
        };
        assert_eq!(entry(NAME, "latest"), None);
        assert_eq!(entry(NAME, "busybox:1"), Some("busybox:1".into()));
        assert_eq!(
            entry(WHOLE_NAME, "docker.io/library/a:b"),
            Some("a:b".into())
        );
        assert_eq!(entry(NAME, "../x:y"), None);
    }
}
