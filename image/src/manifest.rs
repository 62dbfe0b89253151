//! Manifests and indexes (OCI image-spec manifest.md and image-index.md, Docker's schema 2), as strictly
//! read as they have to be: they come from registries and archives, and everything else is found through
//! them.
//!
//! The bytes of a manifest are kept as they came, because their digest is the image's name. What is here
//! is for reading them, and for making new ones.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The longest manifest or index that is read, in bytes: what registries have to take, and no more.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The longest configuration that is read, in bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// The most layers of an image. Docker stops at 127.
pub const MAX_LAYERS: usize = 512;
/// The largest blob there can be: sizes are signed in the formats' own programs.
const MAX_BLOB: u64 = i64::MAX as u64;

/// The media types that are written; those that are read are in the functions below.
pub mod media_type {
    /// An OCI manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer: tar.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A layer: tar, gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A layer: tar, zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's index.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's layers, which are always gzip.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}
use media_type as mt;

/// What is wrong with a manifest, an index or a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No JSON, or not of this shape.
    #[error("it is not what it should be: {0}")]
    Json(String),
    /// Schema 1, or a future one.
    #[error(
        "it is of schema {0}, and only schema 2 is understood; have the image pushed anew by a current program"
    )]
    Schema(u32),
    /// Neither `manifests` nor `config` and `layers`, or both.
    #[error("it is neither a manifest nor an index")]
    Neither,
    /// The one thing where the other was expected.
    #[error("it is an index where a manifest should be")]
    Index,
    /// A type that is not an image's.
    #[error("it is of type {0:?}, which is no container image")]
    Type(String),
    /// A layer nobody can read without a key, or in another format.
    #[error("it has a layer of type {0:?}, which is not supported")]
    LayerType(String),
    /// A size beyond all sizes.
    #[error("it says that {0} has {1} bytes")]
    Size(Digest, u64),
    /// Too many of something.
    #[error("it has {0} layers; the most is {MAX_LAYERS}")]
    Layers(usize),
    /// The configuration's diff IDs do not match the manifest.
    #[error("it has {layers} layers, and its configuration names {diff_ids}")]
    DiffIds {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// An image for another system.
    #[error("it is for {0}; only Linux images can be run")]
    System(String),
    /// None of an index's manifests is for this platform.
    #[error("it has no image for {wanted}, only for {offered}")]
    Platform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: String,
    },
}

/// What a blob is, and how it is found (OCI image-spec descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In an index: what the image is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// One without platform and annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: None,
        }
    }

    /// An annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_str())
    }
}

/// What an image is for (`os/architecture[/variant]`), in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8` of arm64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's processor.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        }
    }

    /// Whether an image that says it is for `offered` runs where this is wanted.
    pub(crate) fn takes(&self, offered: &Platform) -> bool {
        // The variants that images leave out because everybody has them.
        fn variant(platform: &Platform) -> Option<&str> {
            match (platform.architecture.as_str(), platform.variant.as_deref()) {
                ("arm64", None | Some("v8")) | ("amd64", None | Some("v1")) => None,
                (_, variant) => variant,
            }
        }
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() && self.architecture == "arm"
                || variant(self) == variant(offered))
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() && variant != Some("") =>
            {
                Ok(Platform {
                    architecture: architecture.into(),
                    os: os.into(),
                    variant: variant.map(str::to_owned),
                })
            }
            _ => Err(format!(
                "{text:?} is no platform; write it like linux/amd64 or linux/arm/v7"
            )),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// An image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What it is, if it says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A choice of manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What it is, if it says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests, or further indexes.
    pub manifests: Vec<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// One or the other: which, a registry tells only in its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several to choose from.
    Index(Index),
}

/// Both at once, to find out which it is: what could be read as either (CVE-2021-41190) is refused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Either {
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// The version alone: schema 1 has nothing else in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    schema_version: u32,
}

impl Document {
    /// Reads a manifest or an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let Version { schema_version } = from_json(bytes)?;
        if schema_version != 2 {
            return Err(ManifestError::Schema(schema_version));
        }
        let either: Either = from_json(bytes)?;
        let document = match either {
            Either {
                config: Some(config),
                layers: Some(layers),
                manifests: None,
                ..
            } => Document::Manifest(Manifest {
                schema_version,
                media_type: either.media_type,
                config,
                layers,
                annotations: either.annotations,
            }),
            Either {
                config: None,
                layers: None,
                manifests: Some(manifests),
                ..
            } => Document::Index(Index {
                schema_version,
                media_type: either.media_type,
                manifests,
                annotations: either.annotations,
            }),
            _ => return Err(ManifestError::Neither),
        };
        document.check()?;
        Ok(document)
    }

    /// Its media type: what it says itself, or else the OCI's for its shape.
    pub fn media_type(&self) -> &str {
        match self {
            Document::Manifest(manifest) => manifest.media_type(),
            Document::Index(index) => index.media_type.as_deref().unwrap_or(mt::INDEX),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let fits = match self {
            Document::Manifest(_) => [mt::MANIFEST, mt::DOCKER_MANIFEST],
            Document::Index(_) => [mt::INDEX, mt::DOCKER_INDEX],
        };
        if !fits.contains(&self.media_type()) {
            return Err(ManifestError::Type(printable(self.media_type())));
        }
        let (first, rest) = match self {
            Document::Manifest(manifest) => (Some(&manifest.config), &manifest.layers),
            Document::Index(index) => (None, &index.manifests),
        };
        for Descriptor { digest, size, .. } in first.into_iter().chain(rest) {
            if *size > MAX_BLOB {
                return Err(ManifestError::Size(*digest, *size));
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// One of the OCI's, for an image with this configuration and these layers.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Manifest {
            schema_version: 2,
            media_type: Some(mt::MANIFEST.into()),
            config,
            layers,
            annotations: None,
        }
    }

    /// Reads the manifest of an image that can be stored: its types and sizes are sound.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        match Document::parse(bytes)? {
            Document::Manifest(manifest) => {
                manifest.check_image()?;
                Ok(manifest)
            }
            Document::Index(_) => Err(ManifestError::Index),
        }
    }

    /// Its media type.
    pub fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(mt::MANIFEST)
    }

    /// Whether what it describes is a container image, as other things use manifests too.
    pub fn check_image(&self) -> Result<(), ManifestError> {
        if ![mt::CONFIG, mt::DOCKER_CONFIG].contains(&self.config.media_type.as_str()) {
            return Err(ManifestError::Type(printable(&self.config.media_type)));
        }
        if self.config.size > MAX_CONFIG {
            return Err(ManifestError::Size(self.config.digest, self.config.size));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(ManifestError::Layers(self.layers.len()));
        }
        match self
            .layers
            .iter()
            .find(|layer| !is_layer(&layer.media_type))
        {
            Some(layer) => Err(ManifestError::LayerType(printable(&layer.media_type))),
            None => Ok(()),
        }
    }

    /// Reads the configuration that belongs to it. The diff IDs are as many as the layers, and digests.
    pub fn parse_config(
        &self,
        bytes: &[u8],
    ) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
        let (config, diff_ids) = parse_config(bytes)?;
        if diff_ids.len() != self.layers.len() {
            return Err(ManifestError::DiffIds {
                layers: self.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        Ok((config, diff_ids))
    }
}

/// Reads a configuration and the diff IDs in it.
pub fn parse_config(bytes: &[u8]) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    let config: ImageConfiguration = from_json(bytes)?;
    let os = config.os().to_string();
    if os != "linux" {
        return Err(ManifestError::System(printable(&os)));
    }
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| id.parse().map_err(|e| ManifestError::Json(format!("{e}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() > MAX_LAYERS {
        return Err(ManifestError::Layers(diff_ids.len()));
    }
    Ok((config, diff_ids))
}

impl Index {
    /// The manifest for `platform`.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        // Build records and signatures travel in indexes as manifests for no platform.
        let images: Vec<&Descriptor> = self
            .manifests
            .iter()
            .filter(|manifest| {
                let known = |p: &Platform| p.os != "unknown" && p.architecture != "unknown";
                manifest.platform.as_ref().is_none_or(known)
                    && is_manifest_or_index(&manifest.media_type)
            })
            .collect();
        let exact = images
            .iter()
            .find(|image| image.platform.as_ref().is_some_and(|p| platform.takes(p)));
        match (exact, &*images) {
            (Some(image), _) => Ok(image),
            // One that does not say what it is for can only be tried.
            (None, [only]) if only.platform.is_none() => Ok(only),
            _ => {
                let mut offered: Vec<String> = images
                    .iter()
                    .filter_map(|image| image.platform.as_ref())
                    .map(|platform| printable(&platform.to_string()))
                    .take(12)
                    .collect();
                if offered.is_empty() {
                    offered.push("none".into());
                }
                Err(ManifestError::Platform {
                    wanted: platform.clone(),
                    offered: offered.join(", "),
                })
            }
        }
    }
}

/// Whether this is a layer that can be read.
fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        mt::LAYER
            | mt::LAYER_GZIP
            | mt::LAYER_ZSTD
            | mt::DOCKER_LAYER
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
    )
}

fn is_manifest_or_index(media_type: &str) -> bool {
    [
        mt::MANIFEST,
        mt::INDEX,
        mt::DOCKER_MANIFEST,
        mt::DOCKER_INDEX,
    ]
    .contains(&media_type)
}

fn from_json<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(printable(&e.to_string())))
}

/// Other people's text for our sentences: one line, not long.
pub(crate) fn printable(text: &str) -> String {
    const MOST: usize = 200;
    let mut out: String = text
        .chars()
        .take(MOST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::of(content), content.len() as u64)
    }

    fn bytes(value: &impl Serialize) -> Vec<u8> {
        serde_json::to_vec(value).expect("JSON")
    }

    fn for_platform(platform: &str) -> Descriptor {
        Descriptor {
            platform: Some(platform.parse().expect(platform)),
            ..descriptor(mt::MANIFEST, platform.as_bytes())
        }
    }

    fn index(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: None,
            manifests,
            annotations: None,
        }
    }

    #[test]
    fn manifest_of_docker_and_of_oci_is_read() {
        for (manifest, config, layer) in [
            (mt::DOCKER_MANIFEST, mt::DOCKER_CONFIG, mt::DOCKER_LAYER),
            (mt::MANIFEST, mt::CONFIG, mt::LAYER_ZSTD),
        ] {
            let mut expected =
                Manifest::new(descriptor(config, b"c"), vec![descriptor(layer, b"l")]);
            expected.media_type = Some(manifest.into());
            assert_eq!(Manifest::parse(&bytes(&expected)), Ok(expected));
        }
    }

    #[test]
    fn manifest_when_it_could_be_an_index_too_is_refused() {
        let config = descriptor(mt::CONFIG, b"c");
        let both = json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []});
        assert_eq!(Document::parse(&bytes(&both)), Err(ManifestError::Neither));
        let lying =
            json!({"schemaVersion": 2, "mediaType": mt::INDEX, "config": config, "layers": []});
        assert!(matches!(
            Document::parse(&bytes(&lying)),
            Err(ManifestError::Type(_))
        ));
    }

    #[test]
    fn manifest_when_hostile_is_refused() {
        let digest = Digest::of(b"");
        let descriptor = |size: serde_json::Value| json!({"mediaType": mt::CONFIG, "digest": digest, "size": size});
        for (config, layers) in [
            (descriptor(json!(-1)), json!([])),
            (descriptor(json!(1e30)), json!([])),
            (descriptor(json!(u64::MAX)), json!([])),
            (descriptor(json!(MAX_CONFIG + 1)), json!([])),
            (descriptor(json!(1)), json!([descriptor(json!(1))])),
            (
                json!({"mediaType": mt::CONFIG, "digest": "sha256:../../etc", "size": 1}),
                json!([]),
            ),
            (
                json!({"mediaType": "text/plain", "digest": digest, "size": 1}),
                json!([]),
            ),
        ] {
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
            let error = Manifest::parse(&bytes(&manifest)).expect_err("refused");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        assert_eq!(
            Manifest::parse(br#"{"schemaVersion": 1, "name": "x", "fsLayers": []}"#),
            Err(ManifestError::Schema(1))
        );
        assert!(Manifest::parse(&[b'['; 100_000]).is_err());
    }

    #[test]
    fn index_when_asked_for_a_platform_gives_its_manifest() {
        let index = index(vec![
            for_platform("unknown/unknown"),
            for_platform("linux/arm/v7"),
            for_platform("linux/arm64/v8"),
            for_platform("windows/amd64"),
            for_platform("linux/amd64"),
        ]);
        for (wanted, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm", "linux/arm/v7"),
        ] {
            let chosen = index.choose(&wanted.parse().expect(wanted)).expect(wanted);
            assert_eq!(chosen.digest, Digest::of(expected.as_bytes()));
        }
        let error = index
            .choose(&"linux/riscv64".parse().expect("platform"))
            .expect_err("none");
        assert!(error.to_string().contains("linux/arm/v7"), "{error}");
    }

    #[test]
    fn index_with_one_image_that_does_not_say_its_platform_gives_that() {
        let only = index(vec![descriptor(mt::MANIFEST, b"")]);
        assert!(only.choose(&Platform::host()).is_ok());
        let two = index(vec![
            descriptor(mt::MANIFEST, b""),
            descriptor(mt::MANIFEST, b"x"),
        ]);
        assert!(two.choose(&Platform::host()).is_err());
    }

    #[test]
    fn config_when_its_diff_ids_do_not_match_is_refused() {
        let manifest = Manifest::new(descriptor(mt::CONFIG, b""), vec![]);
        let config = |os: &str, diff_ids: serde_json::Value| {
            bytes(
                &json!({"architecture": "amd64", "os": os, "config": {"Entrypoint": null, "Volumes": null},
                "rootfs": {"type": "layers", "diff_ids": diff_ids}}),
            )
        };
        assert!(manifest.parse_config(&config("linux", json!([]))).is_ok());
        for bad in [
            config("windows", json!([])),
            config("linux", json!([Digest::of(b"")])),
            config("linux", json!(["x"])),
            b"{}".to_vec(),
        ] {
            assert!(manifest.parse_config(&bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn document_when_written_reads_as_the_same(
            sizes in prop::collection::vec(0..=MAX_BLOB, 0..5),
            note in prop::option::of("\\PC{0,10}"),
        ) {
            let mut manifest = Manifest::new(
                descriptor(mt::CONFIG, b"c"),
                sizes.iter().map(|&size| Descriptor::new(mt::LAYER_GZIP, Digest::of(&size.to_le_bytes()), size)).collect(),
            );
            manifest.annotations = note.map(|note| BTreeMap::from([("note".into(), note)]));
            prop_assert_eq!(Manifest::parse(&bytes(&manifest)), Ok(manifest));
        }

        #[test]
        fn document_when_damaged_never_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut text = bytes(&Manifest::new(descriptor(mt::CONFIG, b"c"), vec![descriptor(mt::LAYER, b"l")]));
            let at = at % text.len();
            text[at] = byte;
            if let Err(e) = Manifest::parse(&text) {
                prop_assert!(!e.to_string().contains('\n'));
            }
        }
    }
}
