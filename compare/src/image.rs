//! The image that is run: another one with the measuring program in it, or that program alone.

use std::fs;

use bulkhead_image::manifest::{Manifest, media_type};
use bulkhead_image::store::{Held, Lease};
use bulkhead_image::{Digest, Image, Reference, Store};
use serde_json::{Value, json};

use crate::bench;

/// The name of the images that are made here; the tag says of what.
const NAME: &str = "localhost/bulkhead-compare";
/// The tag of the one that has nothing but the program.
const BUILT_IN: &str = "built-in";
/// When all of them were made, so that the same is the same, digest and all.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// The image with nothing but the measuring program. It needs no network.
pub fn built_in(store: &Store, lease: &Lease<'_>) -> Result<Image, String> {
    let base = json!({
        "created": EPOCH,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [bench::IN_CONTAINER], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    });
    add_bench(store, lease, (base, Vec::new()), BUILT_IN)
}

/// The image with the measuring program in a layer of its own.
pub fn with_bench(store: &Store, lease: &Lease<'_>, image: &Image) -> Result<Image, String> {
    let config = serde_json::to_value(&image.config);
    let config = config.map_err(|e| format!("cannot use image {}: {e}", image.title()))?;
    let layers = image.layers.iter().map(|layer| layer.blob.clone());
    let tag: String = image.id.hex().chars().take(24).collect();
    add_bench(store, lease, (config, layers.collect()), &tag)
}

fn add_bench(
    store: &Store,
    lease: &Lease<'_>,
    (mut config, mut layers): (Value, Vec<bulkhead_image::manifest::Descriptor>),
    tag: &str,
) -> Result<Image, String> {
    let failed = |e: bulkhead_image::Error| format!("cannot make an image to compare with: {e}");
    let layer = layer()?;
    let diff_id = Digest::of(&layer);
    layers.push(
        store
            .add_blob(lease, media_type::LAYER, &layer)
            .map_err(failed)?,
    );
    let added = "an image's configuration is not as it should be: load or pull the image again";
    let ids = config["rootfs"]["diff_ids"].as_array_mut().ok_or(added)?;
    ids.push(json!(diff_id));
    // Each layer that is not empty has a line of its own, if there are lines at all.
    if let Some(history) = config["history"].as_array_mut() {
        history.push(json!({"created": EPOCH, "created_by": "bulkhead compare"}));
    }
    let config = store
        .add_blob(lease, media_type::CONFIG, config.to_string().as_bytes())
        .map_err(failed)?;
    let manifest = serde_json::to_vec(&Manifest::new(config, layers));
    let manifest = manifest.map_err(|e| format!("cannot write a manifest: {e}"))?;
    let manifest = store
        .add_blob(lease, media_type::MANIFEST, &manifest)
        .map_err(failed)?;
    lease.hold(Held::Image(manifest.digest)).map_err(failed)?;
    let name: Reference = format!("{NAME}:{tag}")
        .parse()
        .map_err(|e| format!("cannot name an image to compare with: {e}"))?;
    store.record(&manifest, Some(&name), None).map_err(failed)
}

/// A tar archive with the program.
fn layer() -> Result<Vec<u8>, String> {
    let path = bench::on_host()?;
    let failed = |e| format!("cannot read {}: {e}", path.display());
    let program = fs::read(&path).map_err(failed)?;
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    let name = bench::IN_CONTAINER.trim_start_matches('/');
    let added = archive.append_data(&mut header, name, &program[..]);
    added.and_then(|()| archive.into_inner()).map_err(failed)
}
