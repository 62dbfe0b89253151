//! The disks of images: their layers as one EROFS file, made when first asked for.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lock::open_locked;
use super::{Held, Image, Layer, LayerReader, Store};
use crate::error::{Error, Result, io_error};
use crate::layers::{self, DiskOptions, build_disk};
use crate::progress::{Progress, State};

impl Store {
    /// The image's disk. If it is not there yet, it is made by whoever comes first, while others who
    /// want it wait. It stays while the image does, or a lease on it.
    pub fn disk(&self, image: &Image, progress: &dyn Progress) -> Result<PathBuf> {
        let chain = image.chain_id();
        let path = self.disk_path(&chain);
        if path.exists() {
            return Ok(path);
        }
        let lease = self.lease()?;
        lease.hold(Held::Disk(chain))?;
        lease.hold(Held::Image(image.manifest.digest))?;
        let partial = path.with_extension("partial");
        let file = open_locked(&partial)?;
        if path.exists() {
            // Whoever was waited for made it, and opening made an empty file anew.
            fs::remove_file(&partial).map_err(io_error("remove", &partial))?;
            return Ok(path);
        }

        let mut options = DiskOptions::default();
        options.uuid.copy_from_slice(&chain.as_bytes()[..16]);
        let layers = Layers {
            store: self,
            rest: image.layers.iter().rev(),
            current: None,
            progress,
        };
        let result = build_disk(layers, &file, &options);
        if let Err(source) = result {
            // It is of no use to anybody, and may be large.
            let _ = fs::remove_file(&partial);
            return Err(Error::Disk {
                image: image.title(),
                source,
            });
        }
        file.sync_data().map_err(io_error("write", &partial))?;
        fs::rename(&partial, &path).map_err(io_error("make", &path))?;
        Ok(path)
    }
}

/// The layers, uppermost first. Each is checked to its end before the next one is opened, and the last
/// one before the end is told.
struct Layers<'a, I> {
    store: &'a Store,
    rest: I,
    current: Option<(&'a Layer, Shared)>,
    progress: &'a dyn Progress,
}

/// A reader that is lent out, and taken back to be finished.
type Shared = Arc<Mutex<LayerReader>>;

fn lock(reader: &Shared) -> MutexGuard<'_, LayerReader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, I: Iterator<Item = &'a Layer>> Iterator for Layers<'a, I> {
    type Item = Result<layers::Layer<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((layer, reader)) = self.current.take() {
            if let Err(e) = lock(&reader).finish() {
                return Some(Err(e));
            }
            self.progress
                .report(&layer.blob.digest.short(), State::Done);
        }
        let layer = self.rest.next()?;
        let reader = match self.store.open_layer(layer) {
            Ok(reader) => Arc::new(Mutex::new(reader)),
            Err(e) => return Some(Err(e)),
        };
        self.current = Some((layer, Arc::clone(&reader)));
        Some(Ok(layers::Layer {
            name: layer.blob.digest.to_string(),
            tar: Box::new(Lent {
                reader,
                item: layer.blob.digest.short(),
                size: layer.blob.size,
                told: 0,
                progress: self.progress,
            }),
        }))
    }
}

/// Reads from a lent reader, and tells how far it is.
struct Lent<'a> {
    reader: Shared,
    item: String,
    size: u64,
    told: u64,
    progress: &'a dyn Progress,
}

impl Read for Lent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut reader = lock(&self.reader);
        let n = reader.read(buffer)?;
        let position = reader.position();
        if position != self.told {
            self.told = position;
            self.progress
                .report(&self.item, State::Reading(position, self.size));
        }
        Ok(n)
    }
}
