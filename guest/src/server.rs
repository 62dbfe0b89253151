//! One thread, one epoll: clients, and the signals that PID 1 waits for in the same place.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown};

use crate::api::Api;
use crate::connection::{Connection, Interest, Stream};
use crate::kmsg;

/// The most clients at a time.
pub const MAX_CONNECTIONS: usize = 64;

const LISTENER: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;
/// How many events are taken from the kernel at a time.
const BATCH: usize = 16;

/// A client's socket.
pub struct Socket(OwnedFd);

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, buf, RecvFlags::empty()).map(|(n, _)| n)?)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // A client that left is an error of this call, not a SIGPIPE.
        Ok(send(&self.0, buf, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(shutdown(&self.0, Shutdown::Write)?)
    }
}

struct Client {
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
    epoll: OwnedFd,
    listener: Option<OwnedFd>,
    clients: Vec<Option<Client>>,
    events: u64,
    shutdown_told: bool,
}

impl Server {
    /// Serves on a listening, non-blocking socket; without one only signals are waited for.
    pub fn new(listener: Option<OwnedFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            let token = EventData::new_u64(LISTENER);
            epoll::add(&epoll, listener, token, EventFlags::IN)?;
        }
        Ok(Server {
            epoll,
            listener,
            clients: Vec::new(),
            events: 0,
            shutdown_told: false,
        })
    }

    /// Also waits for `signals`, which must outlive the server's runs.
    pub fn watch_signals(&self, signals: impl AsFd) -> io::Result<()> {
        let token = EventData::new_u64(SIGNALS);
        Ok(epoll::add(&self.epoll, signals, token, EventFlags::IN)?)
    }

    /// Serves until something happens that is not a matter of the API alone.
    pub fn run(&mut self, api: &mut Api, deadline: Option<Instant>) -> io::Result<Wake> {
        loop {
            if self.serve_once(api, deadline)? {
                return Ok(Wake::Signals);
            }
            if api.shutdown().is_some() && !self.shutdown_told {
                self.shutdown_told = true;
                return Ok(Wake::Shutdown);
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(Wake::Deadline);
            }
        }
    }

    /// Waits, and deals with what came. `true` if signals did.
    fn serve_once(&mut self, api: &mut Api, deadline: Option<Instant>) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let timeout = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
        let events = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let mut signalled = false;
        for event in events.iter() {
            match event.data.u64() {
                LISTENER => self.accept(),
                SIGNALS => signalled = true,
                // The slot may have passed to another client within this batch. That one is then
                // looked at for nothing, which does no harm.
                slot => self.advance(usize::try_from(slot).unwrap_or(usize::MAX), api),
            }
        }
        Ok(signalled)
    }

    /// Serves on until every client that was given its last answer has received it and left, or
    /// the deadline has passed.
    pub fn finish(&mut self, api: &mut Api, deadline: Instant) {
        let ending = |c: &Option<Client>| c.as_ref().is_some_and(|c| c.connection.is_ending());
        while self.clients.iter().any(ending) {
            match self.serve_once(api, Some(deadline)) {
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
            Ok(socket) => self.admit(socket),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            // Out of descriptors or memory. The client stays in the backlog and epoll reports it
            // again at once, so make room rather than spin.
            Err(e) => match self.quietest() {
                Some(slot) => self.clients[slot] = None,
                None => {
                    kmsg::error(format_args!("cannot accept a connection: {e}"));
                    std::thread::sleep(Duration::from_secs(1));
                }
            },
        }
    }

    fn admit(&mut self, socket: OwnedFd) {
        let free = self.clients.iter().position(Option::is_none);
        let slot = match free {
            Some(slot) => slot,
            None if self.clients.len() < MAX_CONNECTIONS => {
                self.clients.push(None);
                self.clients.len() - 1
            }
            // Nobody can keep the API to himself by opening connections and sitting on them.
            None => match self.quietest() {
                Some(slot) => slot,
                None => return,
            },
        };
        // The one that had the slot leaves first; closing its socket takes it out of the epoll.
        self.clients[slot] = None;
        let token = EventData::new_u64(slot as u64);
        if epoll::add(&self.epoll, &socket, token, EventFlags::IN).is_ok() {
            self.events += 1;
            self.clients[slot] = Some(Client {
                connection: Connection::new(Socket(socket)),
                interest: Interest::Read,
                heard: self.events,
            });
        }
    }

    /// The slot of the client that has been silent longest.
    fn quietest(&self) -> Option<usize> {
        let heard = |slot: &usize| self.clients[*slot].as_ref().map(|c| c.heard);
        (0..self.clients.len())
            .filter(|slot| self.clients[*slot].is_some())
            .min_by_key(heard)
    }

    fn advance(&mut self, slot: usize, api: &mut Api) {
        let Some(entry) = self.clients.get_mut(slot) else {
            return;
        };
        let Some(client) = entry else {
            return;
        };
        self.events += 1;
        client.heard = self.events;
        let wanted = client
            .connection
            .advance(&mut |request| api.handle(request));
        let keep = match wanted {
            None => false,
            Some(interest) if interest == client.interest => true,
            Some(interest) => {
                client.interest = interest;
                let flags = match interest {
                    Interest::Read => EventFlags::IN,
                    Interest::Write => EventFlags::OUT,
                };
                let token = EventData::new_u64(slot as u64);
                epoll::modify(&self.epoll, &client.connection.stream().0, token, flags).is_ok()
            }
        };
        if !keep {
            *entry = None;
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
