//! The file that the disk is written to: few, large, mostly sequential writes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::WriteError;
use super::format::BLOCK_LEN;
use super::space::Extent;

/// Bytes of contents that are gathered before they are written.
const STREAM_LEN: usize = 1 << 20;

/// The file, and what is not yet in it.
#[derive(Debug)]
pub struct Output<'f> {
    file: &'f File,
    /// Contents, which belong at `stream_offset`; filled to `stream_len`.
    stream: Box<[u8]>,
    stream_offset: u64,
    stream_len: usize,
    /// The extent for inodes that is being filled.
    extent: Extent,
    inodes: Vec<u8>,
    /// Bytes of it that are filled.
    filled: usize,
}

impl<'f> Output<'f> {
    /// Empties the file.
    pub fn new(file: &'f File) -> Result<Self, WriteError> {
        file.set_len(0).map_err(WriteError::Write)?;
        Ok(Self {
            file,
            stream: vec![0; STREAM_LEN].into_boxed_slice(),
            stream_offset: 0,
            stream_len: 0,
            extent: Extent { offset: 0, len: 0 },
            inodes: Vec::new(),
            filled: 0,
        })
    }

    /// The bytes of an inode, zeros so far, in this extent; the one before is written if it is another.
    pub fn inode(
        &mut self,
        extent: Extent,
        offset: u64,
        len: usize,
    ) -> Result<&mut [u8], WriteError> {
        if extent != self.extent {
            self.flush_inodes()?;
            self.extent = extent;
            self.inodes.clear();
            self.inodes.resize(extent.len, 0);
        }
        let start = (offset - extent.offset) as usize;
        self.filled = self.filled.max(start + len);
        Ok(&mut self.inodes[start..start + len])
    }

    /// Contents from here on belong at this offset.
    pub fn seek(&mut self, offset: u64) -> Result<(), WriteError> {
        if offset != self.stream_offset + self.stream_len as u64 {
            self.flush_stream()?;
            self.stream_offset = offset;
        }
        Ok(())
    }

    /// Appends bytes to the contents.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
            self.stream_len += len;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Appends `len` bytes that are read straight into place.
    pub fn append_from(&mut self, source: &mut impl Read, mut len: u64) -> Result<(), WriteError> {
        while len > 0 {
            let room = self.room()?;
            let part = usize::try_from(len).unwrap_or(usize::MAX).min(room.len());
            source
                .read_exact(&mut room[..part])
                .map_err(WriteError::Read)?;
            self.stream_len += part;
            len -= part as u64;
        }
        Ok(())
    }

    /// Appends zeros; many of them become a hole in the file.
    pub fn append_zeros(&mut self, len: u64) -> Result<(), WriteError> {
        if len >= STREAM_LEN as u64 {
            return self.seek(self.stream_offset + self.stream_len as u64 + len);
        }
        let mut len = len as usize;
        while len > 0 {
            let room = self.room()?;
            let part = len.min(room.len());
            room[..part].fill(0);
            self.stream_len += part;
            len -= part;
        }
        Ok(())
    }

    /// Writes all that is not yet written.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.flush_stream()?;
        self.flush_inodes()
    }

    /// Writes over bytes that have been written before: one call for what is close together.
    /// `changes` are sorted by offset.
    pub fn patch<'b>(
        &mut self,
        changes: impl Iterator<Item = (u64, &'b [u8])>,
    ) -> Result<(), WriteError> {
        let mut group: Vec<(u64, &[u8])> = Vec::new();
        for change in changes {
            let start = group.first().map_or(change.0, |first| first.0);
            if change.0 + change.1.len() as u64 - start > STREAM_LEN as u64 {
                self.patch_group(&group)?;
                group.clear();
            }
            group.push(change);
        }
        self.patch_group(&group)
    }

    fn patch_group(&mut self, group: &[(u64, &[u8])]) -> Result<(), WriteError> {
        let (Some(&(start, first)), Some(&(last, last_bytes))) = (group.first(), group.last())
        else {
            return Ok(());
        };
        if group.len() == 1 {
            return self
                .file
                .write_all_at(first, start)
                .map_err(WriteError::Write);
        }
        self.flush_stream()?;
        let window = &mut self.stream[..(last - start) as usize + last_bytes.len()];
        self.file
            .read_exact_at(window, start)
            .map_err(WriteError::Write)?;
        for (offset, bytes) in group {
            let at = (offset - start) as usize;
            window[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.file
            .write_all_at(window, start)
            .map_err(WriteError::Write)
    }

    /// Writes the first block and gives the file its length.
    pub fn finish(mut self, first: &[u8; BLOCK_LEN], len: u64) -> Result<(), WriteError> {
        self.flush()?;
        self.file
            .write_all_at(first, 0)
            .map_err(WriteError::Write)?;
        self.file.set_len(len).map_err(WriteError::Write)
    }

    /// What is free in the buffer, which is written if it is full.
    fn room(&mut self) -> Result<&mut [u8], WriteError> {
        if self.stream_len == self.stream.len() {
            self.flush_stream()?;
        }
        Ok(&mut self.stream[self.stream_len..])
    }

    fn flush_stream(&mut self) -> Result<(), WriteError> {
        if self.stream_len > 0 {
            self.write(&self.stream[..self.stream_len], self.stream_offset)?;
            self.stream_offset += self.stream_len as u64;
            self.stream_len = 0;
        }
        Ok(())
    }

    fn flush_inodes(&mut self) -> Result<(), WriteError> {
        if self.filled > 0 {
            self.write(&self.inodes[..self.filled], self.extent.offset)?;
            self.filled = 0;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(WriteError::Write)
    }
}

/// A file's bytes from an offset on, as a stream.
#[derive(Debug)]
pub struct ReadAt<'f> {
    file: &'f File,
    offset: u64,
}

impl<'f> ReadAt<'f> {
    /// Reads from `offset`.
    pub fn new(file: &'f File, offset: u64) -> Self {
        Self { file, offset }
    }
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buf, self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }
}
