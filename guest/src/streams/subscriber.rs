//! A client that is told what happens.

use std::io;

use bulkhead_protocol::{Event, EventKind};
use rustix::event::epoll::EventFlags;

use crate::clock;
use crate::guest::Guest;
use crate::http::{self, chunk_size_line};
use crate::server::poll::Token;
use crate::server::slab::Key;
use crate::server::socket::{Outbox, Socket};

/// How much waits for a client before it is left out.
const MAX_BEHIND: usize = 64 << 10;

/// A connection that carries events, as lines of JSON in chunks.
#[derive(Debug)]
pub struct Subscriber {
    socket: Socket,
    outbox: Outbox,
    /// Events were left out since it last had room.
    lost: bool,
}

/// Only whether it leaves. It may have ended its side long ago, so once.
const QUIET: EventFlags = EventFlags::RDHUP.union(EventFlags::ET);

impl Guest {
    /// Makes a connection one that is told what happens from now on.
    pub fn subscribe(&mut self, socket: Socket) {
        let poll = &self.poll;
        let made = self.subscribers.insert_with(|key| {
            poll.modify(&socket, Token::Subscriber(key), QUIET)?;
            Ok::<_, io::Error>(Subscriber {
                socket,
                outbox: Outbox::default(),
                lost: false,
            })
        });
        if let Some(Ok(key)) = made {
            let mut hello = http::start_chunked("application/x-ndjson");
            hello.extend(chunk(&event(EventKind::Listening)));
            self.tell(key, &hello);
        }
    }

    /// Tells everybody.
    pub fn publish(&mut self, event: &Event) {
        if self.subscribers.is_empty() {
            return;
        }
        let chunk = chunk(event);
        for key in self.subscribers.keys_of(|_| true) {
            self.tell(key, &chunk);
        }
    }

    fn tell(&mut self, key: Key, chunk: &[u8]) {
        let Some(it) = self.subscribers.get_mut(key) else {
            return;
        };
        if it.lost || it.outbox.len() + chunk.len() > MAX_BEHIND {
            it.lost = true;
            return;
        }
        let waited = !it.outbox.is_empty();
        let sent = it.outbox.send(&mut it.socket, chunk);
        let waits = !it.outbox.is_empty();
        if sent.is_err() || (waits && !waited && !self.watch_subscriber(key, EventFlags::OUT)) {
            self.subscribers.remove(key);
        }
    }

    /// Something has happened to a subscriber's connection.
    pub fn subscriber_ready(&mut self, key: Key) {
        let Some(it) = self.subscribers.get_mut(key) else {
            return;
        };
        // What it sends is of no interest; that it leaves is.
        if it.outbox.flush(&mut it.socket).is_err() || it.socket.is_gone() {
            self.subscribers.remove(key);
            return;
        }
        if it.outbox.is_empty() {
            let lost = std::mem::take(&mut it.lost);
            if !self.watch_subscriber(key, QUIET) {
                self.subscribers.remove(key);
            } else if lost {
                self.tell(key, &chunk(&event(EventKind::Lost)));
            }
        }
    }

    /// The guest ends: so do the bodies.
    pub fn end_subscriptions(&mut self) {
        for key in self.subscribers.keys_of(|_| true) {
            self.tell(key, http::LAST_CHUNK);
        }
    }

    fn watch_subscriber(&self, key: Key, flags: EventFlags) -> bool {
        let it = self.subscribers.get(key);
        it.is_some_and(|it| {
            self.poll
                .modify(&it.socket, Token::Subscriber(key), flags)
                .is_ok()
        })
    }
}

/// An event that is about no container.
fn event(event: EventKind) -> Event {
    Event {
        event,
        time_ns: clock::unix_ns(),
        container_id: None,
        exec_id: None,
        exit: None,
    }
}

fn chunk(event: &Event) -> Vec<u8> {
    // A plain struct, which serialises.
    let line = serde_json::to_vec(event).unwrap_or_default();
    let mut chunk = chunk_size_line(line.len() + 1).into_bytes();
    chunk.extend(line);
    chunk.extend_from_slice(b"\n\r\n");
    chunk
}
