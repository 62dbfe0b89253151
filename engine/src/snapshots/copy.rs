//! Copies of disks, which are large and mostly empty: nothing is copied where the file system can share it, and
//! holes stay holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::error::{Error, cannot};

/// What is copied between two looks at whether to go on, in bytes.
const CHUNK: u64 = 1 << 20;

/// Copies the file `from` to `to`, which must not be there yet and is not left there unless it is whole.
pub fn copy_disk(from: &Path, to: &Path, is_interrupted: &dyn Fn() -> bool) -> Result<(), Error> {
    let source = File::open(from).map_err(cannot(format!("open {}", from.display())))?;
    let copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(cannot(format!("make {}", to.display())))?;
    let copied = match ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(true),
        // Another file system, or one that cannot: whatever is wrong shows when it is copied.
        Err(_) => copy_data(&source, &copy, is_interrupted),
    };
    let failed = match copied {
        Ok(true) => return Ok(()),
        Ok(false) => interrupted(),
        Err(e) => cannot(format!("copy {} to {}", from.display(), to.display()))(e),
    };
    // What is left of it harms nobody but by its size.
    let _ = std::fs::remove_file(to);
    Err(failed)
}

/// Why nothing came of it.
pub fn interrupted() -> Error {
    Error::Invalid("it was interrupted, and nothing of it is left".to_owned())
}

/// Copies what is not a hole. `false` if it was interrupted.
fn copy_data(from: &File, to: &File, is_interrupted: &dyn Fn() -> bool) -> io::Result<bool> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while let Some((mut start, end)) = next_data(from, at, size)? {
        while start < end {
            if is_interrupted() {
                return Ok(false);
            }
            let len = (end - start).min(CHUNK);
            let chunk = &mut buffer[..len as usize]; // at most CHUNK
            from.read_exact_at(chunk, start)?;
            to.write_all_at(chunk, start)?;
            start += len;
        }
        at = end;
    }
    Ok(true)
}

/// The first bytes from `at` on that are not a hole: where they start and end.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // From here on there is only a hole.
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows of no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok((start < size).then_some((start, end.min(size))))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("disk");
        let file = File::create(&path).expect("disk");
        file.set_len(64 * MIB).expect("size");
        file.write_all_at(&[7; 5000], 3 * MIB + 11).expect("write");
        file.write_all_at(b"end", 50 * MIB).expect("write");
        path
    }

    #[test]
    fn disk_when_copied_is_the_same_and_keeps_its_holes() {
        let dir = tempfile::tempdir().expect("folder");
        let disk = disk(dir.path());
        let copies = ["shared", "copied"].map(|name| dir.path().join(name));
        copy_disk(&disk, &copies[0], &|| false).expect("copy");
        // As where a file system cannot share.
        let to = File::create(&copies[1]).expect("copy");
        let from = File::open(&disk).expect("open");
        assert!(copy_data(&from, &to, &|| false).expect("copy"));
        let original = fs::read(&disk).expect("read");
        for copy in copies {
            assert!(fs::read(&copy).expect("read") == original, "{copy:?}");
            let blocks = fs::metadata(&copy).expect("stat").blocks();
            assert!(blocks * 512 < MIB, "{copy:?} takes {blocks} blocks");
        }
    }

    #[test]
    fn disk_when_it_ends_in_a_hole_or_is_empty_has_its_size() {
        let dir = tempfile::tempdir().expect("folder");
        for size in [0, 10 * MIB + 512] {
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            File::create(&from)
                .expect("disk")
                .set_len(size)
                .expect("size");
            copy_disk(&from, &to, &|| false).expect("copy");
            assert_eq!(fs::metadata(&to).expect("stat").len(), size);
            fs::remove_file(to).expect("remove");
        }
    }

    #[test]
    fn copy_when_interrupted_or_in_the_way_leaves_what_was_there() {
        let dir = tempfile::tempdir().expect("folder");
        let disk = disk(dir.path());
        let to = dir.path().join("to");
        let file = File::create(&to).expect("copy");
        let from = File::open(&disk).expect("open");
        assert!(!copy_data(&from, &file, &|| true).expect("no"));
        copy_disk(&disk, &to, &|| false).expect_err("it is there");
        assert!(to.exists());
    }
}
