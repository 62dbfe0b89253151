//! Files in the container's writable layer: one of some megabytes from front to back and here and there,
//! and small ones that come and go.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::timed::{Done, for_about};

/// Bytes of a request from front to back.
const CHUNK: usize = 64 << 10;
/// Bytes of a request here or there.
const BLOCK: usize = 4096;
/// The most bytes of the file: it may lie in memory.
const MOST: u64 = 32 << 20;

/// A folder that goes when this does.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What was measured, by name.
pub type Figures = Vec<(&'static str, Done)>;

/// Measures each kind of access for `budget`, below the folder `place`.
pub fn measure(place: &Path, budget: Duration) -> Result<Figures, String> {
    let folder = Folder(place.join("bulkhead-bench.files"));
    let failed = |e: std::io::Error| format!("cannot use {}: {e}", folder.0.display());
    fs::create_dir_all(&folder.0).map_err(failed)?;
    let path = folder.0.join("data");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(failed)?;
    let figures = vec![
        ("file_write", write(&mut file, budget)),
        ("file_read", read(&mut file, budget)),
        ("file_random_read", random(&file, budget, Access::Read)),
        ("file_random_write", random(&file, budget, Access::Write)),
        ("file_metadata", metadata(&folder.0, budget)),
    ];
    let figures = figures
        .into_iter()
        .map(|(name, done)| Ok((name, done.map_err(failed)?)));
    figures.collect()
}

/// Bytes written and made durable, as far as the file system knows of that.
fn write(file: &mut File, budget: Duration) -> std::io::Result<Done> {
    let chunk: Vec<u8> = (0..CHUNK).map(|n| (n % 251) as u8).collect();
    let mut written = 0;
    let mut begun = false;
    for_about(budget, || {
        if begun && written >= MOST {
            return Ok(0);
        }
        begun = true;
        file.write_all(&chunk)?;
        written += CHUNK as u64;
        if written >= MOST {
            file.sync_data()?;
        }
        Ok(CHUNK as u64)
    })
}

/// Bytes read, again from the front when the end is reached.
fn read(file: &mut File, budget: Duration) -> std::io::Result<Done> {
    let mut chunk = vec![0; CHUNK];
    file.seek(SeekFrom::Start(0))?;
    for_about(budget, || {
        let mut n = file.read(&mut chunk)?;
        if n == 0 {
            file.seek(SeekFrom::Start(0))?;
            n = file.read(&mut chunk)?;
        }
        Ok(n as u64)
    })
}

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

/// Blocks read or written at places that look random.
fn random(file: &File, budget: Duration, access: Access) -> std::io::Result<Done> {
    let blocks = (file.metadata()?.len() / BLOCK as u64).max(1);
    let mut block = vec![0; BLOCK];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for_about(budget, || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let offset = state % blocks * BLOCK as u64;
        match access {
            Access::Read => file.read_exact_at(&mut block, offset)?,
            Access::Write => file.write_all_at(&block, offset)?,
        }
        Ok(1)
    })
}

/// Files made, looked at and removed.
fn metadata(folder: &Path, budget: Duration) -> std::io::Result<Done> {
    let path = folder.join("entry");
    for_about(budget, || {
        drop(File::create(&path)?);
        fs::metadata(&path)?;
        fs::remove_file(&path)?;
        Ok(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_when_measured_are_gone() {
        let place = tempfile::tempdir().expect("folder");
        let figures = measure(place.path(), Duration::ZERO).expect("measured");
        let counts: Vec<(&str, u64)> = figures.iter().map(|(n, d)| (*n, d.count)).collect();
        let chunk = CHUNK as u64;
        let expected = [
            ("file_write", chunk),
            ("file_read", chunk),
            ("file_random_read", 1),
            ("file_random_write", 1),
            ("file_metadata", 1),
        ];
        assert_eq!(counts, expected);
        let left = fs::read_dir(place.path()).expect("list").count();
        assert_eq!(left, 0);
        assert!(measure(Path::new("/proc"), Duration::ZERO).is_err());
    }

    #[test]
    fn file_when_there_is_time_does_not_grow_without_bound() {
        let mut file = tempfile::tempfile().expect("file");
        let done = write(&mut file, Duration::from_secs(3600)).expect("written");
        assert_eq!(done.count, MOST);
    }
}
