//! Network interfaces, addresses and routes, as the kernel's routing socket has them (rtnetlink(7)).
//!
//! [`message`] is the format, [`links`] and [`routes`] are what is asked and told with it.

pub mod links;
pub mod message;
pub mod prefix;
pub mod routes;

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, sendto, socket_with};

use message::{DONE, DUMP, ERROR, Messages, REQUEST_ACK, Request};

/// How much the kernel answers at a time, at most.
const BUFFER: usize = 32 << 10;

/// A routing socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one.
    pub fn open() -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// Tells the kernel something and waits until it has done it.
    pub fn tell(&mut self, request: Request) -> io::Result<()> {
        self.exchange(request, REQUEST_ACK, |_, _| {})
    }

    /// Asks for all there is of something; `each` gets the answers' types and contents.
    pub fn dump(&mut self, request: Request, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(request, DUMP, each)
    }

    fn exchange(
        &mut self,
        request: Request,
        flags: u16,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let bytes = request.finish(flags, self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.fd, &bytes, SendFlags::empty(), &kernel)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            for message in Messages::of(&buffer[..length.min(BUFFER)]) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => return message.error(),
                    kind => each(kind, message.content),
                }
            }
        }
    }
}
