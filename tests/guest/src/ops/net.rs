//! The network card, by way of IPv4.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt};

use super::{about, stream};
use crate::Reply;

/// A machine whose kernel is emulated needs its time for a packet.
const PATIENCE: Duration = Duration::from_secs(60);
const ECHO_REQUEST: u8 = 8;

pub fn up(interface: &str, address: &str) -> io::Result<Reply> {
    let wrong = || {
        io::Error::new(
            ErrorKind::InvalidInput,
            format!("{address} is no A.B.C.D/N"),
        )
    };
    let (ip, prefix) = address.split_once('/').ok_or_else(wrong)?;
    let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
    let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
    let mask = match prefix {
        0 => 0,
        1..=32 => u32::MAX << (32 - prefix),
        _ => return Err(wrong()),
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // SAFETY: an `ifreq` is integers and arrays of them, and zeros are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from(ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let set = |request: &libc::ifreq, command: libc::c_ulong| {
        // SAFETY: each of the commands reads the `ifreq`, which lives through the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), command as _, request) } < 0 {
            return Err(about(interface)(io::Error::last_os_error()));
        }
        Ok(())
    };
    request.ifr_ifru.ifru_addr = sockaddr(ip.to_bits());
    set(&request, libc::SIOCSIFADDR)?;
    request.ifr_ifru.ifru_addr = sockaddr(mask);
    set(&request, libc::SIOCSIFNETMASK)?;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    set(&request, libc::SIOCSIFFLAGS)?;
    Ok(Reply::default())
}

/// A `sockaddr_in` without a port, as the interface requests take it.
fn sockaddr(address: u32) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.to_be_bytes()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

pub fn ping(address: &str, count: u32, size: u16) -> io::Result<Reply> {
    let invalid = |_| io::Error::new(ErrorKind::InvalidInput, format!("{address} is no address"));
    let ip: Ipv4Addr = address.parse().map_err(invalid)?;
    let flags = SocketFlags::CLOEXEC;
    let icmp = Some(ipproto::ICMP);
    let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, icmp)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    connect(&socket, &SocketAddrV4::new(ip, 0))?;
    let mut socket = File::from(socket);
    let mut answers = 0;
    for sequence in 0..count {
        let request = echo_request(sequence as u16, size);
        socket.write_all(&request).map_err(about(address))?;
        answers += u64::from(wait_for_answer(&mut socket, &request).map_err(about(address))?);
    }
    Ok(Reply {
        count: answers,
        ..Reply::default()
    })
}

fn wait_for_answer(socket: &mut File, request: &[u8]) -> io::Result<bool> {
    let mut packet = vec![0; 1 << 16];
    loop {
        let n = match socket.read(&mut packet) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        };
        // A raw socket gives the IP header too; its length is in words, in its first byte's low half.
        let header = packet.first().map_or(0, |b| usize::from(b & 0xf) * 4);
        let Some(answer) = packet.get(header..n) else {
            continue;
        };
        // Type 0, and identifier, sequence and data as they were sent.
        if answer.first() == Some(&0) && answer.get(4..) == request.get(4..) {
            return Ok(true);
        }
    }
}

/// An ICMP echo request (RFC 792).
fn echo_request(sequence: u16, size: u16) -> Vec<u8> {
    let mut packet = vec![ECHO_REQUEST, 0, 0, 0, 0xb4, 0x1d];
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend((0..size).map(|i| i as u8));
    let sum = internet_checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u32::from(b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn tcp_sink(address: &str) -> io::Result<Reply> {
    let mut host = TcpStream::connect(address).map_err(about(address))?;
    stream::sink(&mut host, None)
}

pub fn tcp_source(address: &str, bytes: u64, seed: u64) -> io::Result<Reply> {
    let mut host = TcpStream::connect(address).map_err(about(address))?;
    stream::source(&mut host, bytes, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_request_when_summed_with_its_checksum_then_zero() {
        for size in [0, 1, 56, 1472, u16::MAX] {
            assert_eq!(internet_checksum(&echo_request(7, size)), 0);
        }
    }
}
