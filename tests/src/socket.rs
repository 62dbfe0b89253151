//! Unix sockets that are about to be there.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Connects to the socket at `path` as soon as somebody listens there, or fails after `timeout`.
///
/// Sleeps until then: to look again and again would take from the time of whoever makes the socket, and so from
/// what is measured.
pub fn connect_when_there(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    // Before the first look, so that nothing is missed.
    let folder = path.parent().unwrap_or(Path::new("."));
    inotify::add_watch(&watch, folder, inotify::WatchFlags::CREATE)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match UnixStream::connect(path) {
            Err(e) if !left.is_zero() => match e.kind() {
                io::ErrorKind::NotFound => wait(&watch, left)?,
                // It is bound, and listens in a moment.
                io::ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_micros(200)),
                _ => return Err(e),
            },
            result => return result,
        }
    }
}

/// Waits for an event, and takes those that there are.
fn wait(watch: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(watch, PollFlags::IN)];
    if poll(&mut fds, Some(&timeout))? > 0 {
        rustix::io::read(watch, &mut [0; 4096])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn connect_when_the_socket_comes_later_then_it_waits() {
        let dir = tempfile::tempdir().expect("make a folder");
        let path = dir.path().join("sock");
        let error = connect_when_there(&path, Duration::from_millis(1)).expect_err("too early");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| connect_when_there(&path, Duration::from_secs(60)));
            std::thread::sleep(Duration::from_millis(20));
            let _listener = UnixListener::bind(&path).expect("bind");
            client.join().expect("join").expect("connect");
        });
    }
}
