//! The way to systemd: the socket that its manager listens on itself, so that no bus need be there.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::message::{self, Body, FIXED, Kind, Message};
use crate::failure::{Failure, Outcome, cannot};

/// How long systemd is given to answer: it may be busy with the start of the host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the manager of the host's units, or of a user's.
pub struct Connection {
    stream: BufReader<UnixStream>,
    serial: u32,
    /// Signals that came while an answer was waited for.
    signals: Vec<Message>,
}

/// Where the manager listens: the host's, or that of who is not root on the host.
pub fn socket(of_user: bool) -> Outcome<PathBuf> {
    if !of_user {
        return Ok("/run/systemd/private".into());
    }
    let place = env::var_os("XDG_RUNTIME_DIR").filter(|place| !place.is_empty());
    let place = place.ok_or("XDG_RUNTIME_DIR is not set, which leads to the user's systemd")?;
    Ok(PathBuf::from(place).join("systemd/private"))
}

impl Connection {
    pub fn open(of_user: bool) -> Outcome<Connection> {
        let path = socket(of_user)?;
        let connect = || {
            let mut stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            // Who we are is seen from the socket ("SASL profile" of the D-Bus specification).
            stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
            let mut stream = BufReader::new(stream);
            for expected in ["DATA", "OK "] {
                let mut line = String::new();
                (&mut stream).take(256).read_line(&mut line)?;
                if !line.starts_with(expected) {
                    return Err(io::Error::other(format!("it says {:?}", line.trim_end())));
                }
            }
            Ok(stream)
        };
        let stream = connect().map_err(|error: io::Error| {
            let path = path.display();
            format!(
                "cannot ask systemd for a control group at {path}: {error}; if systemd does not run this host, use the manager \
                 cgroupfs (podman --cgroup-manager=cgroupfs, Docker's native.cgroupdriver=cgroupfs)"
            )
        })?;
        Ok(Connection {
            stream,
            serial: 0,
            signals: Vec::new(),
        })
    }

    /// Calls a method of the manager. The first text of its answer, if there is one.
    pub fn call(&mut self, method: &str, body: &Body) -> Result<String, Refusal> {
        self.serial += 1;
        let call = message::call(self.serial, method, body);
        let sent = self.stream.get_mut().write_all(&call);
        sent.map_err(cannot("ask systemd"))?;
        loop {
            let message = self.receive()?;
            let first = message.texts.first().cloned().unwrap_or_default();
            match message.kind {
                Kind::Return(serial) if serial == self.serial => return Ok(first),
                Kind::Error(serial, name) if serial == self.serial => {
                    return Err(Refusal {
                        failure: format!("systemd refused {method}: {first} ({name})").into(),
                        name,
                    });
                }
                Kind::Signal(_) => self.signals.push(message),
                _ => {}
            }
        }
    }

    /// Waits until the job is over, and says how it ended.
    pub fn wait_job(&mut self, job: &str) -> Outcome<String> {
        loop {
            let message = match self.signals.is_empty() {
                false => self.signals.remove(0),
                true => self.receive()?,
            };
            // JobRemoved has the number, the job, the unit and the result.
            if let (Kind::Signal(name), [path, _, result]) = (&message.kind, &message.texts[..])
                && name == "JobRemoved"
                && path == job
            {
                return Ok(result.clone());
            }
        }
    }

    fn receive(&mut self) -> Outcome<Message> {
        let strange = || io::Error::other("it says what is no message");
        let mut receive = || {
            let mut bytes = vec![0; FIXED];
            self.stream.read_exact(&mut bytes)?;
            let fixed = bytes.first_chunk().and_then(message::length);
            bytes.resize(fixed.ok_or_else(strange)?, 0);
            self.stream.read_exact(&mut bytes[FIXED..])?;
            message::read(&bytes).ok_or_else(strange)
        };
        receive().map_err(cannot("hear systemd's answer"))
    }
}

/// Why a call came to nothing.
pub struct Refusal {
    pub failure: Failure,
    /// systemd's own word for it; empty if it did not get that far.
    pub name: String,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal {
            failure,
            name: String::new(),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        refusal.failure
    }
}
