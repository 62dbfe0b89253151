//! Reading a log, also while it grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Entry;
use super::write::previous;

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

    /// All that is there now, what was put aside included, given to `sink` in order. To be called first.
    pub fn read_all(
        &mut self,
        sink: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(tail) = self.select.tail else {
            self.old(sink)?;
            return self.read_new(sink);
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
        self.old(&mut keep)?;
        self.read_new(&mut keep)?;
        last.iter().try_for_each(sink)
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
            let there = match File::open(&self.path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            };
            if let Some(file) = &mut self.file {
                if file.get_ref().metadata()?.ino() == there.metadata()?.ino() {
                    return Ok(());
                }
                // What was written between the last look and the renaming.
                drain(file, &mut self.partial, &self.select, sink)?;
            }
            self.partial.clear();
            self.file = Some(BufReader::with_capacity(64 << 10, there));
        }
    }

    fn old(&mut self, sink: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>) -> io::Result<()> {
        match File::open(previous(&self.path)) {
            Ok(file) => drain(
                &mut BufReader::with_capacity(64 << 10, file),
                &mut Vec::new(),
                &self.select,
                sink,
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Gives `sink` all whole lines of the file that are left.
fn drain(
    file: &mut BufReader<File>,
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
