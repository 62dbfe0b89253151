//! What is told about an image: `inspect` and `history`, with Docker's field names.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, in_manifest};
use crate::manifest::{MAX_CONFIG, MAX_MANIFEST, Manifest, ManifestError};
use crate::store::{Image, Store};

/// All that is known about an image, as `docker image inspect` has it.
pub fn inspect(store: &Store, image: &Image) -> Result<Value> {
    let manifest = store.read_document(&image.manifest, MAX_MANIFEST)?;
    let manifest = Manifest::parse(&manifest).map_err(in_manifest(image.title()))?;
    // Docker knows fields that the OCI's configuration has not, such as health checks.
    let bytes = store.read_document(&manifest.config, MAX_CONFIG)?;
    let config: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| {
        let problem = ManifestError::Json(e.to_string());
        Error::Manifest {
            what: image.title(),
            problem,
        }
    })?;
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();

    let mut tags = Vec::new();
    let mut digests = Vec::new();
    for other in store.images()? {
        if other.manifest.digest != image.manifest.digest {
            continue;
        }
        for reference in [&other.name, &other.source].into_iter().flatten() {
            let list = match reference.digest() {
                None => &mut tags,
                Some(_) => &mut digests,
            };
            let familiar = reference.familiar();
            if !list.contains(&familiar) {
                list.push(familiar);
            }
        }
    }
    let history = config.get("history").and_then(Value::as_array);
    let comment = history
        .and_then(|history| history.last()?.get("comment")?.as_str())
        .unwrap_or_default();
    let mut out = json!({
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": comment,
        "Created": text("created"),
        "Author": text("author"),
        "Config": config.get("config").cloned().unwrap_or_else(|| json!({})),
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Size": image.size,
        "RootFS": {
            "Type": "layers",
            "Layers": image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
        },
        "Descriptor": {
            "mediaType": image.manifest.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.size,
        },
    });
    if let (Value::Object(out), Some(variant)) = (&mut out, config.get("variant")) {
        out.insert("Variant".into(), variant.clone());
    }
    Ok(out)
}

/// A step in the making of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Step {
    /// The image's ID for the last step, `<missing>` for the others, as with Docker.
    #[serde(rename = "ID")]
    pub id: String,
    /// When, as RFC 3339 has it; empty if that is not known.
    pub created: String,
    /// By which command.
    pub created_by: String,
    /// The bytes of its layer in the store, compressed if it is; 0 if it made none.
    pub size: u64,
    /// What was noted.
    pub comment: String,
}

/// How an image was made, the last step first.
pub fn history(image: &Image) -> Vec<Step> {
    let mut layers = image.layers.iter();
    let mut steps: Vec<Step> = image
        .config
        .history()
        .iter()
        .flatten()
        .map(|step| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let layer = match step.empty_layer() {
                Some(true) => None,
                _ => layers.next(),
            };
            Step {
                id: "<missing>".into(),
                created: text(step.created()),
                created_by: text(step.created_by()),
                size: layer.map_or(0, |layer| layer.blob.size),
                comment: text(step.comment()),
            }
        })
        .collect();
    // Layers nobody wrote anything about.
    steps.extend(layers.map(|layer| Step {
        id: "<missing>".into(),
        created: String::new(),
        created_by: String::new(),
        size: layer.blob.size,
        comment: String::new(),
    }));
    steps.reverse();
    if let Some(first) = steps.first_mut() {
        first.id = image.id.to_string();
    }
    steps
}
