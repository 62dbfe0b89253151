//! Where contents wait that may be needed after all.
//!
//! An upper layer may hide a file of which a lower layer then makes a hard link under another name.
//! Only the link's entry tells, and it comes after the contents. So hidden contents are kept to the
//! end of their layer, in the disk's own file, beyond where the disk may reach, and cut off then.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::erofs::{ReadAt, WriteError};

/// Bytes that are gathered before they are written; less than this is never written at all.
const BUFFER_LEN: usize = 1 << 20;

/// Contents that wait.
#[derive(Debug)]
pub struct Scratch<'f> {
    file: &'f File,
    base: u64,
    written: u64,
    buffer: Vec<u8>,
}

impl<'f> Scratch<'f> {
    /// Keeps contents in `file` from `base` on.
    pub fn new(file: &'f File, base: u64) -> Self {
        Self {
            file,
            base,
            written: 0,
            buffer: Vec::new(),
        }
    }

    /// Keeps `len` bytes and tells where.
    pub fn keep(&mut self, source: &mut impl Read, mut len: u64) -> Result<u64, WriteError> {
        let at = self.written + self.buffer.len() as u64;
        while len > 0 {
            if self.buffer.len() == BUFFER_LEN {
                self.flush()?;
            }
            let start = self.buffer.len();
            let part = usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(BUFFER_LEN - start);
            self.buffer.resize(start + part, 0);
            source
                .read_exact(&mut self.buffer[start..])
                .map_err(WriteError::Read)?;
            len -= part as u64;
        }
        Ok(at)
    }

    /// What is kept at `at`.
    pub fn read(&mut self, at: u64) -> Result<impl Read + use<'f>, WriteError> {
        self.flush()?;
        Ok(ReadAt::new(self.file, self.base + at))
    }

    /// Forgets everything.
    pub fn clear(&mut self) -> Result<(), WriteError> {
        self.buffer.clear();
        if self.written > 0 {
            self.file.set_len(self.base).map_err(WriteError::Write)?;
            self.written = 0;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        let offset = self
            .base
            .checked_add(self.written)
            .ok_or_else(|| WriteError::Write(io::ErrorKind::FileTooLarge.into()))?;
        self.file
            .write_all_at(&self.buffer, offset)
            .map_err(WriteError::Write)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
