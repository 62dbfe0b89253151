//! The images, and which of them containers are made of.

use bulkhead_image::{Digest, Store};

use crate::engine::Engine;
use crate::error::Error;

impl Engine {
    /// The image store.
    pub fn store(&self) -> Result<Store, Error> {
        Ok(Store::open(&self.layout().images())?)
    }

    /// The manifests that containers are made of: what a store must not collect.
    pub fn images_in_use(&self) -> Result<Vec<Digest>, Error> {
        let containers = self.list()?;
        let digests = containers
            .iter()
            .filter_map(|entry| entry.config.image.manifest.parse().ok());
        Ok(digests.collect())
    }
}
