//! Where a kernel's ELF image is read from: the file itself, or a payload as it is unpacked.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use bulkhead_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::Compression;
use super::error::Problem;
use crate::boot::place::place;

/// An ELF image to be read front to back.
pub(super) trait Source {
    /// Fills `buffer` with the bytes at `offset`.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Problem>;

    /// Puts `len` bytes at `offset` to guest memory at `address`.
    ///
    /// The caller has checked that this range is whole in one region.
    fn load(
        &mut self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: GuestAddress,
    ) -> Result<(), Problem>;
}

/// A file on the host.
pub(super) struct FileSource<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> FileSource<'a> {
    pub(super) fn new(file: &'a File, len: u64) -> Self {
        FileSource { file, len }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Problem> {
        let needed = offset
            .checked_add(len)
            .ok_or(Problem::Elf("a segment ends beyond 2^64"))?;
        if needed > self.len {
            return Err(Problem::CutShort {
                needed,
                len: self.len,
            });
        }
        Ok(())
    }
}

impl Source for FileSource<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Problem> {
        self.check(offset, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, offset).map_err(Problem::Io)
    }

    fn load(
        &mut self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: GuestAddress,
    ) -> Result<(), Problem> {
        self.check(offset, len)?;
        place(self.file, offset, len, memory, address).map_err(Problem::Io)
    }
}

/// Bytes unpacked at a time.
const CHUNK: usize = 64 << 10;

/// A payload being unpacked. It cannot be read backwards, and is kept nowhere but in the guest.
pub(super) struct UnpackedSource<R> {
    reader: R,
    compression: Compression,
    limit: u64,
    position: u64,
    chunk: Vec<u8>,
}

impl<R: Read> UnpackedSource<R> {
    /// Takes no more than `limit` bytes from `reader`: a few KiB can unpack to any number.
    pub(super) fn new(reader: R, compression: Compression, limit: u64) -> Self {
        UnpackedSource {
            reader,
            compression,
            limit,
            position: 0,
            chunk: vec![0; CHUNK],
        }
    }

    /// Unpacks what is left, so that the decompressor checks its checksum over all of it.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        while self.fill(CHUNK)? != 0 {}
        Ok(())
    }

    /// Unpacks up to `len` bytes into the chunk; fewer only at the end.
    fn fill(&mut self, len: usize) -> Result<usize, Problem> {
        let len = len.min(CHUNK);
        let mut filled = 0;
        while filled < len {
            match self.reader.read(&mut self.chunk[filled..len]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Problem::Damaged {
                        compression: self.compression,
                        source,
                    });
                }
            }
        }
        self.position += filled as u64;
        if self.position > self.limit {
            return Err(Problem::PayloadTooLong(self.limit >> 20));
        }
        Ok(filled)
    }

    /// Unpacks `len` bytes and gives them to `take` chunk by chunk.
    fn for_chunks(
        &mut self,
        mut len: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        while len != 0 {
            let filled = self.fill(usize::try_from(len).unwrap_or(CHUNK))?;
            if filled == 0 {
                return Err(Problem::PayloadTooShort(self.position));
            }
            take(&self.chunk[..filled])?;
            len -= filled as u64;
        }
        Ok(())
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), Problem> {
        let skip = offset
            .checked_sub(self.position)
            .ok_or(Problem::Elf("its parts overlap in the file"))?;
        self.for_chunks(skip, |_| Ok(()))
    }
}

impl<R: Read> Source for UnpackedSource<R> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Problem> {
        self.skip_to(offset)?;
        let mut rest = &mut *buffer;
        self.for_chunks(rest.len() as u64, |chunk| {
            let (filled, after) = std::mem::take(&mut rest).split_at_mut(chunk.len());
            filled.copy_from_slice(chunk);
            rest = after;
            Ok(())
        })
    }

    fn load(
        &mut self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: GuestAddress,
    ) -> Result<(), Problem> {
        self.skip_to(offset)?;
        let mut address = address.0;
        self.for_chunks(len, |chunk| {
            memory
                .write_slice(chunk, GuestAddress(address))
                .map_err(|error| Problem::Io(io::Error::other(error)))?;
            address += chunk.len() as u64;
            Ok(())
        })
    }
}
