//! The test guest, from the host's side: ask it to do something, compare what it says.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use bulkhead_test_guest::{Checksum, PORT, Reply, Stream};
use serde_json::Value;

use crate::vm::{Setup, Vm};

/// How much is moved at a time. A multiple of 8, as [`Stream`] wants it.
const CHUNK: usize = 256 << 10;

/// A booted test guest. Dropping it kills the VM.
#[derive(Debug)]
pub struct Guest {
    /// The VM it runs in.
    pub vm: Vm,
}

impl Guest {
    /// Boots the VM and waits for its PID 1.
    pub fn boot(setup: Setup) -> Self {
        let mut vm = setup.start();
        vm.wait_ready();
        Guest { vm }
    }

    /// Has the guest do something; fails the test if it could not.
    pub fn ask(&self, request: Value) -> Reply {
        let reply = self.try_ask(&request);
        match &reply.error {
            None => reply,
            Some(e) => self.vm.fail(&format!("{request}: {e}")),
        }
    }

    /// Has the guest do something that it may fail at.
    pub fn try_ask(&self, request: &Value) -> Reply {
        let stream = self.open(request);
        self.reply(stream, request)
    }

    /// Sends a request whose data is to follow, or to be read, on the connection returned.
    pub fn open(&self, request: &Value) -> UnixStream {
        let mut stream = self.vm.connect(PORT);
        let sent = stream.write_all(format!("{request}\n").as_bytes());
        sent.unwrap_or_else(|e| self.vm.fail(&format!("{request}: {e}")));
        stream
    }

    /// What the guest says at the end of a connection.
    pub fn reply(&self, mut stream: UnixStream, request: &Value) -> Reply {
        let mut line = String::new();
        let result = stream
            .read_to_string(&mut line)
            .and_then(|_| Ok(serde_json::from_str(&line)?));
        result.unwrap_or_else(|e| self.vm.fail(&format!("{request}: {e}, after {line:?}")))
    }
}

/// Writes `bytes` bytes of the stream of `seed`, and returns their checksum.
pub fn send(to: &mut impl Write, bytes: u64, seed: u64) -> io::Result<u64> {
    let mut stream = Stream::new(seed);
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.fill(&mut buffer[..n]);
        checksum.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(checksum.value())
}

/// Reads `bytes` bytes, or to the end if fewer come: how many they were, and their checksum.
pub fn receive(from: &mut impl Read, bytes: u64) -> io::Result<(u64, u64)> {
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        match from.read(&mut buffer[..n])? {
            0 => break,
            n => {
                checksum.update(&buffer[..n]);
                left -= n as u64;
            }
        }
    }
    Ok((bytes - left, checksum.value()))
}

/// The checksum of `bytes` bytes of the stream of `seed`.
pub fn checksum(bytes: u64, seed: u64) -> u64 {
    // Writing to a sink does not fail.
    send(&mut io::sink(), bytes, seed).unwrap_or_default()
}
