//! Blobs: how they get in, and how they are read.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use tempfile::NamedTempFile;

use super::lock::{Guard, open_locked};
use super::{Held, Lease, Store, hash_file};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result, io_error};
use crate::manifest::Descriptor;

impl Store {
    /// Whether the blob is here. It then stays while the lease lives.
    pub fn has_blob(&self, lease: &Lease<'_>, blob: &Descriptor) -> Result<bool> {
        lease.hold(Held::Blob(blob.digest))?;
        Ok(self.is_here(&blob.digest, blob.size))
    }

    /// A file of another length is what a power failure may have left; it counts as missing, and is
    /// replaced when the blob comes again.
    fn is_here(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|metadata| metadata.len() == size)
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, blob: &Descriptor) -> Result<File> {
        let path = self.blob_path(&blob.digest);
        match File::open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(io_error("read", &path))?.len();
                if found != blob.size {
                    return Err(Error::Size {
                        what: format!("blob {}", blob.digest),
                        expected: blob.size,
                        found,
                    });
                }
                Ok(file)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Lost(blob.digest)),
            Err(e) => Err(io_error("open", &path)(e)),
        }
    }

    /// Reads a manifest or a configuration, of at most `most` bytes, and checks it again: they are
    /// small, and everything hangs on them.
    pub fn read_document(&self, blob: &Descriptor, most: u64) -> Result<Vec<u8>> {
        let what = || format!("blob {}", blob.digest);
        if blob.size > most {
            return Err(Error::Size {
                what: what(),
                expected: most,
                found: blob.size,
            });
        }
        let mut bytes = Vec::new();
        self.open_blob(blob)?
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &self.blob_path(&blob.digest)))?;
        check(
            &what(),
            (blob.digest, blob.size),
            (Digest::of(&bytes), bytes.len() as u64),
        )?;
        Ok(bytes)
    }

    /// Puts a small blob in.
    pub fn add_blob(
        &self,
        lease: &Lease<'_>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Descriptor> {
        let mut writer = self.blob_writer()?;
        writer
            .write_all(bytes)
            .map_err(io_error("write", &self.path("ingest")))?;
        let (digest, size) = writer.commit(lease, None)?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Begins a blob whose digest is not known yet.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>> {
        Ok(BlobWriter {
            store: self,
            file: self.temporary()?,
            hasher: Hasher::new(),
        })
    }

    /// Begins to fetch a blob, or goes on where a process before this one was stopped. Waits while
    /// another process fetches the same. `None`: it is here now.
    pub fn ingest(&self, lease: &Lease<'_>, blob: &Descriptor) -> Result<Option<Ingest<'_>>> {
        if self.has_blob(lease, blob)? {
            return Ok(None);
        }
        let path = self.path("ingest").join(blob.digest.hex());
        let file = open_locked(&path)?;
        let mut ingest = Ingest {
            store: self,
            blob: blob.clone(),
            file,
            path,
            hasher: Hasher::new(),
        };
        if self.is_here(&blob.digest, blob.size) {
            // Whoever was waited for brought it, and opening made an empty file anew.
            fs::remove_file(&ingest.path).map_err(io_error("remove", &ingest.path))?;
            return Ok(None);
        }
        let length = ingest
            .file
            .metadata()
            .map_err(io_error("read", &ingest.path))?
            .len();
        if length > blob.size {
            ingest.restart()?;
        } else {
            hash_file(&mut ingest.file, &mut ingest.hasher)
                .map_err(io_error("read", &ingest.path))?;
        }
        Ok(Some(ingest))
    }

    /// A file in `ingest/` that is gone when it is dropped, and is removed by the collector if its
    /// process was killed.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile> {
        // The collector must not come between making it and locking it.
        let guard = self.lock_shared()?;
        self.temporary_locked(&guard)
    }

    pub(super) fn temporary_locked(&self, _guard: &Guard) -> Result<NamedTempFile> {
        let folder = self.path("ingest");
        let file = tempfile::Builder::new()
            .prefix("new-")
            .tempfile_in(&folder)
            .map_err(io_error("make a file in", &folder))?;
        file.as_file()
            .lock()
            .map_err(io_error("lock", file.path()))?;
        Ok(file)
    }
}

/// Compares what came with what was announced.
fn check(what: &str, expected: (Digest, u64), found: (Digest, u64)) -> Result<()> {
    if expected.1 != found.1 {
        return Err(Error::Size {
            what: what.into(),
            expected: expected.1,
            found: found.1,
        });
    }
    if expected.0 != found.0 {
        return Err(Error::Damaged {
            what: what.into(),
            expected: expected.0,
            found: found.0,
        });
    }
    Ok(())
}

/// A blob on its way in that has no name until it is complete.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    store: &'a Store,
    file: NamedTempFile,
    hasher: Hasher,
}

impl BlobWriter<'_> {
    /// Puts it in its place, if it is what was announced.
    pub fn commit(
        self,
        lease: &Lease<'_>,
        expected: Option<(Digest, u64)>,
    ) -> Result<(Digest, u64)> {
        let size = self.hasher.len();
        let digest = self.hasher.finish();
        if let Some(expected) = expected {
            check(&format!("blob {}", expected.0), expected, (digest, size))?;
        }
        lease.hold(Held::Blob(digest))?;
        let path = self.store.blob_path(&digest);
        if !self.store.is_here(&digest, size) {
            // A name that survives a power failure must not be the name of nothing.
            self.file
                .as_file()
                .sync_data()
                .map_err(io_error("write", self.file.path()))?;
            self.file
                .persist(&path)
                .map_err(|e| io_error("make", &path)(e.error))?;
        }
        Ok((digest, size))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.as_file_mut().write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A blob that is being fetched: it keeps what has come, whatever happens to the process.
#[derive(Debug)]
pub struct Ingest<'a> {
    store: &'a Store,
    blob: Descriptor,
    file: File,
    path: PathBuf,
    hasher: Hasher,
}

impl Ingest<'_> {
    /// How many bytes have come.
    pub fn len(&self) -> u64 {
        self.hasher.len()
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all bytes have come.
    pub fn is_complete(&self) -> bool {
        self.len() == self.blob.size
    }

    /// Takes the next bytes: no more than were announced.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let found = self.len().saturating_add(bytes.len() as u64);
        if found > self.blob.size {
            return Err(Error::Size {
                what: format!("blob {}", self.blob.digest),
                expected: self.blob.size,
                found,
            });
        }
        self.file
            .write_all(bytes)
            .map_err(io_error("write", &self.path))?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Forgets what has come.
    pub fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(io_error("write", &self.path))?;
        self.hasher = Hasher::new();
        Ok(())
    }

    /// Puts it in its place, if it is what was announced. If it is not, what came is forgotten, and
    /// fetching can begin anew.
    pub fn commit(&mut self) -> Result<()> {
        let found = (self.hasher.clone().finish(), self.hasher.len());
        let expected = (self.blob.digest, self.blob.size);
        if let Err(e) = check(&format!("blob {}", self.blob.digest), expected, found) {
            self.restart()?;
            return Err(e);
        }
        let path = self.store.blob_path(&self.blob.digest);
        self.file
            .sync_data()
            .map_err(io_error("write", &self.path))?;
        fs::rename(&self.path, &path).map_err(io_error("make", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(folder.path()).expect("store");
        (folder, store)
    }

    fn descriptor(bytes: &[u8]) -> Descriptor {
        Descriptor::new("text/plain", Digest::of(bytes), bytes.len() as u64)
    }

    #[test]
    fn ingest_when_left_half_done_goes_on_where_it_was() {
        let (_folder, store) = store();
        let lease = store.lease().expect("lease");
        let blob = descriptor(b"hello world");
        let mut ingest = store.ingest(&lease, &blob).expect("ingest").expect("new");
        ingest.append(b"hello").expect("appended");
        drop(ingest);

        let mut ingest = store.ingest(&lease, &blob).expect("ingest").expect("half");
        assert_eq!(ingest.len(), 5);
        ingest.append(b" world").expect("appended");
        assert!(ingest.is_complete());
        ingest.commit().expect("right");
        drop(ingest);
        assert!(store.ingest(&lease, &blob).expect("ingest").is_none());
        assert_eq!(
            store.read_document(&blob, 100).expect("read"),
            b"hello world"
        );
        assert_eq!(
            fs::read_dir(store.path("ingest")).expect("ingest").count(),
            0
        );
    }

    #[test]
    fn ingest_when_the_bytes_are_wrong_is_refused_and_begins_anew() {
        let (_folder, store) = store();
        let lease = store.lease().expect("lease");
        let blob = descriptor(b"right");
        let mut ingest = store.ingest(&lease, &blob).expect("ingest").expect("new");
        assert!(ingest.append(b"too long").is_err());
        ingest.append(b"wrong").expect("appended");
        assert!(matches!(ingest.commit(), Err(Error::Damaged { .. })));
        assert!(!store.has_blob(&lease, &blob).expect("look"));
        ingest.append(b"right").expect("appended");
        ingest.commit().expect("right");
        assert!(store.has_blob(&lease, &blob).expect("look"));
    }

    #[test]
    fn blob_when_cut_short_on_disk_counts_as_missing() {
        let (_folder, store) = store();
        let lease = store.lease().expect("lease");
        let blob = store
            .add_blob(&lease, "text/plain", b"hello")
            .expect("added");
        fs::write(store.blob_path(&blob.digest), b"").expect("damaged");
        assert!(!store.has_blob(&lease, &blob).expect("look"));
        assert!(store.open_blob(&blob).is_err());
        store
            .add_blob(&lease, "text/plain", b"hello")
            .expect("added");
        assert!(store.open_blob(&blob).is_ok());
    }

    #[test]
    fn ingest_when_two_want_the_same_lets_one_bring_it() {
        let (_folder, store) = store();
        let blob = descriptor(b"shared");
        let brought: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let lease = store.lease().expect("lease");
                        match store.ingest(&lease, &blob).expect("ingest") {
                            Some(mut ingest) => {
                                ingest.append(b"shared").expect("appended");
                                ingest.commit().expect("right");
                                1
                            }
                            None => 0,
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("thread"))
                .sum()
        });
        assert_eq!(brought, 1);
    }
}
