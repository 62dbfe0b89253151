//! Reading a log, also while it grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Entry;
use super::write::previous;

/// How much is read at once, in bytes.
const BUFFER: usize = 64 << 10;

/// Which entries are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Select {
    /// None from before.
    pub since: Option<Timestamp>,
    /// None from after.
    pub until: Option<Timestamp>,
    /// Only so many, the last ones.
    pub tail: Option<usize>,
}

impl Select {
    fn takes(&self, entry: &Entry<'_>) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }
}

/// Reads the log at a path, from its beginning on.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// The beginning of a line whose end has not been written.
    partial: Vec<u8>,
    select: Select,
}

impl Reader {
    /// Reads the log at `path`, which need not be there yet.
    pub fn new(path: &Path, select: Select) -> Self {
        Reader {
            path: path.to_owned(),
            file: None,
            partial: Vec::new(),
            select,
        }
    }

    /// All that is there when it is called, what was put aside included, given to `sink` in order. To be called first.
    pub fn read_all(
        &mut self,
        sink: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(tail) = self.select.tail else {
            return self.read_present(sink);
        };
        let mut last: VecDeque<Entry<'static>> = VecDeque::new();
        let mut keep = |entry: &Entry<'_>| {
            if last.len() == tail {
                last.pop_front();
            }
            if tail > 0 {
                last.push_back(Entry {
                    log: entry.log.clone().into_owned().into(),
                    ..*entry
                });
            }
            Ok(())
        };
        self.read_present(&mut keep)?;
        last.iter().try_for_each(sink)
    }

    /// Up to where the log ends now: who writes faster than this reads would never let it end.
    fn read_present(
        &mut self,
        sink: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (old, current) = loop {
            let current = open(&self.path)?;
            let old = open(&previous(&self.path))?;
            // Else it was put aside between the two.
            if old.is_none() || inode(&old)? != inode(&current)? {
                break (old, current);
            }
        };
        let end = match &current {
            Some(file) => file.metadata()?.len(),
            None => 0,
        };
        if let Some(old) = old {
            let mut old = BufReader::with_capacity(BUFFER, old);
            drain(&mut old, &mut Vec::new(), &self.select, sink)?;
        }
        if let Some(current) = current {
            let file = self.file.insert(BufReader::with_capacity(BUFFER, current));
            drain(&mut file.take(end), &mut self.partial, &self.select, sink)?;
        }
        Ok(())
    }

    /// What came since the last call.
    pub fn read_new(
        &mut self,
        sink: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            if let Some(file) = &mut self.file {
                drain(file, &mut self.partial, &self.select, sink)?;
            }
            // The writer goes on in a new file when it has put this one aside.
            let Some(there) = open(&self.path)? else {
                return Ok(());
            };
            if let Some(file) = &mut self.file {
                if file.get_ref().metadata()?.ino() == there.metadata()?.ino() {
                    return Ok(());
                }
                // What was written between the last look and the renaming.
                drain(file, &mut self.partial, &self.select, sink)?;
            }
            self.partial.clear();
            self.file = Some(BufReader::with_capacity(BUFFER, there));
        }
    }
}

/// None: it is not there.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn inode(file: &Option<File>) -> io::Result<Option<u64>> {
    match file {
        Some(file) => Ok(Some(file.metadata()?.ino())),
        None => Ok(None),
    }
}

/// Gives `sink` all whole lines of the file that are left.
fn drain(
    file: &mut impl BufRead,
    partial: &mut Vec<u8>,
    select: &Select,
    sink: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let n = file.read_until(b'\n', partial)?;
        if n == 0 || partial.last() != Some(&b'\n') {
            return Ok(());
        }
        // A line that was cut when a monitor was killed is left out.
        if let Ok(entry) = serde_json::from_slice::<Entry<'_>>(partial)
            && select.takes(&entry)
        {
            sink(&entry)?;
        }
        partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Stream, Writer};
    use super::*;

    fn collect(
        read: impl FnOnce(&mut dyn FnMut(&Entry<'_>) -> io::Result<()>) -> io::Result<()>,
    ) -> String {
        let mut all = String::new();
        read(&mut |entry| {
            all.push_str(&entry.log);
            Ok(())
        })
        .expect("read");
        all
    }

    #[test]
    fn reader_when_the_log_grows_gets_each_line_once() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        let mut reader = Reader::new(&path, Select::default());
        assert_eq!(collect(|sink| reader.read_all(sink)), "");
        let mut log = Writer::open(&path).expect("open");
        log.write(Stream::Stdout, b"a\nb\n").expect("write");
        assert_eq!(collect(|sink| reader.read_new(sink)), "a\nb\n");
        log.write(Stream::Stdout, b"c\n").expect("write");
        std::fs::rename(&path, previous(&path)).expect("put aside");
        let mut log = Writer::open(&path).expect("open");
        log.write(Stream::Stdout, b"d\n").expect("write");
        assert_eq!(collect(|sink| reader.read_new(sink)), "c\nd\n");
        assert_eq!(collect(|sink| reader.read_new(sink)), "");
    }

    #[test]
    fn reader_when_the_log_grows_as_fast_as_it_reads_comes_to_an_end() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        let mut log = Writer::open(&path).expect("open");
        log.write(Stream::Stdout, b"a\nb\n").expect("write");
        let mut reader = Reader::new(&path, Select::default());
        let mut read = 0;
        reader
            .read_all(&mut |_| {
                read += 1;
                log.write(Stream::Stdout, b"c\n")
            })
            .expect("read");
        assert_eq!(read, 2);
        assert_eq!(collect(|sink| reader.read_new(sink)), "c\nc\n");
    }

    #[test]
    fn reader_when_told_what_to_take_leaves_the_rest() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        let mut log = Writer::open(&path).expect("open");
        for line in ["a\n", "b\n", "c\n"] {
            log.write(Stream::Stdout, line.as_bytes()).expect("write");
        }
        let select = |tail, since| Select {
            tail,
            since,
            until: None,
        };
        let read = |select| {
            let mut reader = Reader::new(&path, select);
            collect(|sink| reader.read_all(sink))
        };
        assert_eq!(read(select(Some(2), None)), "b\nc\n");
        assert_eq!(read(select(Some(0), None)), "");
        assert_eq!(read(select(None, Some(Timestamp::MAX))), "");
        assert_eq!(read(select(None, Some(Timestamp::MIN))), "a\nb\nc\n");
    }
}
