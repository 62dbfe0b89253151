//! Saving: archives that Docker, Podman, skopeo and everybody else load.
//!
//! Both formats are the same files: an OCI layout, with layers as they are in the store. Docker's has a
//! `manifest.json` besides, as Docker's own has had both since version 25; it is what older programs
//! read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::json;

use crate::digest::Digest;
use crate::error::{Error, Result, in_manifest, io_error};
use crate::manifest::{Descriptor, Index, MAX_MANIFEST, Manifest, media_type};
use crate::progress::{Progress, State};
use crate::store::{Held, Image, Lease, Store};

const BLOCK: usize = 512;
const BUFFER: usize = 256 << 10;
/// The largest size that fits a header's octal digits.
const MAX_OCTAL: u64 = (1 << 33) - 1;

/// What kind of archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For `docker load`, and everything else.
    #[default]
    Docker,
    /// An OCI layout and nothing else.
    Oci,
}

/// Writes an archive of these images to `out`.
pub fn save(
    store: &Store,
    images: &[Image],
    out: &mut dyn Write,
    format: Format,
    progress: &dyn Progress,
) -> Result<()> {
    let lease = store.lease()?;
    let mut saving = Saving {
        store,
        lease: &lease,
        tar: Tar { out },
        written: BTreeSet::new(),
        progress,
    };
    let mut entries = Vec::new();
    // As Docker groups them: one for each image, with all its names.
    let mut docker: Vec<(Digest, Vec<String>, Manifest)> = Vec::new();
    for image in images {
        let (descriptor, manifest) = saving.image(image)?;
        let mut annotations = BTreeMap::new();
        let name = image.name.as_ref();
        if let Some(name) = name {
            let tag = name.tag().unwrap_or_default().to_owned();
            annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        }
        entries.push(Descriptor {
            annotations: Some(annotations),
            ..descriptor
        });
        let names = name.filter(|name| name.tag().is_some());
        let names = names.map(|name| name.familiar());
        match docker.iter_mut().find(|(id, ..)| *id == image.id) {
            Some((_, known, _)) => known.extend(names),
            None => docker.push((image.id, names.into_iter().collect(), manifest)),
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::INDEX.into()),
        manifests: entries,
        annotations: None,
    };
    saving.json("index.json", &json!(index))?;
    saving.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
    if format == Format::Docker {
        let path = |blob: &Descriptor| format!("blobs/sha256/{}", blob.digest.hex());
        let manifest: Vec<_> = docker
            .iter()
            .map(|(_, names, manifest)| {
                json!({
                    "Config": path(&manifest.config),
                    "RepoTags": names,
                    "Layers": manifest.layers.iter().map(path).collect::<Vec<_>>(),
                })
            })
            .collect();
        saving.json("manifest.json", &json!(manifest))?;
    }
    saving.tar.finish().map_err(write_error)
}

fn write_error(source: io::Error) -> Error {
    io_error("write", Path::new("the archive"))(source)
}

struct Saving<'a> {
    store: &'a Store,
    lease: &'a Lease<'a>,
    tar: Tar<'a>,
    written: BTreeSet<Digest>,
    progress: &'a dyn Progress,
}

impl Saving<'_> {
    /// Writes an image's blobs. The manifest is the OCI's in any case: Docker's media types have no
    /// place in a layout.
    fn image(&mut self, image: &Image) -> Result<(Descriptor, Manifest)> {
        self.lease.hold(Held::Image(image.manifest.digest))?;
        let mut bytes = self.store.read_document(&image.manifest, MAX_MANIFEST)?;
        let mut manifest = Manifest::parse(&bytes).map_err(in_manifest(image.title()))?;
        for layer in &manifest.layers {
            self.blob(layer)?;
        }
        self.blob(&manifest.config)?;
        if manifest.media_type() != media_type::MANIFEST {
            manifest.media_type = Some(media_type::MANIFEST.into());
            manifest.config.media_type = media_type::CONFIG.into();
            for layer in &mut manifest.layers {
                layer.media_type = match layer.media_type.as_str() {
                    known if known.ends_with(".zstd") => media_type::LAYER_ZSTD,
                    known if known.ends_with(".gzip") => media_type::LAYER_GZIP,
                    _ => media_type::LAYER,
                }
                .into();
            }
            bytes = serde_json::to_vec(&manifest).map_err(|e| write_error(e.into()))?;
        }
        let digest = Digest::of(&bytes);
        let size = bytes.len() as u64;
        if self.written.insert(digest) {
            let name = format!("blobs/sha256/{}", digest.hex());
            self.tar
                .file(&name, size, &mut &bytes[..], |_| ())
                .map_err(write_error)?;
        }
        Ok((
            Descriptor::new(media_type::MANIFEST, digest, size),
            manifest,
        ))
    }

    fn blob(&mut self, blob: &Descriptor) -> Result<()> {
        if !self.written.insert(blob.digest) {
            return Ok(());
        }
        let mut file = self.store.open_blob(blob)?;
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        let item = blob.digest.short();
        let told = |done| self.progress.report(&item, State::Reading(done, blob.size));
        self.tar
            .file(&name, blob.size, &mut file, told)
            .map_err(write_error)?;
        self.progress.report(&item, State::Done);
        Ok(())
    }

    fn json(&mut self, name: &str, value: &serde_json::Value) -> Result<()> {
        let bytes = value.to_string().into_bytes();
        self.tar
            .file(name, bytes.len() as u64, &mut &bytes[..], |_| ())
            .map_err(write_error)
    }
}

/// Writes a tar archive (POSIX ustar; GNU's binary sizes above 8 GiB). The same files make the same
/// bytes: they all belong to root and are from 1970.
struct Tar<'a> {
    out: &'a mut dyn Write,
}

impl Tar<'_> {
    fn file(
        &mut self,
        name: &str,
        size: u64,
        data: &mut dyn Read,
        told: impl Fn(u64),
    ) -> io::Result<()> {
        self.out.write_all(&header(name, size))?;
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(BUFFER).clamp(1, BUFFER)];
        let mut done = 0;
        while done < size {
            let n = match data.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.out.write_all(&buffer[..n])?;
            done += n as u64;
            told(done);
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.out.write_all(&[0; BLOCK][..padding as usize])
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

/// The header of a regular file with a name of at most 100 bytes.
fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::tar::{Archive, Entry};

    #[test]
    fn header_of_any_size_is_read_as_written() {
        for size in [0, 1, MAX_OCTAL, MAX_OCTAL + 1, 1 << 40] {
            let header = header("a/b", size);
            let mut archive = Archive::new(&header[..], u64::MAX);
            let mut entry = Entry::default();
            assert!(archive.next_entry(&mut entry).expect("sound"));
            assert_eq!((&entry.path[..], entry.size), (&b"a/b"[..], size));
        }
    }
}
