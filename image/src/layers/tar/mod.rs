//! Tar archives as a stream of entries: ustar, pax and GNU, with long names, sparse files and
//! extended attributes.
//!
//! What archives mean in practice is what the engines that others use make of them: like Go's
//! `archive/tar`, global extended headers are passed over, entries that can have no data have none,
//! and an archive may end without its two blocks of zeros.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

use crate::erofs::{Piece, Time};
use header::{BLOCK_LEN, Header};
use pax::Pax;

/// Bytes that are read ahead: headers and small files come from there, large ones go past it.
const BUFFER_LEN: usize = 128 << 10;

/// Most bytes of one extended header, and most pieces of a sparse file.
const MAX_EXTENDED: u64 = 1 << 20;
const MAX_PIECES: usize = 1 << 18;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream broke off or could not be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// A header's sum is wrong, so it is no header.
    #[error("a header's checksum is wrong")]
    Checksum,
    /// A header's number is none, or out of range.
    #[error("a header has no valid {0}")]
    Number(&'static str),
    /// An extended header is broken or too long.
    #[error("an extended header is malformed or longer than {MAX_EXTENDED} bytes")]
    ExtendedHeader,
    /// A list of holes contradicts itself.
    #[error("the list of a sparse file's pieces is malformed")]
    Sparse,
    /// A list of holes is too long.
    #[error("a sparse file has more than {0} pieces")]
    Pieces(usize),
    /// A kind of entry that images do not have.
    #[error("an entry is of the unknown type {:?}", char::from(*.0))]
    Kind(u8),
    /// More bytes than allowed.
    #[error("the layers have more than {0} bytes")]
    Bytes(u64),
}

/// What an entry is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    #[default]
    Regular,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Default)]
pub struct Entry {
    /// Its name as it stands in the archive.
    pub path: Vec<u8>,
    /// What a link points to.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Time,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// The pieces of a file with holes: in order, apart, none empty, all within `size`.
    pub pieces: Option<Vec<Piece>>,
    /// Names and values of extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// An archive that is read once, front to back.
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the current entry's data that have not been read, and of padding after them.
    data: u64,
    padding: u64,
    /// Bytes read from this and earlier sources, and how many it may be.
    consumed: u64,
    limit: u64,
}

impl<R: Read> Archive<R> {
    /// Reads an archive of at most `limit` bytes.
    pub fn new(source: R, limit: u64) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
            data: 0,
            padding: 0,
            consumed: 0,
            limit,
        }
    }

    /// Counts the bytes of earlier archives, so that the limit is for all of them.
    pub fn after(mut self, consumed: u64) -> Self {
        self.consumed = consumed;
        self
    }

    /// Bytes that have been read, with those of earlier archives.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Goes to the next entry, whose data can then be read from the archive; what is left of the
    /// one before is passed over. At the end of the archive, reads its source to the end.
    pub fn next_entry(&mut self, entry: &mut Entry) -> Result<bool, TarError> {
        let mut pax = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        entry.xattrs.clear();
        entry.pieces = None;
        loop {
            let data = std::mem::take(&mut self.data);
            let padding = std::mem::take(&mut self.padding);
            if !self.skip(data)? {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            // `umoci insert` ends where its last file does, in the middle of a block, as Go allows.
            if !self.skip(padding)? {
                return Ok(false);
            }
            let Some(block) = self.block()? else {
                self.drain()?;
                return Ok(false);
            };
            let header = Header::parse(&block)?;
            match header.kind() {
                b'x' | b'X' => {
                    let records = self.extended(&header)?;
                    // Of several before one entry the last counts, so that they need not be bounded.
                    pax = Pax::default();
                    pax.parse(&records, MAX_PIECES)?;
                }
                b'L' => long_path = Some(self.long_name(&header)?),
                b'K' => long_link = Some(self.long_name(&header)?),
                // A volume's label, and what is meant for all entries: engines ignore both.
                b'g' | b'V' => self.begin_data(header.size()?)?,
                _ => {
                    header.path_into(&mut entry.path);
                    entry.link.clear();
                    entry.link.extend_from_slice(header.link());
                    replace(&mut entry.path, long_path.take());
                    replace(&mut entry.link, long_link.take());
                    self.describe(entry, &header, pax)?;
                    return Ok(true);
                }
            }
        }
    }

    fn describe(
        &mut self,
        entry: &mut Entry,
        header: &Header<'_>,
        mut pax: Pax,
    ) -> Result<(), TarError> {
        replace(&mut entry.path, pax.path.take());
        replace(&mut entry.link, pax.link.take());
        entry.kind = match header.kind() {
            0 if entry.path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(TarError::Kind(other)),
        };
        entry.mode = header.mode()?;
        entry.uid = pax.uid.map_or_else(|| header.uid(), Ok)?;
        entry.gid = pax.gid.map_or_else(|| header.gid(), Ok)?;
        entry.mtime = match pax.mtime {
            Some(time) => time,
            None => Time {
                seconds: header.mtime()?,
                nanoseconds: 0,
            },
        };
        entry.xattrs.append(&mut pax.xattrs);
        entry.size = 0;
        entry.device = match entry.kind {
            Kind::Character | Kind::Block => header.device()?,
            _ => (0, 0),
        };
        if entry.kind != Kind::Regular {
            return Ok(());
        }
        let stored = pax.size.map_or_else(|| header.size(), Ok)?;
        self.begin_data(stored)?;
        entry.size = stored;
        if header.kind() == b'S' {
            self.gnu_sparse(entry, header)?;
        } else if let Some(size) = pax.sparse.size {
            replace(&mut entry.path, pax.sparse.name.take());
            self.pax_sparse(entry, size, pax.sparse)?;
        }
        Ok(())
    }

    /// An extended header's records.
    fn extended(&mut self, header: &Header<'_>) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        if size > MAX_EXTENDED {
            return Err(TarError::ExtendedHeader);
        }
        self.begin_data(size)?;
        let mut records = vec![0; size as usize];
        self.read_exact(&mut records)?;
        Ok(records)
    }

    /// GNU's way of saying a long name: as the data of an entry of its own.
    fn long_name(&mut self, header: &Header<'_>) -> Result<Vec<u8>, TarError> {
        let mut name = self.extended(header)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), TarError> {
        // Said before anything is made of a size that cannot be true.
        if size > self.limit.saturating_sub(self.consumed) {
            return Err(TarError::Bytes(self.limit));
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK_LEN as u64) - size;
        Ok(())
    }

    /// The next header block; none at the end of the archive.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_LEN]>, TarError> {
        let mut block = [0; BLOCK_LEN];
        if self.start == self.end {
            self.fill()?;
            if self.start == self.end {
                return Ok(None);
            }
        }
        self.take_exact(&mut block)?;
        Ok((block != [0; BLOCK_LEN]).then_some(block))
    }

    /// Fills the empty buffer with what comes, if anything does.
    fn fill(&mut self) -> Result<(), TarError> {
        self.start = 0;
        self.end = 0;
        self.end = loop {
            match self.source.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.count(self.end)
    }

    fn count(&mut self, bytes: usize) -> Result<(), TarError> {
        self.consumed += bytes as u64;
        if self.consumed > self.limit {
            Err(TarError::Bytes(self.limit))
        } else {
            Ok(())
        }
    }

    fn take_exact(&mut self, mut buf: &mut [u8]) -> Result<(), TarError> {
        while !buf.is_empty() {
            let len = self.take(buf)?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            buf = &mut buf[len..];
        }
        Ok(())
    }

    /// Some bytes: those in the buffer first, many past it.
    fn take(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        if self.start == self.end {
            if buf.len() >= BUFFER_LEN {
                let len = self.source.read(buf)?;
                self.count(len)?;
                return Ok(len);
            }
            self.fill()?;
        }
        let len = buf.len().min(self.end - self.start);
        buf[..len].copy_from_slice(&self.buffer[self.start..self.start + len]);
        self.start += len;
        Ok(len)
    }

    /// Passes over so many bytes; false if there are fewer.
    fn skip(&mut self, mut len: u64) -> Result<bool, TarError> {
        while len > 0 {
            if self.start == self.end {
                self.fill()?;
                if self.end == 0 {
                    return Ok(false);
                }
            }
            let part = len.min((self.end - self.start) as u64);
            self.start += part as usize;
            len -= part;
        }
        Ok(true)
    }

    /// Reads to the end: whoever checks the stream's digest needs it whole.
    fn drain(&mut self) -> Result<(), TarError> {
        loop {
            self.fill()?;
            if self.end == 0 {
                return Ok(());
            }
        }
    }
}

impl<R: Read> Read for Archive<R> {
    /// Reads the current entry's data.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if len == 0 {
            return Ok(0);
        }
        let len = self.take(&mut buf[..len]).map_err(|error| match error {
            TarError::Read(error) => error,
            other => io::Error::other(other),
        })?;
        self.data -= len as u64;
        Ok(len)
    }
}

fn replace(field: &mut Vec<u8>, value: Option<Vec<u8>>) {
    if let Some(value) = value {
        *field = value;
    }
}
