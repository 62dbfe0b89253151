//! Writing a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Entry, MAX_FILE, MAX_LINE, Stream};

/// Writes the log at a path. There is one writer at a time.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    /// How large the file is.
    size: u64,
    max_size: u64,
    /// The beginnings of lines that have not ended, of either stream.
    unfinished: [Vec<u8>; 2],
    /// Lines on their way to the file.
    lines: Vec<u8>,
}

impl Writer {
    /// Goes on with the log at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_FILE)
    }

    fn with_limit(path: &Path, max_size: u64) -> io::Result<Self> {
        let file = append(path)?;
        Ok(Writer {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            max_size,
            unfinished: [Vec::new(), Vec::new()],
            lines: Vec::new(),
        })
    }

    /// Takes output. Whole lines go to the file at once.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let time = Timestamp::now();
        let unfinished = &mut self.unfinished[stream as usize];
        while !bytes.is_empty() {
            let room = MAX_LINE - unfinished.len();
            let window = &bytes[..bytes.len().min(room)];
            let (part, whole) = match window.iter().position(|&b| b == b'\n') {
                Some(end) => (&window[..=end], true),
                None => (window, window.len() == room),
            };
            bytes = &bytes[part.len()..];
            if !whole {
                unfinished.extend(part);
            } else if unfinished.is_empty() {
                add(&mut self.lines, part, stream, time)?;
            } else {
                unfinished.extend(part);
                add(&mut self.lines, unfinished, stream, time)?;
                unfinished.clear();
            }
        }
        self.flush()
    }

    /// Writes what has no newline and will not get one any more.
    pub fn finish(&mut self) -> io::Result<()> {
        let time = Timestamp::now();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let unfinished = std::mem::take(&mut self.unfinished[stream as usize]);
            if !unfinished.is_empty() {
                add(&mut self.lines, &unfinished, stream, time)?;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        if self.size > 0 && self.size + self.lines.len() as u64 > self.max_size {
            fs::rename(&self.path, previous(&self.path))?;
            self.file = append(&self.path)?;
            self.size = 0;
        }
        let written = self.file.write_all(&self.lines);
        self.size += self.lines.len() as u64;
        // Even if it could not be written: a full disk must not become full memory.
        self.lines.clear();
        written
    }
}

/// The file that is put aside when a log has become too large.
pub(super) fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn add(lines: &mut Vec<u8>, line: &[u8], stream: Stream, time: Timestamp) -> io::Result<()> {
    let log = String::from_utf8_lossy(line);
    serde_json::to_writer(&mut *lines, &Entry { log, stream, time })?;
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(path: &Path) -> Vec<(String, Stream)> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let entry = |line| serde_json::from_str::<Entry<'_>>(line).expect("an entry");
        text.lines()
            .map(entry)
            .map(|e| (e.log.into_owned(), e.stream))
            .collect()
    }

    #[test]
    fn lines_when_written_in_pieces_are_whole_in_the_log() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        let mut log = Writer::open(&path).expect("open");
        log.write(Stream::Stdout, b"one\ntw").expect("write");
        log.write(Stream::Stderr, b"E\n").expect("write");
        log.write(Stream::Stdout, b"o\n\nrest\xff").expect("write");
        log.finish().expect("finish");
        let expected = [
            ("one\n", Stream::Stdout),
            ("E\n", Stream::Stderr),
            ("two\n", Stream::Stdout),
            ("\n", Stream::Stdout),
            ("rest\u{fffd}", Stream::Stdout),
        ];
        assert_eq!(entries(&path), expected.map(|(l, s)| (l.to_owned(), s)));
    }

    #[test]
    fn log_when_it_grows_is_put_aside_and_stays_bounded() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        let mut log = Writer::with_limit(&path, 1000).expect("open");
        for n in 0..100 {
            log.write(Stream::Stdout, format!("{n}\n").as_bytes())
                .expect("write");
        }
        let both = [previous(&path), path.clone()];
        for path in &both {
            assert!(fs::metadata(path).expect("there").len() <= 1000);
        }
        let lines: Vec<_> = both.iter().flat_map(|path| entries(path)).collect();
        assert_eq!(lines.last().expect("some").0, "99\n");
        assert!(lines.len() > 10);
    }

    proptest! {
        #[test]
        fn output_when_cut_anywhere_comes_out_whole_and_in_order(
            pieces in proptest::collection::vec("[a-z\n]{0,40}", 0..20),
            long in 0..3 * MAX_LINE,
        ) {
            let dir = tempfile::tempdir()?;
            let path = dir.path().join("log");
            let mut log = Writer::open(&path)?;
            let long = "x".repeat(long);
            for piece in pieces.iter().chain([&long]) {
                log.write(Stream::Stdout, piece.as_bytes())?;
            }
            log.finish()?;
            let whole: String = entries(&path).into_iter().map(|(line, _)| line).collect();
            prop_assert_eq!(whole, pieces.concat() + &long);
        }
    }
}
