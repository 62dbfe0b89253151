//! The host's end of a guest's sockets: a Unix socket that speaks `CONNECT <port>`.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connects to `port` of the guest whose socket device is at `path`.
pub fn connect(path: &Path, port: u32, timeout: Duration) -> io::Result<UnixStream> {
    lead_to(UnixStream::connect(path)?, port, timeout)
}

/// Has a connection to a guest's socket device, on which nothing was said yet, lead to `port` of that guest.
pub fn lead_to(mut stream: UnixStream, port: u32, timeout: Duration) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // Byte by byte: what follows the line is the guest's.
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n") && answer.len() < 64 {
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("the guest does not listen on port {port}"),
            ));
        }
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"OK ") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{:?} is no answer", String::from_utf8_lossy(&answer)),
        ));
    }
    Ok(stream)
}

/// Connects as soon as the guest listens on `port`.
pub fn connect_when_listening(path: &Path, port: u32, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    loop {
        match connect(path, port, timeout) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// Where the guest's connections to the host's `port` arrive.
pub fn host_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// Waits for the guest to connect to the host's `port`.
pub fn listen(path: &Path, port: u32) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(host_path(path, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts a connection if there is one.
pub fn accept_now(listener: &UnixListener, timeout: Duration) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(Some(stream))
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// Accepts one connection, or fails after `timeout`. The timeout is the stream's, too.
pub fn accept(listener: &UnixListener, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(stream) = accept_now(listener, timeout)? {
            return Ok(stream);
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the guest did not connect",
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
