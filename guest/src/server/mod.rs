//! One thread, one epoll: clients, programs, and the signals that PID 1 waits for, in the same place.

pub mod poll;
pub mod slab;
pub mod socket;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::api::{Asked, Destination};
use crate::connection::{Connection, Interest, Progress};
use crate::guest::Guest;
use crate::http::Head;
use crate::kmsg;
use crate::streams::program::Channel;
use poll::Token;
use slab::{Key, Slab};
use socket::Socket;

/// The most clients at a time that speak HTTP.
pub const MAX_CONNECTIONS: usize = 64;

struct Client {
    /// Always there, but while the connection is being dealt with.
    connection: Connection<Socket>,
    interest: Interest,
    /// The count of events when it was last heard of.
    heard: u64,
}

/// Why [`Server::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The signals' descriptor is readable.
    Signals,
    /// A shutdown was asked for and answered. Returned once.
    Shutdown,
    /// The deadline has passed.
    Deadline,
}

/// The API's server.
pub struct Server {
    /// What is served.
    pub guest: Guest,
    listener: Option<OwnedFd>,
    clients: Slab<Client>,
    events: u64,
    shutdown_told: bool,
}

impl Server {
    /// Serves on a listening, non-blocking socket; without one only signals are waited for.
    pub fn new(listener: Option<OwnedFd>, guest: Guest) -> io::Result<Self> {
        if let Some(listener) = &listener {
            guest.poll.add(listener, Token::Listener, EventFlags::IN)?;
        }
        Ok(Server {
            guest,
            listener,
            clients: Slab::new(),
            events: 0,
            shutdown_told: false,
        })
    }

    /// Also waits for `signals`, which must outlive the server's runs.
    pub fn watch_signals(&self, signals: impl AsFd) -> io::Result<()> {
        self.guest.poll.add(signals, Token::Signals, EventFlags::IN)
    }

    /// Serves until something happens that is not a matter of the API alone.
    pub fn run(&mut self, deadline: Option<Instant>) -> io::Result<Wake> {
        loop {
            if self.serve_once(deadline)? {
                return Ok(Wake::Signals);
            }
            if self.guest.shutdown().is_some() && !self.shutdown_told {
                self.shutdown_told = true;
                return Ok(Wake::Shutdown);
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(Wake::Deadline);
            }
        }
    }

    /// Waits, and deals with what came. `true` if signals did.
    fn serve_once(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        // Answers may be due for what happened since, such as the end of a program.
        self.give_answers();
        let mut deadline = deadline;
        if !self.guest.streams.is_empty()
            && let Some(next) = self.guest.drop_stalled(Instant::now())
        {
            deadline = Some(deadline.map_or(next, |d| d.min(next)));
        }
        let timeout = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let events = self.guest.poll.wait(timeout)?;
        let mut signalled = false;
        for (token, flags) in events.iter() {
            match token {
                Token::Listener => self.accept(),
                Token::Signals => signalled = true,
                Token::Client(key) => self.client_ready(key, flags),
                Token::Stream(key) => self.guest.stream_ready(key, flags),
                Token::Subscriber(key) => self.guest.subscriber_ready(key),
                Token::Stdin(key) => self.guest.stdin_has_room(key),
                Token::Stdout(key) => self.guest.pump(key, Channel::Out),
                Token::Stderr(key) => self.guest.pump(key, Channel::Err),
                Token::Oom(key) => self.guest.memory_event(key),
            }
        }
        self.give_answers();
        Ok(signalled)
    }

    /// Serves on until every client that was given its last answer or frame has received it and
    /// left, or the deadline has passed.
    pub fn finish(&mut self, deadline: Instant) {
        self.guest.end_subscriptions();
        loop {
            let clients = self.clients.iter().any(|(_, c)| c.connection.is_ending());
            let streams = self.guest.streams.iter().any(|(_, s)| s.is_ending());
            if !clients && !streams {
                return;
            }
            match self.serve_once(Some(deadline)) {
                Ok(_) if Instant::now() < deadline => {}
                _ => return,
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match accept_with(listener, flags) {
            Ok(socket) => self.admit(Socket::new(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            // Out of descriptors or memory. The client stays in the backlog and epoll reports it
            // again at once, so make room rather than spin.
            Err(e) => match self.quietest() {
                Some(key) => _ = self.clients.remove(key),
                None => {
                    kmsg::error(format_args!("cannot accept a connection: {e}"));
                    std::thread::sleep(Duration::from_secs(1));
                }
            },
        }
    }

    fn admit(&mut self, socket: Socket) {
        // Nobody can keep the API to himself by opening connections and sitting on them. The one that
        // leaves does so first; closing its socket takes it out of the epoll.
        if self.clients.len() >= MAX_CONNECTIONS
            && let Some(key) = self.quietest()
        {
            self.clients.remove(key);
        }
        self.events += 1;
        let heard = self.events;
        let poll = &self.guest.poll;
        // One that cannot be waited for is closed.
        let _ = self.clients.insert_with(|key| {
            poll.add(&socket, Token::Client(key), EventFlags::IN)?;
            Ok::<_, io::Error>(Client {
                connection: Connection::new(socket),
                interest: Interest::Read,
                heard,
            })
        });
    }

    /// The client that has been silent longest, of those that wait for nothing if there is one.
    fn quietest(&self) -> Option<Key> {
        let clients = self.clients.iter();
        clients
            .min_by_key(|(_, client)| (client.connection.is_promised(), client.heard))
            .map(|(key, _)| key)
    }

    fn client_ready(&mut self, key: Key, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        self.events += 1;
        client.heard = self.events;
        if client.interest == Interest::Answer {
            let closed = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            if flags.intersects(closed) && client.connection.stream().is_gone() {
                self.clients.remove(key);
            }
            return;
        }
        self.advance(key);
    }

    fn give_answers(&mut self) {
        while let Some((key, response)) = self.guest.answers.pop() {
            if let Some(client) = self.clients.get_mut(key) {
                client.connection.answer(&response);
                self.advance(key);
            }
        }
    }

    fn advance(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let mut asked = Asked {
            guest: &mut self.guest,
            client: key,
        };
        let keep = match client.connection.advance(&mut asked) {
            Progress::Over => false,
            Progress::Leaves(to, head) => return self.leave(key, to, &head),
            Progress::Wants(interest) if interest == client.interest => true,
            Progress::Wants(interest) => {
                client.interest = interest;
                let flags = match interest {
                    Interest::Read => EventFlags::IN,
                    Interest::Write => EventFlags::OUT,
                    // The client may have ended its side, and that would be reported for ever.
                    Interest::Answer => EventFlags::RDHUP | EventFlags::ET,
                };
                let socket = client.connection.stream();
                let poll = &self.guest.poll;
                poll.modify(socket, Token::Client(key), flags).is_ok()
            }
        };
        if !keep {
            self.clients.remove(key);
        }
    }

    /// A connection goes on as something else.
    fn leave(&mut self, key: Key, to: Destination, head: &Head) {
        if let Some(client) = self.clients.remove(key) {
            self.guest.receive(client.connection.into_parts(), to, head);
        }
    }
}
