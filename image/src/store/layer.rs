//! Layers as what they are inside: tar streams, whose digest is the diff ID.
//!
//! A thread of its own reads the blob and decompresses it, so that this goes on while the reader works.
//! The two exchange a few buffers, so memory does not depend on the layer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use flate2::bufread::MultiGzDecoder;

use super::{Layer, Store};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// How much is handed over at a time, and how many of those there are.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 6;
/// How much of a blob is read at a time.
const READ: usize = 128 << 10;
/// zstd's window may be 2^27 bytes, as its own program's is; more needs an option there too.
const MAX_ZSTD_WINDOW: u32 = 27;

/// The tar stream of a layer. It ends with an error if its digest is not the diff ID.
#[derive(Debug)]
pub struct LayerReader {
    blob: Digest,
    diff_id: Digest,
    chunks: Option<Receiver<io::Result<Vec<u8>>>>,
    spare: Option<SyncSender<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
    /// How many bytes of the blob were read.
    position: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    verified: bool,
}

impl Store {
    /// Opens a layer for reading.
    pub fn open_layer(&self, layer: &Layer) -> Result<LayerReader> {
        let file = self.open_blob(&layer.blob)?;
        LayerReader::start(file, layer.blob.digest, layer.diff_id)
    }
}

impl LayerReader {
    fn start(file: File, blob: Digest, diff_id: Digest) -> Result<Self> {
        let (send, chunks) = sync_channel(CHUNKS);
        let (spare, spares) = sync_channel(CHUNKS);
        for _ in 0..CHUNKS {
            // There is room for all of them.
            let _ = spare.send(Vec::new());
        }
        let position = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            file,
            position: Arc::clone(&position),
        };
        let thread = thread::Builder::new()
            .name("decompress".into())
            .spawn(move || {
                if let Err(e) = pump(counted, &send, &spares) {
                    // Nobody listens any more: nobody cares.
                    let _ = send.send(Err(e));
                }
            })
            .map_err(|e| Error::Layer {
                layer: blob,
                why: format!("no thread for it: {e}"),
            })?;
        Ok(LayerReader {
            blob,
            diff_id,
            chunks: Some(chunks),
            spare: Some(spare),
            current: Vec::new(),
            at: 0,
            hasher: Hasher::new(),
            position,
            thread: Some(thread),
            verified: false,
        })
    }

    /// How many bytes of the blob have been read.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Reads what is left, to see that the whole is right: whoever unpacks a tar may stop before the
    /// end of the stream.
    pub fn finish(&mut self) -> Result<()> {
        while !self.verified {
            self.next_chunk().map_err(|e| Error::Layer {
                layer: self.blob,
                why: e.to_string(),
            })?;
        }
        Ok(())
    }

    /// Gets the next chunk, which is empty at the end.
    fn next_chunk(&mut self) -> io::Result<()> {
        let used = std::mem::take(&mut self.current);
        self.at = 0;
        if self.verified {
            return Ok(());
        }
        if let Some(spare) = &self.spare {
            let _ = spare.try_send(used);
        }
        match self.chunks.as_ref().map(Receiver::recv) {
            Some(Ok(Ok(chunk))) => {
                self.hasher.update(&chunk);
                self.current = chunk;
                Ok(())
            }
            Some(Ok(Err(e))) => {
                self.chunks = None;
                Err(e)
            }
            Some(Err(_)) => {
                self.chunks = None;
                let found = self.hasher.clone().finish();
                if found != self.diff_id {
                    return Err(invalid(format!(
                        "its contents have the digest {found}, and the image says {}",
                        self.diff_id
                    )));
                }
                self.verified = true;
                Ok(())
            }
            None => Err(invalid("it was damaged".into())),
        }
    }
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut rest = self.fill_buf()?;
        let n = rest.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for LayerReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() && !self.verified {
            self.next_chunk()?;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.current.len());
    }
}

impl Drop for LayerReader {
    fn drop(&mut self) {
        // Whichever of the two the thread waits for, it ends.
        self.chunks = None;
        self.spare = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends what the blob contains, chunk by chunk. Ends early if nobody wants it any more.
fn pump(
    blob: impl Read + Send,
    send: &SyncSender<io::Result<Vec<u8>>>,
    spares: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut tar = decompress(BufReader::with_capacity(READ, blob))?;
    loop {
        let Ok(mut chunk) = spares.recv() else {
            return Ok(());
        };
        chunk.resize(CHUNK, 0);
        let mut len = 0;
        while len < CHUNK {
            match tar.read(&mut chunk[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) => return Err(e),
            }
        }
        let last = len < CHUNK;
        chunk.truncate(len);
        if len > 0 && send.send(Ok(chunk)).is_err() || last {
            return Ok(());
        }
    }
}

/// What `input` contains. How it is compressed is seen by its first bytes: media types are not always
/// true.
pub(crate) fn decompress<'a>(
    mut input: BufReader<impl Read + Send + 'a>,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let begin = input.fill_buf()?;
    Ok(if begin.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(input))
    } else if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(begin) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(MAX_ZSTD_WINDOW)?;
        Box::new(decoder)
    } else if begin.starts_with(b"\xfd7zXZ\0") {
        return Err(invalid("it is packed with xz; unpack it first".into()));
    } else if begin.starts_with(b"BZh") {
        return Err(invalid("it is packed with bzip2; unpack it first".into()));
    } else {
        Box::new(input)
    })
}

/// A frame that zstd programs pass over, with which a stream may begin.
fn is_skippable(begin: &[u8]) -> bool {
    matches!(begin, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Counts what is read of a file.
struct Counted {
    file: File,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.position.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("written");
        file.rewind().expect("rewound");
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("packed");
        encoder.finish().expect("packed")
    }

    fn contents() -> Vec<u8> {
        (0..700_000u32)
            .map(|n| (n.wrapping_mul(n) >> 7) as u8)
            .collect()
    }

    fn reader(blob: &[u8], contents: &[u8]) -> LayerReader {
        LayerReader::start(file(blob), Digest::of(blob), Digest::of(contents)).expect("thread")
    }

    #[test]
    fn layer_when_packed_in_any_way_gives_its_contents() {
        let contents = contents();
        let zstd = zstd::encode_all(&contents[..], 1).expect("packed");
        let (one, two) = contents.split_at(300_001);
        let members = [gzip(one), gzip(two)].concat();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd].concat();
        for blob in [contents.clone(), gzip(&contents), zstd, members, skippable] {
            let mut found = Vec::new();
            let mut reader = reader(&blob, &contents);
            reader.read_to_end(&mut found).expect("whole");
            assert!(found == contents);
            assert_eq!(reader.position(), blob.len() as u64);
            reader.finish().expect("verified");
        }
    }

    #[test]
    fn layer_when_left_early_is_still_verified() {
        let contents = contents();
        let mut right = reader(&gzip(&contents), &contents);
        right.read_exact(&mut [0; 1000]).expect("some");
        right.finish().expect("verified");

        let mut wrong = reader(&gzip(&contents), b"something else");
        wrong.read_exact(&mut [0; 1000]).expect("some");
        let error = wrong.finish().expect_err("digest").to_string();
        assert!(error.contains("digest"), "{error}");
        assert!(wrong.finish().is_err());
    }

    #[test]
    fn layer_when_cut_short_or_damaged_is_an_error() {
        let contents = contents();
        let whole = gzip(&contents);
        assert!(
            io::copy(
                &mut reader(&whole[..whole.len() / 2], &contents),
                &mut io::sink()
            )
            .is_err()
        );
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 0x10;
        assert!(io::copy(&mut reader(&damaged, &contents), &mut io::sink()).is_err());
        assert!(io::copy(&mut reader(b"\xfd7zXZ\0\0", &contents), &mut io::sink()).is_err());
    }

    #[test]
    fn layer_when_dropped_early_ends_its_thread() {
        let contents = contents();
        let mut reader = reader(&contents, &contents);
        reader.read_exact(&mut [0; 10]).expect("some");
        drop(reader);
    }
}
