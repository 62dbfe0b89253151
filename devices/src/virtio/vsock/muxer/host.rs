//! What comes from the host: clients, readiness of Unix sockets, time.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use super::{FIRST_DOOR, Muxer, State, TIMERS, WAKEUP};
use crate::virtio::vsock::connection::Connection;
use crate::virtio::vsock::door::Door;
use crate::virtio::vsock::handshake::Progress;
use crate::virtio::vsock::packet::{Ports, op};
use crate::virtio::vsock::slots::SlotId;

/// Events taken in one turn, and clients accepted in one.
const EVENTS: usize = 128;
const CLIENTS: usize = 128;

/// The pause before clients are accepted again after the host ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Muxer {
    /// Takes what the nested epoll has to tell, without waiting. What one call does not get to is
    /// left, and keeps the descriptor readable.
    pub fn poll(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        // Fails when interrupted, and then there will be another call.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                TIMERS => self.run_timers(),
                WAKEUP => self.wakeup.clear(),
                token => {
                    if let Some(door) = self.door(token) {
                        door.waiting = true;
                    } else {
                        self.take_event(SlotId::from_token(token), event.event_set());
                    }
                }
            }
        }
    }

    /// The door with this token in the epoll.
    fn door(&mut self, token: u64) -> Option<&mut Door> {
        let index = usize::try_from(FIRST_DOOR.checked_sub(token)?).ok()?;
        self.doors.get_mut(index)
    }

    /// Accepts the clients that wait. Not while the guest is away: they wait at the doors.
    pub fn accept(&mut self) {
        for index in 0..self.doors.len() {
            self.accept_at(index);
        }
    }

    fn accept_at(&mut self, index: usize) {
        for _ in 0..CLIENTS {
            let has_room = self.has_room();
            let Some(door) = self.doors.get_mut(index) else {
                return;
            };
            if !door.waiting {
                return;
            }
            let port = door.port;
            match door.accept() {
                // Too many: closed, which is all there is to say to a client.
                Ok(_) if !has_room => self.counters.refused += 1,
                Ok(stream) => {
                    door.failing = false;
                    let fd = stream.as_raw_fd();
                    let connection = Connection::from_host(stream, self.limits.buffer_size);
                    let id = self.insert(connection);
                    if self.watch_stream(fd, id).is_err() {
                        self.remove(id);
                        continue;
                    }
                    if let Some(port) = port {
                        self.request(id, port);
                        continue;
                    }
                    self.set_deadline(id, self.limits.handshake_timeout);
                    // Often the line is there already; if not, there will be an edge.
                    self.read_line(id);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    door.waiting = false;
                    return;
                }
                // That one has gone already.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    // Out of descriptors or memory. The client stays where it is, and there will be
                    // no edge to say so: time has to.
                    if !door.failing {
                        log::warn!("{}: cannot accept a client: {e}", self.name);
                    }
                    door.failing = true;
                    door.waiting = false;
                    let token = FIRST_DOOR - index as u64;
                    self.timers.add(Instant::now() + ACCEPT_PAUSE, token);
                    return;
                }
            }
        }
        self.ring();
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(token) = self.timers.next_passed(now) {
            if let Some(door) = self.door(token) {
                door.waiting = true;
                continue;
            }
            let id = SlotId::from_token(token);
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            connection.deadline = None;
            match connection.state {
                State::Dialing { .. } => self.dial(id),
                _ => self.reset(id),
            }
        }
    }

    fn take_event(&mut self, id: SlotId, events: EventSet) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        match connection.state {
            State::Handshake(_) => {
                self.read_line(id);
                if hung_up {
                    self.reset(id);
                }
            }
            // The client has given up waiting.
            State::Requested { .. } if hung_up => self.reset(id),
            State::Established => {
                if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
                    connection.set_readable();
                }
                let flushed = connection.flush();
                if hung_up {
                    connection.hang_up();
                }
                if flushed.is_err() {
                    self.reset(id);
                } else {
                    self.settle(id);
                }
            }
            State::Requested { .. } | State::Dialing { .. } | State::Closing => {}
        }
    }

    /// Goes on with the handshake of a host client.
    fn read_line(&mut self, id: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let (State::Handshake(line), Some(stream)) = (&mut connection.state, &connection.stream)
        else {
            return;
        };
        match line.advance(stream) {
            Progress::Waiting => {}
            Progress::Bad => {
                self.counters.refused += 1;
                self.remove(id);
            }
            Progress::Connect(guest) => {
                connection.owes_greeting = true;
                self.request(id, guest);
            }
        }
    }

    /// Asks the guest for a connection to its port, for a client that knows what it wants.
    fn request(&mut self, id: SlotId, guest: u32) {
        let host = self.free_port(guest);
        let ports = Ports { host, guest };
        self.by_ports.insert(ports, id);
        if let Some(connection) = self.connections.get_mut(id) {
            connection.ports = ports;
            connection.state = State::Requested { sent: false };
            connection.owe(op::REQUEST);
        }
        self.set_deadline(id, self.limits.request_timeout);
        self.settle(id);
    }
}
