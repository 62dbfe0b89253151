//! Archives are read here.

use std::io::{self, ErrorKind, Read};

use super::header::{self, Block};
use super::{BLOCK, Entry, Kind, MAX_TEXT, padding};

/// Reads an archive, entry by entry.
pub struct Reader<R> {
    source: R,
    /// How much of the entry at hand is still to come: data, then padding.
    data: u64,
    padding: usize,
}

/// What headers before an entry say about it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
}

/// What is wrong with an archive.
fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

impl<R: Read> Reader<R> {
    /// At the beginning of an archive.
    pub fn new(source: R) -> Self {
        Reader {
            source,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the archive's end. What is left of the data of the one before is
    /// skipped.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            if block == [0; BLOCK] {
                return Ok(None);
            }
            if !header::has_checksum(&block) {
                return Err(malformed("a header has not the right checksum"));
            }
            let size = header::number(&block[header::SIZE])
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| malformed("a size is no number"))?;
            self.expect(size);
            let kind = match block[header::TYPE] {
                b'x' => {
                    let records = self.text(size)?;
                    extended.read(&records)?;
                    continue;
                }
                // For the whole archive: nothing in it is about a file of its own.
                b'g' => continue,
                b'L' => {
                    extended.path = Some(header::text(&self.text(size)?).to_vec());
                    continue;
                }
                b'K' => {
                    extended.link = Some(header::text(&self.text(size)?).to_vec());
                    continue;
                }
                b'0' | b'7' | 0 => Kind::File,
                b'1' => Kind::HardLink,
                b'2' => Kind::Symlink,
                b'3' => Kind::CharDevice,
                b'4' => Kind::BlockDevice,
                b'5' => Kind::Folder,
                b'6' => Kind::Fifo,
                other => {
                    let what = format!("an entry has the unknown type {other:#x}");
                    return Err(malformed(&what));
                }
            };
            let entry = extended.entry(&block, kind, size)?;
            let has_data = entry.kind == Kind::File;
            self.expect(if has_data { entry.size } else { 0 });
            return Ok(Some(entry));
        }
    }

    /// What is read, behind the archive's end.
    pub fn into_source(self) -> R {
        self.source
    }

    /// The data of the entry that was read last.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// So much data comes next.
    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = padding(size);
    }

    /// The next block; `None` if the archive ends before it, as some do.
    fn block(&mut self) -> io::Result<Option<Block>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(malformed("the archive ends in the middle of a header")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(block))
    }

    /// All of the data, which is a text.
    fn text(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_TEXT as u64 {
            return Err(malformed("a name or an extended header is too long"));
        }
        let mut text = Vec::new();
        self.data().read_to_end(&mut text)?;
        Ok(text)
    }

    fn skip(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while self.data().read(&mut buffer)? > 0 {}
        let padding = std::mem::take(&mut self.padding);
        self.source
            .read_exact(&mut buffer[..padding])
            .map_err(|_| malformed("the archive ends in the middle of an entry"))
    }
}

/// See [`Reader::data`].
pub struct Data<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.0.data).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        if room == 0 {
            return Ok(0);
        }
        let n = self.0.source.read(&mut buffer[..room])?;
        if n == 0 {
            return Err(malformed("the archive ends in the middle of an entry"));
        }
        self.0.data -= n as u64;
        Ok(n)
    }
}

impl Extended {
    /// Reads the records of a pax header.
    fn read(&mut self, mut records: &[u8]) -> io::Result<()> {
        let bad = || malformed("an extended header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|&b| b == b' ').ok_or_else(bad)?;
            let length: usize = parse(&records[..space]).ok_or_else(bad)?;
            let record = records.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(parse(value).ok_or_else(bad)?),
                b"uid" => self.uid = Some(parse(value).ok_or_else(bad)?),
                b"gid" => self.gid = Some(parse(value).ok_or_else(bad)?),
                // It may have a fraction.
                b"mtime" => {
                    let whole = value.split(|&b| b == b'.').next().unwrap_or(value);
                    self.mtime = Some(parse(whole).ok_or_else(bad)?);
                }
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }

    fn entry(self, block: &Block, kind: Kind, size: u64) -> io::Result<Entry> {
        let number = |field: std::ops::Range<usize>, what: &str| {
            header::number(&block[field]).ok_or_else(|| malformed(what))
        };
        let id = |field, given: Option<u32>| match given {
            Some(id) => Ok(id),
            None => u32::try_from(number(field, "an owner is no number")?)
                .map_err(|_| malformed("an owner is out of range")),
        };
        let name = header::text(&block[header::NAME]).to_vec();
        let prefix = header::text(&block[header::PREFIX]);
        let has_prefix = block[header::MAGIC] == *header::USTAR && !prefix.is_empty();
        let short = || {
            if has_prefix {
                [prefix, b"/", &name].concat()
            } else {
                name.clone()
            }
        };
        let link = self
            .link
            .unwrap_or_else(|| header::text(&block[header::LINK]).to_vec());
        let device = |field| u32::try_from(number(field, "").unwrap_or(0)).unwrap_or(0);
        let path = self.path.unwrap_or_else(short);
        if path.contains(&0) || link.contains(&0) {
            return Err(malformed("a name has a NUL in it"));
        }
        Ok(Entry {
            // An archive from before folders had a type says it with a slash.
            kind: match kind {
                Kind::File if path.ends_with(b"/") => Kind::Folder,
                kind => kind,
            },
            path,
            // The bits that are permissions.
            mode: (number(header::MODE, "a mode is no number")? & 0o7777) as u32,
            uid: id(header::UID, self.uid)?,
            gid: id(header::GID, self.gid)?,
            size: self.size.unwrap_or(size),
            mtime: match self.mtime {
                Some(mtime) => mtime,
                None => number(header::MTIME, "a time is no number")?,
            },
            link,
            device: (device(header::MAJOR), device(header::MINOR)),
        })
    }
}

fn parse<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_header_when_malformed_then_refused() {
        for bad in [
            "5",
            "x path=a\n",
            "99 path=a\n",
            "0 path=a\n",
            "3 a\n",
            "10 path=ab",
            "9 path=a\n9",
            "10 size=-1\n",
        ] {
            assert!(Extended::default().read(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn text_when_endless_then_refused() {
        let mut block: Block = [0; BLOCK];
        header::set_number(&mut block[header::SIZE], 1 << 30);
        block[header::TYPE] = b'L';
        header::set_checksum(&mut block);
        let source = block.chain(io::repeat(b'a'));
        assert!(Reader::new(source).next_entry().is_err());
    }
}
