//! Pulling: the manifest, then configuration and layers, several at a time.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE};
use ureq::http::{Method, StatusCode};

use super::Access;
use super::client::{Client, Failure, Request, Response, expect, read_all};
use super::retry::{Retry, retry};
use crate::digest::Digest;
use crate::error::{Error, Result, in_manifest};
use crate::manifest::{
    Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, Manifest, Platform, media_type, printable,
};
use crate::progress::{Progress, State};
use crate::reference::Reference;
use crate::store::{Held, Image, Ingest, Lease, Store};

/// How many blobs are fetched at the same time, as many as Docker's.
const PARALLEL: usize = 3;
/// How much is read at a time.
const BUFFER: usize = 128 << 10;
/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 3;
/// What is told to the registry to be understood here.
const ACCEPT: [&str; 4] = [
    media_type::MANIFEST,
    media_type::INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_INDEX,
];

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// How to get into the registry.
    pub access: Access,
    /// What the image has to be for, if not for this machine.
    pub platform: Option<Platform>,
}

/// Brings an image from its registry into the store. What is there already, whole or in part, is not
/// fetched again.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    let client = Client::new(reference, &options.access)?;
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let lease = store.lease()?;
    let pull = Pull {
        store,
        lease: &lease,
        client: &client,
        scope: client.scope("pull"),
        title: reference.familiar(),
        progress,
        stop: AtomicBool::new(false),
    };

    progress.message(&format!(
        "{}: Pulling from {}",
        reference.tag().unwrap_or(&reference.target()),
        reference.familiar_repository()
    ));
    let (bytes, named) = pull.manifest(reference, &platform)?;
    let manifest = Manifest::parse(&bytes).map_err(in_manifest(&pull.title))?;
    pull.config(&manifest)?;
    pull.layers(&manifest.layers)?;

    let descriptor = store.add_blob(&lease, manifest.media_type(), &bytes)?;
    lease.hold(Held::Image(descriptor.digest))?;
    // What was asked for by tag and digest gets the tag: the digest is its source.
    let name = reference
        .without_digest()
        .unwrap_or_else(|| reference.clone());
    let source = reference.at(named);
    let before = store.image(&name).ok().map(|image| image.manifest.digest);
    let image = store.record(&descriptor, Some(&name), Some(&source))?;
    progress.message(&format!("Digest: {named}"));
    progress.message(&format!(
        "Status: {} {}",
        if before == Some(descriptor.digest) {
            "Image is up to date for"
        } else {
            "Downloaded newer image for"
        },
        pull.title
    ));
    Ok(image)
}

struct Pull<'a> {
    store: &'a Store,
    lease: &'a Lease<'a>,
    client: &'a Client,
    scope: String,
    title: String,
    progress: &'a dyn Progress,
    /// Somebody failed: the others need not go on.
    stop: AtomicBool,
}

impl Pull<'_> {
    fn failed(&self, failure: Failure) -> Error {
        Error::Registry {
            doing: format!("pull {} from", self.title),
            host: self.client.host().into(),
            why: failure.why(),
        }
    }

    fn get(&self, path: String) -> std::result::Result<Response, Failure> {
        let request = Request::new(Method::GET, path);
        let response = self.client.send(&request, &self.scope)?;
        expect(response, &[StatusCode::OK])
    }

    /// Finds the manifest for the platform, and the digest that the registry has for the whole.
    fn manifest(&self, reference: &Reference, platform: &Platform) -> Result<(Vec<u8>, Digest)> {
        let (mut bytes, mut kind) = self.document(&reference.target())?;
        let named = Digest::of(&bytes);
        if let Some(expected) = reference.digest() {
            self.check("the manifest", expected, named)?;
        }
        for _ in 0..MAX_DEPTH {
            let index = match Document::parse(&bytes).map_err(in_manifest(&self.title))? {
                Document::Manifest(manifest) => {
                    let told = manifest.media_type.as_deref().unwrap_or(&kind);
                    if told.starts_with("application/") && told != kind && !kind.is_empty() {
                        return Err(self.failed(Failure::Fatal(format!(
                            "it calls the manifest {:?}, which calls itself {:?}",
                            printable(&kind),
                            printable(told)
                        ))));
                    }
                    return Ok((bytes, named));
                }
                Document::Index(index) => index,
            };
            let chosen = index.choose(platform).map_err(in_manifest(&self.title))?;
            (bytes, kind) = self.document(&chosen.digest.to_string())?;
            self.check("the manifest", chosen.digest, Digest::of(&bytes))?;
        }
        Err(self.failed(Failure::Fatal(
            "its indexes name only further indexes".into(),
        )))
    }

    fn check(&self, what: &str, expected: Digest, found: Digest) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::Damaged {
            what: format!("{what} of {} from {}", self.title, self.client.host()),
            expected,
            found,
        })
    }

    /// Gets a manifest or index, and what the registry says it is.
    fn document(&self, target: &str) -> Result<(Vec<u8>, String)> {
        retry(|| {
            let request = Request::new(
                Method::GET,
                self.client.path(&format!("manifests/{target}")),
            )
            .header("accept", ACCEPT.join(", "));
            let response = expect(self.client.send(&request, &self.scope)?, &[StatusCode::OK])?;
            let kind = response
                .headers()
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.split(';').next())
                .map(|value| value.trim().to_owned())
                // What a server says that does not know.
                .filter(|kind| ACCEPT.contains(&kind.as_str()))
                .unwrap_or_default();
            Ok((read_all(response, MAX_MANIFEST)?, kind))
        })
        .map_err(|failure| self.failed(failure))
    }

    /// Gets the configuration and sees that it belongs to the manifest, before any layer is fetched.
    fn config(&self, manifest: &Manifest) -> Result<()> {
        let blob = &manifest.config;
        let bytes = if self.store.has_blob(self.lease, blob)? {
            self.store.read_document(blob, MAX_CONFIG)?
        } else {
            let path = self.client.path(&format!("blobs/{}", blob.digest));
            let bytes = retry(|| read_all(self.get(path.clone())?, MAX_CONFIG))
                .map_err(|failure| self.failed(failure))?;
            self.check("the configuration", blob.digest, Digest::of(&bytes))?;
            self.store.add_blob(self.lease, &blob.media_type, &bytes)?;
            bytes
        };
        if bytes.len() as u64 != blob.size {
            return Err(Error::Size {
                what: format!("the configuration of {}", self.title),
                expected: blob.size,
                found: bytes.len() as u64,
            });
        }
        manifest
            .parse_config(&bytes)
            .map_err(in_manifest(&self.title))?;
        Ok(())
    }

    fn layers(&self, layers: &[Descriptor]) -> Result<()> {
        // The same layer may be there twice.
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for layer in layers {
            if !blobs.iter().any(|blob| blob.digest == layer.digest) {
                blobs.push(layer);
                self.progress.report(&layer.digest.short(), State::Waiting);
            }
        }
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..PARALLEL.min(blobs.len()) {
                scope.spawn(|| {
                    while !self.stop.load(Ordering::Relaxed)
                        && let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if let Err(e) = self.blob(blob) {
                            self.stop.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.get_or_insert(e);
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn blob(&self, blob: &Descriptor) -> Result<()> {
        let item = blob.digest.short();
        let Some(mut ingest) = self.store.ingest(self.lease, blob)? else {
            self.progress.report(&item, State::Exists);
            return Ok(());
        };
        let mut resumed = !ingest.is_empty();
        let mut tries = Retry::default();
        loop {
            let before = ingest.len();
            if !ingest.is_complete()
                && let Err(failure) = self.fetch(blob, &mut ingest)?
            {
                if ingest.len() > before {
                    tries.progressed();
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Err(self.failed(failure));
                }
                let why = tries
                    .after(failure)
                    .map_err(|failure| self.failed(failure))?;
                self.progress.report(&item, State::Retrying(&why));
                continue;
            }
            match ingest.commit() {
                Ok(()) => break,
                // The half that was there may have been damaged, and what came now be right.
                Err(Error::Damaged { .. }) if resumed => resumed = false,
                Err(e) => return Err(e),
            }
        }
        self.progress.report(&item, State::Done);
        Ok(())
    }

    /// Gets the rest of a blob, or as much of it as comes. What the store says about it is final; what
    /// the connection does is not.
    fn fetch(
        &self,
        blob: &Descriptor,
        ingest: &mut Ingest<'_>,
    ) -> Result<std::result::Result<(), Failure>> {
        let item = blob.digest.short();
        let mut request = Request::new(
            Method::GET,
            self.client.path(&format!("blobs/{}", blob.digest)),
        );
        if !ingest.is_empty() {
            request = request.header("range", format!("bytes={}-", ingest.len()));
        }
        let wanted = [
            StatusCode::OK,
            StatusCode::PARTIAL_CONTENT,
            StatusCode::RANGE_NOT_SATISFIABLE,
        ];
        let response = match self
            .client
            .send(&request, &self.scope)
            .and_then(|response| expect(response, &wanted))
        {
            Ok(response) => response,
            Err(failure) => return Ok(Err(failure)),
        };
        let continues = response.status() == StatusCode::PARTIAL_CONTENT
            && response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok())
                .is_some_and(|range| begins_at(range, ingest.len()));
        if !continues && !ingest.is_empty() {
            ingest.restart()?;
        }
        if !continues && response.status() != StatusCode::OK {
            let why = "it sends another part than was asked for".into();
            return Ok(Err(Failure::Transient(why, None)));
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        while !ingest.is_complete() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Err(Failure::Fatal("another layer failed".into())));
            }
            match body.read(&mut buffer) {
                Ok(0) => {
                    let why = format!("it sent {} of {} bytes", ingest.len(), blob.size);
                    return Ok(Err(Failure::Transient(why, None)));
                }
                Ok(n) => ingest.append(&buffer[..n])?,
                Err(e) => {
                    let why = format!("the connection broke: {e}");
                    return Ok(Err(Failure::Transient(printable(&why), None)));
                }
            }
            let state = State::Downloading(ingest.len(), blob.size);
            self.progress.report(&item, state);
        }
        // Reading to the end leaves the connection for the next blob, and shows who sends too much.
        match body.read(&mut buffer) {
            Ok(n) if n > 0 => Err(Error::Size {
                what: format!("blob {}", blob.digest),
                expected: blob.size,
                found: blob.size.saturating_add(n as u64),
            }),
            _ => Ok(Ok(())),
        }
    }
}

/// Whether a `Content-Range` (RFC 9110 §14.4) begins at `position`.
fn begins_at(range: &str, position: u64) -> bool {
    range
        .strip_prefix("bytes ")
        .and_then(|range| range.split_once('-'))
        .is_some_and(|(begin, _)| begin.trim().parse() == Ok(position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_when_it_begins_elsewhere_is_another() {
        assert!(begins_at("bytes 5-9/10", 5));
        for other in ["bytes 0-9/10", "bytes 50-9/10", "bytes */10", "5-9/10", ""] {
            assert!(!begins_at(other, 5), "{other}");
        }
    }
}
