//! All connections of one device, and what happens to them.
//!
//! [`guest`] takes what comes from the guest, [`host`] what comes from the Unix sockets; here is the
//! table both work on. What is to go to the guest is not queued anywhere: a connection that has
//! something for it stands in the ready queue, and the packet is made when there is a buffer for it.

mod guest;
mod host;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Outcome, State};
use super::door::Door;
use super::limits::Limits;
use super::listener::HostPorts;
use super::packet::{HOST_CID, Header, Ports, TYPE_STREAM, op};
use super::slots::{SlotId, Slots};
use super::timers::Timers;
use crate::virtio::wakeup::Wakeup;

pub use guest::Packet;

// Tokens in the nested epoll that are not of a connection (see `SlotId::token`).
const TIMERS: u64 = u64::MAX;
const WAKEUP: u64 = u64::MAX - 1;
/// Of the first door; those of the others lie below it.
const FIRST_DOOR: u64 = u64::MAX - 2;

/// Host ports given to connections from the host: out of the way of those services listen at.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = u32::MAX >> 1;

/// What was counted since the device was made.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counters {
    /// Connections opened by host clients.
    pub from_host: u64,
    /// Connections opened by the guest.
    pub from_guest: u64,
    /// Connections refused, either way.
    pub refused: u64,
    /// Bytes of payload to the guest.
    pub to_guest_bytes: u64,
    /// Bytes of payload to the host.
    pub to_host_bytes: u64,
    /// RST packets for the guest.
    pub resets: u64,
    /// Packets of the guest that were dropped without an answer.
    pub dropped: u64,
}

/// A RST packet that is owed to the guest for a connection that is no more, or never was.
#[derive(Debug, Clone, Copy)]
struct Reset {
    src_cid: u64,
    ports: Ports,
    kind: u16,
}

/// The connections of one device.
pub struct Muxer {
    name: String,
    guest_cid: u64,
    limits: Limits,
    host_ports: HostPorts,
    doors: Vec<Door>,
    epoll: Epoll,
    wakeup: Wakeup,
    timers: Timers,
    connections: Slots<Connection>,
    by_ports: HashMap<Ports, SlotId>,
    resets: VecDeque<Reset>,
    half_open: usize,
    /// The guest would drop connections that it heard of now.
    held_back: bool,
    /// Bytes in the backlogs of all connections.
    backlog: usize,
    next_port: u32,
    counters: Counters,
}

/// The tokens of the doors, in their order.
fn door_tokens() -> impl Iterator<Item = u64> {
    (0..=FIRST_DOOR).rev()
}

impl Muxer {
    /// No connections.
    pub fn new(
        name: String,
        guest_cid: u64,
        limits: Limits,
        host_ports: HostPorts,
        doors: Vec<Door>,
    ) -> io::Result<Muxer> {
        let muxer = Muxer {
            name,
            guest_cid,
            limits,
            host_ports,
            doors,
            epoll: Epoll::new()?,
            wakeup: Wakeup::new()?,
            timers: Timers::new()?,
            connections: Slots::default(),
            by_ports: HashMap::new(),
            resets: VecDeque::new(),
            half_open: 0,
            held_back: false,
            backlog: 0,
            next_port: FIRST_PORT,
            counters: Counters::default(),
        };
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (door, token) in muxer.doors.iter().zip(door_tokens()) {
            muxer.watch(door.as_raw_fd(), edge, token)?;
        }
        muxer.watch(muxer.timers.as_raw_fd(), edge, TIMERS)?;
        muxer.watch(muxer.wakeup.source(0).fd, EventSet::IN, WAKEUP)?;
        Ok(muxer)
    }

    fn watch(&self, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    /// What stands for all descriptors of the device: readable when [`Self::poll`] has work.
    pub fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Asks for another turn on the event loop.
    pub fn ring(&self) {
        self.wakeup.ring();
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections there are, the half-open ones among them.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Bytes from the guest that wait for Unix sockets to take them.
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// Closes every connection, without a word to the guest. Clients may go on to knock.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.resets.clear();
        self.timers.clear();
        self.half_open = 0;
        self.held_back = false;
        self.backlog = 0;
        // A pause after a failed accept went with the timers.
        for door in &mut self.doors {
            door.waiting |= door.failing;
        }
    }

    // What goes to the guest.

    /// Whether packets of the guest can be taken. Not while so many RSTs wait for buffers that one
    /// more may be too many: then the guest's packets wait in its own memory.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < self.limits.max_pending_resets
    }

    /// Whether connections keep from the guest what they have for it, requests above all. Clients are
    /// accepted all the same, and wait. RSTs are not of connections, and go on.
    pub fn hold_back(&mut self, hold: bool) {
        self.held_back = hold;
    }

    /// Whether there is anything for the guest.
    pub fn is_quiet(&self) -> bool {
        self.resets.is_empty() && (self.held_back || self.connections.none_ready())
    }

    /// The RST packet to send next.
    pub fn next_reset(&self) -> Option<Header> {
        let reset = self.resets.front()?;
        Some(Header {
            src_cid: reset.src_cid,
            dst_cid: self.guest_cid,
            src_port: reset.ports.host,
            dst_port: reset.ports.guest,
            kind: reset.kind,
            op: op::RST,
            ..Header::default()
        })
    }

    /// The packet of [`Self::next_reset`] was sent.
    pub fn reset_sent(&mut self) {
        self.resets.pop_front();
    }

    /// The connection whose turn it is to send to the guest. After its turn: [`Self::settle`].
    pub fn next_ready(&mut self) -> Option<SlotId> {
        if self.held_back {
            return None;
        }
        self.connections.next_ready()
    }

    /// The turn of a connection was cut short for want of buffers: it goes first next time.
    pub fn turn_cut_short(&mut self, id: SlotId) {
        self.connections.make_ready_first(id);
    }

    /// A connection and the guest's CID, to make packets with.
    pub fn connection(&mut self, id: SlotId) -> Option<(&mut Connection, u64)> {
        let cid = self.guest_cid;
        Some((self.connections.get_mut(id)?, cid))
    }

    /// Counts payload sent to the guest.
    pub fn count_to_guest(&mut self, bytes: u32) {
        self.counters.to_guest_bytes += u64::from(bytes);
    }

    // The life of a connection.

    fn has_room(&self) -> bool {
        self.connections.len() < self.limits.max_connections
            && self.half_open < self.limits.max_half_open
    }

    fn insert(&mut self, connection: Connection) -> SlotId {
        self.half_open += 1;
        self.connections.insert(connection)
    }

    /// Does what is due after anything happened to a connection.
    pub fn settle(&mut self, id: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let backlog = connection.backlog_len();
        self.backlog = self.backlog - connection.counted + backlog;
        connection.counted = backlog;
        if self.backlog > self.limits.max_backlog && backlog > 0 {
            return self.reset(id);
        }
        match connection.outcome() {
            Outcome::Idle => {}
            Outcome::Ready => self.connections.make_ready(id),
            Outcome::Reset => self.reset(id),
            Outcome::Forget => {
                self.remove(id);
            }
            Outcome::Close => {
                connection.begin_closing();
                self.connections.make_ready(id);
                self.set_deadline(id, self.limits.close_timeout);
            }
        }
    }

    fn set_deadline(&mut self, id: SlotId, after: Duration) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if let Some(at) = connection.deadline.take() {
            self.timers.remove(at, id.token());
        }
        let at = Instant::now() + after;
        connection.deadline = Some(at);
        self.timers.add(at, id.token());
    }

    fn establish(&mut self, id: SlotId) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.establish();
        if let Some(at) = connection.deadline.take() {
            self.timers.remove(at, id.token());
        }
        self.half_open -= 1;
    }

    /// Forgets a connection and closes its Unix socket.
    fn remove(&mut self, id: SlotId) -> Option<Connection> {
        let connection = self.connections.remove(id)?;
        if let Some(at) = connection.deadline {
            self.timers.remove(at, id.token());
        }
        // Another one may have its ports by now, or it may never have got any.
        if self.by_ports.get(&connection.ports) == Some(&id) {
            self.by_ports.remove(&connection.ports);
        }
        if connection.is_half_open() {
            self.half_open -= 1;
        }
        self.backlog -= connection.counted;
        Some(connection)
    }

    /// Forgets a connection, and tells the guest if it knows of it.
    fn reset(&mut self, id: SlotId) {
        let Some(connection) = self.remove(id) else {
            return;
        };
        if connection.is_known_to_guest() {
            self.owe_reset(HOST_CID, connection.ports, TYPE_STREAM);
        }
    }

    /// Bounded by what can add to it: the guest's packets, which are not taken when there are many,
    /// and connections the guest knows of, each of which cost it a packet or a buffer.
    fn owe_reset(&mut self, src_cid: u64, ports: Ports, kind: u16) {
        self.counters.resets += 1;
        self.resets.push_back(Reset {
            src_cid,
            ports,
            kind,
        });
    }

    /// A host port that no connection to this port of the guest has.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT {
                FIRST_PORT
            } else {
                host + 1
            };
            // There are far more ports than there may be connections.
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn is_closing(&mut self, id: SlotId) -> bool {
        self.connections
            .get_mut(id)
            .is_some_and(|connection| matches!(connection.state, State::Closing))
    }
}
