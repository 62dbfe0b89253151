//! Pushing: layers and configuration first, the manifest last, so that a registry never has a manifest
//! without what it names.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use ureq::http::header::RANGE;
use ureq::http::{Method, StatusCode};

use super::Access;
use super::client::{Client, Failure, Payload, Request, Response, expect, location, scope};
use super::retry::{Retry, retry};
use crate::digest::Digest;
use crate::error::{Error, Result, in_manifest};
use crate::manifest::{Descriptor, MAX_MANIFEST, Manifest};
use crate::progress::{Progress, State};
use crate::reference::Reference;
use crate::store::{Held, Image, Store};

/// How many blobs are sent at the same time.
const PARALLEL: usize = 3;
/// The most bytes that are sent in one request, if nothing else is said.
const CHUNK: u64 = 64 << 20;

/// How to push.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// How to get into the registry.
    pub access: Access,
    /// Blobs longer than this are sent in pieces of so many bytes, so that a connection that breaks
    /// costs one piece. Shorter ones are sent whole.
    pub chunk: u64,
}

impl Default for PushOptions {
    fn default() -> Self {
        PushOptions {
            access: Access::default(),
            chunk: CHUNK,
        }
    }
}

/// Sends an image to a registry, under the name `reference`. Returns the digest it has there. What the
/// registry has already, here or in the repository that the image came from, is not sent.
pub fn push(
    store: &Store,
    image: &Image,
    reference: &Reference,
    options: &PushOptions,
    progress: &dyn Progress,
) -> Result<Digest> {
    let lease = store.lease()?;
    lease.hold(Held::Image(image.manifest.digest))?;
    let bytes = store.read_document(&image.manifest, MAX_MANIFEST)?;
    let manifest = Manifest::parse(&bytes).map_err(in_manifest(image.title()))?;

    let client = Client::new(reference, &options.access)?;
    let elsewhere = [&image.source, &image.name]
        .into_iter()
        .flatten()
        .find(|other| other.host() == reference.host() && other.path() != reference.path())
        .map(|other| other.path().to_owned());
    let push = Push {
        store,
        scope: client.scope("pull,push"),
        client: &client,
        title: reference.familiar(),
        elsewhere,
        chunk: options.chunk.max(1),
        progress,
    };
    progress.message(&format!(
        "The push refers to repository [{}]",
        reference.repository()
    ));
    push.blobs(&manifest)?;
    let target = reference
        .tag()
        .map_or_else(|| image.manifest.digest.to_string(), str::to_owned);
    retry(|| {
        let request = Request::new(Method::PUT, client.path(&format!("manifests/{target}")))
            .header("content-type", manifest.media_type())
            .payload(Payload::Bytes(&bytes));
        let response = client.send(&request, &push.scope)?;
        expect(
            response,
            &[StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED],
        )
    })
    .map_err(|failure| push.failed(failure))?;
    progress.message(&format!(
        "{target}: digest: {} size: {}",
        image.manifest.digest,
        bytes.len()
    ));
    Ok(image.manifest.digest)
}

struct Push<'a> {
    store: &'a Store,
    client: &'a Client,
    scope: String,
    title: String,
    /// Another repository there that has this image's layers.
    elsewhere: Option<String>,
    chunk: u64,
    progress: &'a dyn Progress,
}

/// An upload that the registry has opened.
struct Upload {
    /// Where the next piece goes.
    url: String,
    /// The least that a piece has to have, says the registry.
    least: u64,
}

impl Push<'_> {
    fn failed(&self, failure: Failure) -> Error {
        Error::Registry {
            doing: format!("push {} to", self.title),
            host: self.client.host().into(),
            why: failure.why(),
        }
    }

    fn blobs(&self, manifest: &Manifest) -> Result<()> {
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if !blobs.iter().any(|other| other.digest == blob.digest) {
                blobs.push(blob);
                self.progress.report(&blob.digest.short(), State::Waiting);
            }
        }
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let first_failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        thread::scope(|scope| {
            for _ in 0..PARALLEL.min(blobs.len()) {
                scope.spawn(|| {
                    while first_failure().is_none()
                        && let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if let Err(e) = self.blob(blob) {
                            first_failure().get_or_insert(e);
                        }
                    }
                });
            }
        });
        match first_failure().take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn blob(&self, blob: &Descriptor) -> Result<()> {
        let item = blob.digest.short();
        let there = retry(|| self.is_there(blob)).map_err(|failure| self.failed(failure))?;
        if there {
            self.progress.report(&item, State::Exists);
            return Ok(());
        }
        let mut upload = match retry(|| self.begin(blob)).map_err(|failure| self.failed(failure))? {
            Some(upload) => upload,
            None => {
                let from = self.elsewhere.as_deref().unwrap_or_default();
                self.progress.report(&item, State::Mounted(from));
                return Ok(());
            }
        };
        let file = self.store.open_blob(blob)?;
        let mut tries = Retry::default();
        let mut sent = 0;
        loop {
            let before = sent;
            let Err(failure) = self.send(blob, &file, &mut upload, &mut sent) else {
                break;
            };
            if sent > before {
                tries.progressed();
            }
            let why = tries
                .after(failure)
                .map_err(|failure| self.failed(failure))?;
            self.progress.report(&item, State::Retrying(&why));
            sent = match self.position(&upload) {
                Some((at, url)) if at <= blob.size && blob.size > self.chunk => {
                    upload.url = url;
                    at
                }
                // It has forgotten the upload, or never counts: begin anew.
                _ => {
                    match retry(|| self.begin(blob)).map_err(|failure| self.failed(failure))? {
                        Some(new) => upload = new,
                        None => break,
                    }
                    0
                }
            };
        }
        self.progress.report(&item, State::Done);
        Ok(())
    }

    fn is_there(&self, blob: &Descriptor) -> std::result::Result<bool, Failure> {
        let path = self.client.path(&format!("blobs/{}", blob.digest));
        let request = Request::new(Method::HEAD, path);
        let response = self.client.send(&request, &self.scope)?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        expect(response, &[StatusCode::OK]).map(|_| true)
    }

    /// Opens an upload, unless the registry takes the blob from another of its repositories.
    fn begin(&self, blob: &Descriptor) -> std::result::Result<Option<Upload>, Failure> {
        let path = self.client.path("blobs/uploads/");
        if let Some(other) = &self.elsewhere {
            let path = format!("{path}?mount={}&from={other}", blob.digest);
            let scopes = format!("{} {}", self.scope, scope(other, "pull"));
            let answer = self.client.send(&Request::new(Method::POST, path), &scopes);
            match answer {
                Ok(response) if response.status() == StatusCode::CREATED => return Ok(None),
                Ok(response) if response.status() == StatusCode::ACCEPTED => {
                    return opened(&response).map(Some);
                }
                // We may not see that repository, or nobody mounts here: it was worth a try.
                _ => (),
            }
        }
        let request = Request::new(Method::POST, path);
        let response = self.client.send(&request, &self.scope)?;
        opened(&expect(response, &[StatusCode::ACCEPTED])?).map(Some)
    }

    /// Sends the blob from where the registry has it, and closes the upload.
    fn send(
        &self,
        blob: &Descriptor,
        file: &File,
        upload: &mut Upload,
        sent: &mut u64,
    ) -> std::result::Result<(), Failure> {
        let item = blob.digest.short();
        let finished = |url: &str| {
            let mark = if url.contains('?') { '&' } else { '?' };
            format!("{url}{mark}digest={}", blob.digest)
        };
        let report = |base: u64| {
            let item = &item;
            move |n: u64| {
                self.progress
                    .report(item, State::Uploading(base + n, blob.size))
            }
        };
        let octets = |method, url| {
            Request::new(method, url).header("content-type", "application/octet-stream")
        };
        if blob.size <= self.chunk {
            let sent = report(0);
            let request = octets(Method::PUT, finished(&upload.url)).payload(Payload::File {
                file,
                offset: 0,
                len: blob.size,
                sent: &sent,
            });
            let response = self.client.send(&request, &self.scope)?;
            return expect(response, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).map(drop);
        }
        while *sent < blob.size {
            let len = self.chunk.max(upload.least).min(blob.size - *sent);
            let told = report(*sent);
            let request = octets(Method::PATCH, upload.url.clone())
                .header("content-range", format!("{}-{}", sent, *sent + len - 1))
                .payload(Payload::File {
                    file,
                    offset: *sent,
                    len,
                    sent: &told,
                });
            let response = self.client.send(&request, &self.scope)?;
            let response = expect(response, &[StatusCode::ACCEPTED, StatusCode::NO_CONTENT])?;
            upload.url = next_url(&response, &upload.url)?;
            *sent += len;
        }
        let request = Request::new(Method::PUT, finished(&upload.url));
        let response = self.client.send(&request, &self.scope)?;
        expect(response, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).map(drop)
    }

    /// How much of an upload the registry has, and where it goes on.
    fn position(&self, upload: &Upload) -> Option<(u64, String)> {
        let request = Request::new(Method::GET, upload.url.clone());
        let response = self.client.send(&request, &self.scope).ok()?;
        let response = expect(response, &[StatusCode::NO_CONTENT]).ok()?;
        let range = response.headers().get(RANGE)?.to_str().ok()?;
        let last: u64 = range
            .trim_start_matches("bytes=")
            .strip_prefix("0-")?
            .parse()
            .ok()?;
        // `0-0` is what some say who have nothing; that a single byte is sent again does no harm.
        let at = if last == 0 { 0 } else { last.checked_add(1)? };
        Some((at, next_url(&response, &upload.url).ok()?))
    }
}

/// The upload that a registry says it has opened.
fn opened(response: &Response) -> std::result::Result<Upload, Failure> {
    let least = response
        .headers()
        .get("oci-chunk-min-length")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    Ok(Upload {
        url: next_url(response, "/")?,
        least,
    })
}

fn next_url(response: &Response, asked: &str) -> std::result::Result<String, Failure> {
    location(response, asked)
        .ok_or_else(|| Failure::Fatal("it does not say where to upload to".into()))
}
