//! One connection: a port pair on the guest's side, a Unix socket on the host's.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use libc::iovec;

use super::backlog::Backlog;
use super::credit::{Credit, CreditViolation};
use super::handshake::Line;
use super::packet::{HEADER_SIZE, HOST_CID, Header, Ports, TYPE_STREAM, op, shutdown};
use super::socket;
use crate::GuestMemory;
use crate::virtio::chain::Buffers;

/// The most receive buffers filled by one read. With Linux's buffers of 4 KiB: 128 KiB.
pub const MAX_BATCH: usize = 32;

/// How far a connection has come.
#[derive(Debug)]
pub enum State {
    /// A host client is telling which port it wants. The guest knows nothing of it.
    Handshake(Line),
    /// The guest asked for a host port whose listener has too many waiting: tried again until
    /// `give_up`.
    Dialing {
        /// Tries so far.
        tries: u32,
        /// When to stop trying.
        give_up: Instant,
    },
    /// A host client waits for the guest's answer.
    Requested {
        /// Whether the guest has been asked.
        sent: bool,
    },
    /// Open.
    Established,
    /// Over in both directions, the Unix socket is closed, and the guest, which was told, has not
    /// confirmed it yet.
    Closing,
}

/// What is to be done with a connection next.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, until something happens to it.
    Idle,
    /// It has something for the guest.
    Ready,
    /// Tell the guest that it is over, and wait for the confirmation.
    Close,
    /// Confirm to the guest that it is over, and forget it.
    Reset,
    /// Forget it: the guest has already.
    Forget,
}

/// The connection cannot go on: reset it.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

impl From<CreditViolation> for Broken {
    fn from(_: CreditViolation) -> Self {
        Broken
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Its name to the guest. Not set during the handshake.
    pub ports: Ports,
    /// The host's side. `None` before it is open and after it is closed.
    pub stream: Option<UnixStream>,
    /// How far it has come.
    pub state: State,
    /// The room on both sides.
    pub credit: Credit,
    /// The deadline it is entered with in the timers.
    pub deadline: Option<Instant>,
    /// How much of `backlog` the owner has counted.
    pub counted: usize,
    /// How many receive buffers the next read should fill: grows with what reads bring, so that
    /// small messages do not pay for buffers they do not need.
    pub batch: usize,
    /// What the guest sent and the Unix socket did not take.
    backlog: Backlog,
    /// Bit `n` is set: a packet with operation `n` is owed to the guest.
    owed: u16,
    /// The Unix socket may have something to read. Cleared only when it says it has not, because
    /// it is watched for edges.
    readable: bool,
    /// Nothing goes to the guest any more.
    read_closed: bool,
    /// Nothing goes to the host any more.
    write_closed: bool,
    /// The [`shutdown`] flags the guest has sent.
    guest_shutdown: u32,
    /// The guest was asked for credit since there last was some.
    credit_asked: bool,
    /// The guest has forgotten this connection, and only `backlog` keeps it.
    detached: bool,
    /// The client named its port in a line, and waits for one when it is connected.
    pub owes_greeting: bool,
}

impl Connection {
    /// A client on the host that has just connected.
    pub fn from_host(stream: UnixStream, buf_alloc: u32) -> Self {
        let ports = Ports { host: 0, guest: 0 };
        Self::new(
            ports,
            State::Handshake(Line::default()),
            Some(stream),
            buf_alloc,
        )
    }

    /// A connection the guest asks for.
    pub fn from_guest(ports: Ports, give_up: Instant, buf_alloc: u32) -> Self {
        Self::new(ports, State::Dialing { tries: 0, give_up }, None, buf_alloc)
    }

    fn new(ports: Ports, state: State, stream: Option<UnixStream>, buf_alloc: u32) -> Self {
        Connection {
            ports,
            stream,
            state,
            credit: Credit::new(buf_alloc),
            deadline: None,
            counted: 0,
            batch: 1,
            backlog: Backlog::default(),
            owed: 0,
            readable: false,
            read_closed: false,
            write_closed: false,
            guest_shutdown: 0,
            credit_asked: false,
            detached: false,
            owes_greeting: false,
        }
    }

    /// Whether it is still being opened.
    pub fn is_half_open(&self) -> bool {
        !matches!(self.state, State::Established | State::Closing)
    }

    /// Whether the guest has heard of it and has not forgotten it, so that it must hear of its end.
    pub fn is_known_to_guest(&self) -> bool {
        match self.state {
            State::Handshake(_) | State::Requested { sent: false } => false,
            State::Dialing { .. } | State::Requested { sent: true } | State::Closing => true,
            State::Established => !self.detached,
        }
    }

    /// Bytes waiting for the Unix socket to take them.
    pub fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    /// Both sides agree: it is open.
    pub fn establish(&mut self) {
        self.state = State::Established;
        // There may have been an edge while there was no use for it.
        self.readable = true;
    }

    // What the guest is owed.

    /// Owes the guest a packet.
    pub fn owe(&mut self, operation: u16) {
        self.owed |= 1 << operation;
    }

    /// Whether the guest is owed a packet with this operation.
    pub fn owes(&self, operation: u16) -> bool {
        self.owed & 1 << operation != 0
            || operation == op::CREDIT_UPDATE
                && matches!(self.state, State::Established)
                && self.guest_shutdown & shutdown::SEND == 0
                && self.credit.update_due()
    }

    /// Whether there is something to read for the guest, and room for it there.
    pub fn has_payload(&self) -> bool {
        self.wants_read() && self.credit.to_guest() > 0
    }

    fn wants_read(&self) -> bool {
        matches!(self.state, State::Established) && self.readable && !self.read_closed
    }

    /// The packet to send the guest now, after which it is no longer owed.
    pub fn packet(&mut self, guest_cid: u64, operation: u16, len: u32) -> Header {
        self.owed &= !(1 << operation | 1 << op::CREDIT_UPDATE);
        if operation == op::REQUEST {
            self.state = State::Requested { sent: true };
        }
        let mut flags = 0;
        if operation == op::SHUTDOWN {
            if self.read_closed {
                flags |= shutdown::SEND;
            }
            if self.write_closed {
                flags |= shutdown::RECEIVE;
            }
        }
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op: operation,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    // From the host to the guest.

    /// The Unix socket has something to read, or its end.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Reads from the Unix socket for the guest. 0: there is nothing now, or never again.
    ///
    /// # Safety
    /// As for [`socket::readv`].
    pub unsafe fn read(&mut self, iovecs: &[iovec]) -> u32 {
        let Some(stream) = &self.stream else {
            return 0;
        };
        // SAFETY: the caller vouches for the iovecs.
        match unsafe { socket::readv(stream, iovecs) } {
            Ok(0) => self.end_read(),
            // At most what the guest has credit for, so it fits.
            Ok(n) => {
                self.credit.add_sent(n as u32);
                return n as u32;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            // The client went away and left unread what the guest had sent it.
            Err(_) => {
                self.end_read();
                self.end_write();
            }
        }
        0
    }

    fn end_read(&mut self) {
        self.readable = false;
        if !self.read_closed {
            self.read_closed = true;
            self.owe(op::SHUTDOWN);
        }
    }

    // From the guest to the host.

    /// Takes the `len` bytes of payload behind the header of a packet. What the Unix socket does
    /// not take waits in the backlog.
    pub fn take_payload(
        &mut self,
        memory: &GuestMemory,
        buffers: &Buffers,
        len: u32,
        iovecs: &mut Vec<iovec>,
    ) -> Result<(), Broken> {
        if self.guest_shutdown & shutdown::SEND != 0 {
            return Err(Broken);
        }
        self.credit.add_received(len)?;
        let mut written = 0;
        if let Some(stream) = &self.stream
            && !self.write_closed
            && self.backlog.is_empty()
        {
            iovecs.clear();
            if !buffers.append_iovecs(memory, HEADER_SIZE, len as usize, iovecs) {
                return Err(Broken);
            }
            // SAFETY: the iovecs lie in guest memory, which the caller's `memory` keeps mapped.
            let result = unsafe { socket::writev(stream, iovecs) };
            written = self.written(result)?;
        }
        let rest = len - written;
        if self.write_closed {
            // Nobody will ever read it; the guest is told so by SHUTDOWN, and may have sent this
            // before it heard.
            self.credit.add_forwarded(rest);
        } else if rest > 0
            && !self
                .backlog
                .append(memory, buffers, HEADER_SIZE + written, rest)
        {
            return Err(Broken);
        }
        Ok(())
    }

    /// The Unix socket may have room again: gives it the backlog.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while !self.backlog.is_empty() {
            let Some(stream) = &self.stream else {
                return Ok(());
            };
            let result = self.backlog.drain_to(|parts| socket::write(stream, parts));
            if self.written(result)? == 0 {
                break;
            }
        }
        self.finish_write();
        Ok(())
    }

    /// Tells a client that waits to hear it that it is connected, before any payload.
    pub fn greet(&mut self) -> Result<(), Broken> {
        if !self.owes_greeting {
            return Ok(());
        }
        let line = format!("OK {}\n", self.ports.host);
        let stream = self.stream.as_ref().ok_or(Broken)?;
        let parts = [io::IoSlice::new(line.as_bytes())];
        // A socket nothing was ever written to has room for a line, or is broken.
        match socket::write(stream, &parts) {
            Ok(n) if n == line.len() => Ok(()),
            _ => Err(Broken),
        }
    }

    /// Accounts for what a write to the Unix socket came to. Returns the bytes it took.
    fn written(&mut self, result: io::Result<usize>) -> Result<u32, Broken> {
        match result {
            Ok(n) => {
                // At most the credit the guest was given, so it fits.
                self.credit.add_forwarded(n as u32);
                Ok(n as u32)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                self.end_write();
                Ok(0)
            }
            Err(_) => Err(Broken),
        }
    }

    /// The host will not read any more: what is left for it is dropped, and the guest is told.
    fn end_write(&mut self) {
        self.credit.add_forwarded(self.backlog.len() as u32);
        self.backlog.clear();
        if !self.write_closed {
            self.write_closed = true;
            self.owe(op::SHUTDOWN);
        }
    }

    /// Passes the guest's end of stream on, once everything before it was.
    fn finish_write(&mut self) {
        let guest_done = self.guest_shutdown & shutdown::SEND != 0;
        if guest_done && self.backlog.is_empty() && !self.write_closed {
            self.write_closed = true;
            self.shut(Shutdown::Write);
        }
    }

    /// The client has closed its socket, or shut down both directions of it. What it sent before
    /// is still there to be read.
    pub fn hang_up(&mut self) {
        self.end_write();
        self.readable = true;
    }

    // The guest's side of the end.

    /// The guest will not receive, or send, any more.
    pub fn guest_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.guest_shutdown & shutdown::RECEIVE != 0 && !self.read_closed {
            self.read_closed = true;
            self.shut(Shutdown::Read);
        }
        self.finish_write();
    }

    /// The guest has reset the connection. `true` if there is something left to do: it had said
    /// before that it will send no more, and what it sent until then has yet to reach the host.
    pub fn detach(&mut self) -> bool {
        let linger = matches!(self.state, State::Established)
            && self.guest_shutdown & shutdown::SEND != 0
            && !self.backlog.is_empty();
        if linger {
            self.detached = true;
            self.owed = 0;
            self.guest_shutdown(shutdown::BOTH);
        }
        linger
    }

    fn shut(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            // Fails only when the client has closed its end, which says as much already.
            let _ = stream.shutdown(how);
        }
    }

    /// The Unix socket is no longer needed; the guest will be told.
    pub fn begin_closing(&mut self) {
        self.state = State::Closing;
        self.stream = None;
        self.owe(op::SHUTDOWN);
    }

    /// Whether the guest has said that it is through with the connection in both directions.
    pub fn guest_is_done(&self) -> bool {
        self.guest_shutdown == shutdown::BOTH
    }

    /// What is to be done next.
    pub fn outcome(&mut self) -> Outcome {
        if matches!(self.state, State::Established) && self.read_closed && self.write_closed {
            return if self.detached {
                Outcome::Forget
            } else if self.guest_is_done() {
                Outcome::Reset
            } else {
                Outcome::Close
            };
        }
        if self.detached {
            return Outcome::Idle;
        }
        if self.credit.to_guest() > 0 {
            self.credit_asked = false;
        } else if self.wants_read() && !self.credit_asked {
            self.credit_asked = true;
            self.owe(op::CREDIT_REQUEST);
        }
        if self.owed != 0 || self.has_payload() || self.owes(op::CREDIT_UPDATE) {
            Outcome::Ready
        } else {
            Outcome::Idle
        }
    }
}
