//! What comes from the guest.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use libc::iovec;
use vmm_sys_util::epoll::EventSet;

use super::{Muxer, State};
use crate::GuestMemory;
use crate::virtio::chain::Buffers;
use crate::virtio::vsock::connection::{Broken, Connection};
use crate::virtio::vsock::packet::{HOST_CID, Header, Ports, TYPE_STREAM, op};
use crate::virtio::vsock::slots::SlotId;

/// The first pause before a host listener whose queue is full is tried again; each next is twice as
/// long, up to [`MAX_DIAL_PAUSE`].
const DIAL_PAUSE: Duration = Duration::from_millis(5);
const MAX_DIAL_PAUSE: Duration = Duration::from_millis(160);

/// A packet as the guest sent it.
pub struct Packet<'a> {
    /// Its header. `len` is not checked.
    pub header: Header,
    /// The whole packet, header included.
    pub buffers: &'a Buffers,
    /// Where the buffers are.
    pub memory: &'a GuestMemory,
}

impl Muxer {
    /// Takes a packet. `iovecs` is scratch space.
    pub fn take_packet(&mut self, packet: &Packet<'_>, iovecs: &mut Vec<iovec>) {
        let header = &packet.header;
        if header.src_cid != self.guest_cid {
            // There is nobody to answer to.
            self.counters.dropped += 1;
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let ports = Ports::from_guest(header);
        let known = self.by_ports.get(&ports).copied();
        match (header.op, known) {
            (op::REQUEST, _) => self.take_request(header, ports, known),
            (_, None) => self.refuse(header),
            (op::RST, Some(id)) => self.take_reset(id),
            (_, Some(id)) => {
                if self.take_for(id, packet, iovecs).is_err() {
                    self.reset(id);
                } else {
                    self.settle(id);
                }
            }
        }
    }

    /// Answers a packet that belongs to no connection (virtio 1.2 §5.10.6.4.2). The answer to a RST
    /// is none, or two sides that know of nothing would go on for ever.
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        if header.op == op::REQUEST {
            self.counters.refused += 1;
        }
        self.owe_reset(header.dst_cid, Ports::from_guest(header), header.kind);
    }

    fn take_request(&mut self, header: &Header, ports: Ports, known: Option<SlotId>) {
        if let Some(id) = known {
            // One that waits for a last word of the guest's is one the guest has forgotten.
            if !self.is_closing(id) {
                return self.reset(id);
            }
            self.remove(id);
        }
        if !self.has_room() {
            return self.refuse(header);
        }
        let give_up = Instant::now() + self.limits.request_timeout;
        let mut connection = Connection::from_guest(ports, give_up, self.limits.buffer_size);
        if connection
            .credit
            .update(header.buf_alloc, header.fwd_cnt)
            .is_err()
        {
            return self.refuse(header);
        }
        let id = self.insert(connection);
        self.by_ports.insert(ports, id);
        self.dial(id);
    }

    /// Tries to connect to the listener on the host that the guest asked for.
    pub(super) fn dial(&mut self, id: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let State::Dialing { tries, give_up } = &mut connection.state else {
            return;
        };
        match self.host_ports.connect(connection.ports.host) {
            Ok(stream) => {
                let fd = stream.as_raw_fd();
                connection.stream = Some(stream);
                connection.owe(op::RESPONSE);
                if self.watch_stream(fd, id).is_err() {
                    return self.reset(id);
                }
                self.establish(id);
                self.counters.from_guest += 1;
                self.settle(id);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < *give_up => {
                let pause = MAX_DIAL_PAUSE.min(DIAL_PAUSE * (1 << (*tries).min(8)));
                *tries += 1;
                self.set_deadline(id, pause);
            }
            Err(_) => {
                self.counters.refused += 1;
                self.reset(id);
            }
        }
    }

    pub(super) fn watch_stream(&self, fd: i32, id: SlotId) -> io::Result<()> {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.watch(fd, events, id.token())
    }

    fn take_reset(&mut self, id: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if matches!(connection.state, State::Requested { .. }) {
            self.counters.refused += 1;
        }
        if connection.detach() {
            let ports = connection.ports;
            self.by_ports.remove(&ports);
            self.settle(id);
        } else {
            self.remove(id);
        }
    }

    /// Takes a packet for a connection that is there.
    fn take_for(
        &mut self,
        id: SlotId,
        packet: &Packet<'_>,
        iovecs: &mut Vec<iovec>,
    ) -> Result<(), Broken> {
        let header = &packet.header;
        let connection = self.connections.get_mut(id).ok_or(Broken)?;
        connection.credit.update(header.buf_alloc, header.fwd_cnt)?;
        match (&connection.state, header.op) {
            (State::Requested { sent: true }, op::RESPONSE) => {
                connection.greet()?;
                self.establish(id);
                self.counters.from_host += 1;
                Ok(())
            }
            (State::Established, op::RW) => {
                connection.take_payload(packet.memory, packet.buffers, header.len, iovecs)?;
                self.counters.to_host_bytes += u64::from(header.len);
                Ok(())
            }
            (State::Established, op::SHUTDOWN) => {
                connection.guest_shutdown(header.flags);
                Ok(())
            }
            (State::Established, op::CREDIT_UPDATE) => Ok(()),
            (State::Established, op::CREDIT_REQUEST) => {
                connection.owe(op::CREDIT_UPDATE);
                Ok(())
            }
            // The guest sent this before it read that everything is over.
            (State::Closing, op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST) => Ok(()),
            (State::Closing, op::SHUTDOWN) => {
                connection.guest_shutdown(header.flags);
                // Both through: the RST that ends it.
                if connection.guest_is_done() {
                    return Err(Broken);
                }
                Ok(())
            }
            _ => Err(Broken),
        }
    }

    /// Takes a packet whose header promises more than there is: ends the connection it is for.
    pub fn take_malformed(&mut self, header: &Header) {
        let ports = Ports::from_guest(header);
        let addressed = header.src_cid == self.guest_cid && header.dst_cid == HOST_CID;
        match self.by_ports.get(&ports).copied() {
            Some(id) if addressed => self.reset(id),
            _ => self.counters.dropped += 1,
        }
    }
}
