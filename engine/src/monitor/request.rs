//! What commands ask of the monitor of a container that runs: a line of JSON on a socket in the sandbox's folder, and
//! a line for an answer. A command that leaves before its answer has withdrawn what it asked for.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, cannot};
use crate::poll::poll_until;
use crate::record::Files;

/// The longest line, in bytes.
const MAX_LINE: u64 = 64 << 10;
/// How long a command may take to send its line, which the container's output waits for.
const LINE_LIMIT: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A checkpoint of the container.
    Checkpoint {
        /// Its name.
        name: String,
        /// Whether the container runs on.
        leave_running: bool,
    },
}

/// What comes of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done,
    /// Why not.
    Failed(String),
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is asked for.
    pub request: Request,
    stream: UnixStream,
}

/// Has commands ask here.
pub fn listen(files: &Files) -> Result<UnixListener, Error> {
    let path = files.requests();
    let listener = UnixListener::bind(&path).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(cannot(format!("listen on {}", path.display())))
}

impl Asked {
    /// The next request; `None` if whoever began one does not go on with it.
    pub fn accept(listener: &UnixListener) -> Option<Self> {
        let (stream, _) = listener.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(LINE_LIMIT)).ok()?;
        let request = read_line(&stream).ok()??;
        Some(Asked { request, stream })
    }

    /// Whether the command has left.
    pub fn is_withdrawn(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN)];
        // It has nothing more to say.
        poll_until(&mut fds, Some(Instant::now())).unwrap_or(true)
    }

    /// Tells the command what came of it.
    pub fn answer(self, result: Result<(), Error>) {
        let answer = match result {
            Ok(()) => Answer::Done,
            Err(e) => Answer::Failed(e.to_string()),
        };
        // One that has left need not know.
        let _ = write_line(&self.stream, &answer);
    }
}

/// Asks the monitor of a container, and waits until it has done that.
pub fn ask(files: &Files, request: &Request) -> Result<(), Error> {
    let asked = UnixStream::connect(files.requests()).and_then(|stream| {
        write_line(&stream, request)?;
        read_line(&stream)
    });
    match asked.map_err(cannot("ask the container's monitor"))? {
        Some(Answer::Done) => Ok(()),
        Some(Answer::Failed(why)) => Err(Error::Invalid(why)),
        None => Err(Error::Invalid(
            "the container has ended before it was done".to_owned(),
        )),
    }
}

fn write_line(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// `None` if the other end has left.
fn read_line<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<T>> {
    let mut line = String::new();
    match BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)? {
        0 => Ok(None),
        _ => Ok(Some(serde_json::from_str(&line)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn request() -> Request {
        Request::Checkpoint {
            name: "one".to_owned(),
            leave_running: true,
        }
    }

    fn room() -> (tempfile::TempDir, Files, UnixListener) {
        let dir = tempfile::tempdir().expect("folder");
        let files = Files {
            folder: dir.path().to_owned(),
            sandbox: dir.path().to_owned(),
        };
        let listener = listen(&files).expect("listen");
        (dir, files, listener)
    }

    /// Waits for it, as the monitor does.
    fn accept(listener: &UnixListener) -> Asked {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        poll_until(&mut fds, None).expect("poll");
        Asked::accept(listener).expect("a request")
    }

    #[test]
    fn request_when_answered_comes_to_what_the_monitor_says() {
        let (_dir, files, listener) = room();
        for (result, said) in [(Ok(()), None), (Err("no room"), Some("no room"))] {
            let asking = thread::spawn({
                let files = files.clone();
                move || ask(&files, &request())
            });
            let asked = accept(&listener);
            assert_eq!(asked.request, request());
            assert!(!asked.is_withdrawn());
            asked.answer(result.map_err(|why| Error::Invalid(why.to_owned())));
            let answer = asking.join().expect("join").err();
            assert_eq!(answer.map(|e| e.to_string()).as_deref(), said);
        }
    }

    #[test]
    fn request_when_its_command_is_gone_is_withdrawn_and_what_is_none_is_dropped() {
        let (_dir, files, listener) = room();
        let stream = UnixStream::connect(files.requests()).expect("connect");
        write_line(&stream, &request()).expect("ask");
        let asked = accept(&listener);
        assert!(!asked.is_withdrawn());
        drop(stream);
        assert!(asked.is_withdrawn());
        asked.answer(Ok(()));
        for nonsense in ["", "x\n", "{\"dance\": {}}\n"] {
            let mut stream = UnixStream::connect(files.requests()).expect("connect");
            stream.write_all(nonsense.as_bytes()).expect("write");
            drop(stream);
            assert!(Asked::accept(&listener).is_none(), "{nonsense}");
        }
        assert!(Asked::accept(&listener).is_none());
    }
}
