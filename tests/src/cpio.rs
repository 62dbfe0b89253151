//! An initramfs: a `newc` cpio archive, written as Linux's `buffer-format.rst` describes it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const MODE_DIR: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_755;

/// Writes an archive entry by entry. Parents must come before what lies in them; see [`Self::dir`].
#[derive(Debug)]
pub struct Cpio<W: Write> {
    out: W,
    written: u64,
    next_inode: u32,
}

impl<W: Write> Cpio<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Cpio {
            out,
            written: 0,
            next_inode: 1,
        }
    }

    /// Adds the folder `name` (no leading slash).
    pub fn dir(&mut self, name: &str) -> io::Result<()> {
        self.header(name, MODE_DIR, 0)
    }

    /// Adds an executable file `name` with the bytes of `data`.
    pub fn bytes(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| too_big(name))?;
        self.header(name, MODE_FILE, size)?;
        self.out.write_all(data)?;
        self.written += u64::from(size);
        self.pad()
    }

    /// Adds an executable file `name` with the content of `source`.
    pub fn file(&mut self, name: &str, source: &Path) -> io::Result<()> {
        let mut file = File::open(source)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", source.display())))?;
        let size = u32::try_from(file.metadata()?.len()).map_err(|_| too_big(name))?;
        self.header(name, MODE_FILE, size)?;
        let copied = io::copy(&mut file, &mut self.out)?;
        if copied != u64::from(size) {
            return Err(io::Error::other(format!(
                "{} changed while it was archived",
                source.display()
            )));
        }
        self.written += copied;
        self.pad()
    }

    /// Ends the archive and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.header("TRAILER!!!", 0, 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, name: &str, mode: u32, size: u32) -> io::Result<()> {
        let inode = self.next_inode;
        self.next_inode += 1;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_big(name))?;
        // inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), name size, checksum.
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.written += header.len() as u64 + u64::from(name_size);
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = (4 - self.written % 4) % 4;
        self.out.write_all(&[0; 3][..padding as usize])?;
        self.written += padding;
        Ok(())
    }
}

fn too_big(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("{name} is too big for an initramfs"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_when_entries_have_odd_lengths_then_everything_is_aligned() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.dir("d").expect("dir");
        cpio.bytes("d/abc", b"12345").expect("file");
        let archive = cpio.finish().expect("finish");
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        // A folder's header is 110 bytes and its name 2: it ends aligned, and the file follows.
        assert_eq!(&archive[112..118], b"070701");
        assert!(text.contains("d/abc\0"));
        assert!(text.contains("12345\0\0\x00070701"));
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"), "{text:?}");
    }
}
