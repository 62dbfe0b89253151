//! Bytes over sockets.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use bulkhead_agent::vsock::connect_to_host;
use rustix::net::{Shutdown, shutdown};

use super::{CHUNK, Client, Tally};
use crate::{Reply, Stream};

/// Where buffers begin and what their length is a multiple of, for files that are read and written past
/// the page cache.
pub const ALIGNMENT: usize = 4096;

/// A buffer of `CHUNK` bytes, aligned, in the memory of `backing`.
fn aligned(backing: &mut Vec<u8>) -> &mut [u8] {
    backing.resize(CHUNK + ALIGNMENT, 0);
    let start = backing.as_ptr().align_offset(ALIGNMENT);
    &mut backing[start..start + CHUNK]
}

/// Reads `bytes` bytes, or without that to the end.
pub fn sink(from: &mut impl Read, bytes: Option<u64>) -> io::Result<Reply> {
    let mut tally = Tally::default();
    let mut backing = Vec::new();
    let buffer = aligned(&mut backing);
    loop {
        let left = bytes.map_or(u64::MAX, |all| all - tally.bytes);
        let room = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        if room == 0 {
            return Ok(tally.reply());
        }
        match from.read(&mut buffer[..room])? {
            0 => break,
            n => tally.add(&buffer[..n]),
        }
    }
    match bytes {
        None => Ok(tally.reply()),
        Some(all) => Err(io::Error::other(format!(
            "the data ended after {} of {all} bytes",
            tally.bytes
        ))),
    }
}

/// Writes `bytes` bytes of the stream of `seed`.
pub fn source(to: &mut impl Write, bytes: u64, seed: u64) -> io::Result<Reply> {
    let mut tally = Tally::default();
    let mut stream = Stream::new(seed);
    let mut backing = Vec::new();
    let buffer = aligned(&mut backing);
    while tally.bytes < bytes {
        let n = usize::try_from(bytes - tally.bytes).unwrap_or(CHUNK);
        let chunk = &mut buffer[..n.min(CHUNK)];
        stream.fill(chunk);
        to.write_all(chunk)?;
        tally.add(chunk);
    }
    Ok(tally.reply())
}

/// Sends back what comes, to the end.
pub fn echo(client: &mut Client) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = client.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        client.get_mut().write_all(&buffer[..n])?;
    }
}

/// Sends a stream to a port of the host, then reads what it has to say.
pub fn dial(port: u32, bytes: u64, seed: u64) -> io::Result<Reply> {
    let mut host = File::from(connect_to_host(port)?);
    source(&mut host, bytes, seed)?;
    shutdown(host.as_fd(), Shutdown::Write)?;
    sink(&mut host, None)
}

/// Many connections at a time to an echoing port.
pub fn many(port: u32, count: u32, bytes: u32) -> io::Result<Reply> {
    // What fits the peer's buffer without being read, so that writing first and reading later
    // cannot lock up.
    let length = bytes.min(4096) as usize;
    let data = |i: usize| {
        let mut data = vec![0; length];
        Stream::new(i as u64).fill(&mut data);
        data
    };
    let mut connections = Vec::new();
    for i in 0..count {
        match connect_to_host(port) {
            Ok(connection) => connections.push(File::from(connection)),
            Err(e) => return Err(io::Error::other(format!("connection {i}: {e}"))),
        }
    }
    for (i, connection) in connections.iter_mut().enumerate() {
        connection.write_all(&data(i))?;
    }
    let mut echoed = 0;
    for (i, connection) in connections.iter_mut().enumerate() {
        let mut got = vec![0; length];
        connection.read_exact(&mut got)?;
        echoed += u64::from(got == data(i));
    }
    Ok(Reply {
        count: echoed,
        ..Reply::default()
    })
}
