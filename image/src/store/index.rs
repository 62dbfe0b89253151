//! `index.json`: which images there are, and what they are called.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use super::lock::Guard;
use super::{Garbage, Image, Store};
use crate::digest::Digest;
use crate::error::{Error, Result, in_manifest, io_error};
use crate::manifest::{Descriptor, Document, Index, ManifestError, media_type};
use crate::reference::Reference;

/// The OCI's annotation for names in a layout. Ours have nothing left out.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The repository an image came from, with the digest it has there.
const SOURCE: &str = "bulkhead.source";
/// The longest `index.json`, in bytes: some 100,000 images.
const MAX_INDEX: u64 = 32 << 20;

/// The name of an entry.
pub(super) fn name(entry: &Descriptor) -> Option<Reference> {
    entry.annotation(NAME)?.parse().ok()
}

/// The source of an entry.
pub(super) fn source(entry: &Descriptor) -> Option<Reference> {
    entry.annotation(SOURCE)?.parse().ok()
}

/// The entry that `wanted` names. A digest may be the manifest's or that of the index it came by.
pub(super) fn by_reference<'a>(
    entries: &'a [Descriptor],
    wanted: &Reference,
) -> Option<&'a Descriptor> {
    let Some(digest) = wanted.digest() else {
        return entries
            .iter()
            .find(|entry| name(entry).as_ref() == Some(wanted));
    };
    entries.iter().find(|entry| {
        let (name, source) = (name(entry), source(entry));
        let here = |reference: &Reference| reference.repository() == wanted.repository();
        entry.digest == digest && (name.iter().any(here) || source.iter().any(here))
            || source.is_some_and(|source| here(&source) && source.digest() == Some(digest))
    })
}

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Also if the image has several names, or containers use it (they keep what they need).
    pub force: bool,
}

/// What was done to remove an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// This name is gone.
    Untagged(Reference),
    /// The image with this ID is gone.
    Deleted(Digest),
}

impl Store {
    pub(super) fn read_index(&self) -> Result<Vec<Descriptor>> {
        let path = self.path("index.json");
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_INDEX).read_to_end(&mut bytes))
            .map_err(io_error("read", &path))?;
        match Document::parse(&bytes) {
            Ok(Document::Index(index)) => Ok(index.manifests),
            Ok(Document::Manifest(_)) => Err(ManifestError::Neither),
            Err(e) => Err(e),
        }
        .map_err(in_manifest(path.display()))
    }

    pub(super) fn write_index(&self, entries: Vec<Descriptor>, guard: &Guard) -> Result<()> {
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::INDEX.into()),
            manifests: entries,
            annotations: None,
        };
        let path = self.path("index.json");
        let bytes = serde_json::to_vec(&index).map_err(|e| io_error("write", &path)(e.into()))?;
        self.replace("index.json", &bytes, guard)
    }

    /// Lists an image under this name, or under none. Its blobs are here and held by a lease. Whatever
    /// had the name stays, without it.
    pub fn record(
        &self,
        manifest: &Descriptor,
        new_name: Option<&Reference>,
        source: Option<&Reference>,
    ) -> Result<Image> {
        let guard = self.lock_exclusive()?;
        let mut entries = self.read_index()?;
        if let Some(new_name) = new_name {
            take_name(&mut entries, new_name);
            // The same image without a name is this one.
            entries.retain(|entry| entry.digest != manifest.digest || name(entry).is_some());
        } else if let Some(entry) = entries.iter().find(|entry| entry.digest == manifest.digest) {
            return self.read_image(entry);
        }
        let mut annotations = BTreeMap::new();
        for (key, value) in [(NAME, new_name), (SOURCE, source)] {
            if let Some(value) = value {
                annotations.insert(key.to_owned(), value.to_string());
            }
        }
        let entry = Descriptor {
            annotations: Some(annotations),
            ..Descriptor::new(&manifest.media_type, manifest.digest, manifest.size)
        };
        // Only what can be read again is listed.
        let image = self.read_image(&entry)?;
        entries.push(entry);
        self.write_index(entries, &guard)?;
        Ok(image)
    }

    /// Removes a name, and the image with its last name; or an image by its ID. Then collects garbage.
    /// `in_use` tells the manifests that containers are made of, at the moment it is called.
    pub fn remove(
        &self,
        text: &str,
        options: RemoveOptions,
        in_use: &dyn Fn() -> Result<Vec<Digest>>,
    ) -> Result<Vec<Removed>> {
        let image = self.find(text)?;
        let by_name = text
            .parse::<Reference>()
            .ok()
            .filter(|reference| reference.digest().is_none());
        let mut removed = Vec::new();
        {
            let guard = self.lock_exclusive()?;
            let mut entries = self.read_index()?;
            let same = |entry: &Descriptor| entry.digest == image.manifest.digest;
            let names: Vec<Reference> = entries
                .iter()
                .filter(|entry| same(entry))
                .filter_map(name)
                .collect();
            let by_name = by_name.filter(|wanted| names.contains(wanted));
            let rest = match &by_name {
                Some(_) => names.len() - 1,
                None => 0,
            };
            if by_name.is_none() && names.len() > 1 && !options.force {
                let names: Vec<String> = names.iter().map(Reference::familiar).collect();
                return Err(Error::ManyNames {
                    id: image.id.short(),
                    names: names.join(", "),
                });
            }
            if rest == 0 && !options.force && in_use()?.contains(&image.manifest.digest) {
                return Err(Error::InUse(image.title()));
            }
            entries.retain(|entry| !same(entry) || by_name.is_some() && name(entry) != by_name);
            self.write_index(entries, &guard)?;
            match by_name {
                Some(name) => removed.push(Removed::Untagged(name)),
                None => removed.extend(names.into_iter().map(Removed::Untagged)),
            }
            if rest == 0 {
                removed.push(Removed::Deleted(image.id));
            }
        }
        self.collect_garbage(in_use)?;
        Ok(removed)
    }

    /// Removes the images that have no name, or, with `all`, every image that no container uses. Then
    /// collects garbage.
    pub fn prune(
        &self,
        all: bool,
        in_use: &dyn Fn() -> Result<Vec<Digest>>,
    ) -> Result<(Vec<Removed>, Garbage)> {
        let images = self.images()?;
        let mut removed = Vec::new();
        {
            let guard = self.lock_exclusive()?;
            let used = in_use()?;
            let (gone, stay): (Vec<_>, Vec<_>) = self
                .read_index()?
                .into_iter()
                .partition(|entry| (all || name(entry).is_none()) && !used.contains(&entry.digest));
            removed.extend(gone.iter().filter_map(name).map(Removed::Untagged));
            for image in images {
                let digest = image.manifest.digest;
                let deleted = Removed::Deleted(image.id);
                if gone.iter().any(|entry| entry.digest == digest)
                    && !stay.iter().any(|entry| entry.digest == digest)
                    && !removed.contains(&deleted)
                {
                    removed.push(deleted);
                }
            }
            self.write_index(stay, &guard)?;
        }
        Ok((removed, self.collect_garbage(in_use)?))
    }
}

/// Takes a name away from whatever has it.
fn take_name(entries: &mut Vec<Descriptor>, taken: &Reference) {
    let Some(at) = entries
        .iter()
        .position(|entry| name(entry).as_ref() == Some(taken))
    else {
        return;
    };
    let digest = entries[at].digest;
    if entries
        .iter()
        .filter(|entry| entry.digest == digest)
        .count()
        > 1
    {
        entries.remove(at);
    } else if let Some(annotations) = &mut entries[at].annotations {
        annotations.remove(NAME);
    }
}
