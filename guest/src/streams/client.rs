//! A client's connection to a program.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use bulkhead_protocol::TerminalSize;
use bulkhead_protocol::frame::{self, Decoder, Kind, Part};
use rustix::event::epoll::EventFlags;

use super::program::Channel;
use super::{CHUNK, MAX_STREAMS};
use crate::connection::Stream as _;
use crate::guest::Guest;
use crate::server::poll::Token;
use crate::server::slab::Key;
use crate::server::socket::{Outbox, Socket};

/// How long a client may take nothing while others wait for the same output.
const STALL: Duration = Duration::from_secs(10);
/// How many bytes a client may still send after its last frame before it is cut off.
const MAX_DRAIN: usize = 256 << 10;

/// What a client wants of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// To write to its standard input.
    pub stdin: bool,
    /// To have its standard output.
    pub stdout: bool,
    /// To have its standard error.
    pub stderr: bool,
    /// To be waited for, for as long as it takes, when others want the same.
    pub keeps: bool,
}

/// A connection that carries frames.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    outbox: Outbox,
    decoder: Decoder,
    /// What has come and the program has not taken.
    held: Vec<u8>,
    /// How much of it is the rest of a frame that the decoder has already taken.
    held_data: usize,
    program: Key,
    wants: Wants,
    read_ended: bool,
    /// After the last frame: how many bytes the client may still send.
    ending: Option<usize>,
    flags: EventFlags,
    blocked_since: Option<Instant>,
}

impl Stream {
    /// Whether it is to have this output.
    pub fn wants(&self, channel: Channel) -> bool {
        self.ending.is_none()
            && match channel {
                Channel::Out => self.wants.stdout,
                Channel::Err => self.wants.stderr,
            }
    }

    /// Whether it has yet to take what was sent to it.
    pub fn is_blocked(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether the last frame was sent and it remains to be received.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    fn wanted_flags(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        if !self.read_ended && self.held.is_empty() {
            flags |= EventFlags::IN;
        }
        if self.is_blocked() {
            flags |= EventFlags::OUT;
        }
        if flags.is_empty() {
            // Only whether it leaves; and once, as its end may stand there for long.
            flags = EventFlags::RDHUP | EventFlags::ET;
        }
        flags
    }
}

impl Guest {
    /// Makes a connection, of which `input` has been read already, a stream of a program. `hello` is
    /// sent first. `false` if there is no such program any more.
    pub fn attach(
        &mut self,
        (socket, input): (Socket, Vec<u8>),
        program: Key,
        wants: Wants,
        hello: &[u8],
    ) -> bool {
        self.make_room_for_a_stream();
        let Some(it) = self.programs.get_mut(program) else {
            return false;
        };
        let poll = &self.poll;
        let made = self.streams.insert_with(|key| {
            // It was waited for as a client's.
            poll.modify(&socket, Token::Stream(key), EventFlags::IN)?;
            Ok::<_, io::Error>(Stream {
                socket,
                outbox: Outbox::default(),
                decoder: Decoder::new(),
                held: Vec::new(),
                held_data: 0,
                program,
                wants,
                read_ended: false,
                ending: None,
                flags: EventFlags::IN,
                blocked_since: None,
            })
        });
        let Some(Ok(key)) = made else {
            return false;
        };
        it.attached.push(key);
        if !self.send_frame(key, hello) {
            self.drop_stream(key);
            return true;
        }
        self.feed(key, &input, 0);
        self.resume_outputs(program);
        self.settle(program);
        self.update_stream(key);
        true
    }

    /// Streams whose last frame was sent leave earlier if there are too many. `false` if that does
    /// not help.
    pub fn has_room_for_a_stream(&self) -> bool {
        let ending = self.streams.iter().any(|(_, s)| s.is_ending());
        self.streams.len() + self.subscribers.len() < MAX_STREAMS || ending
    }

    fn make_room_for_a_stream(&mut self) {
        if self.streams.len() + self.subscribers.len() >= MAX_STREAMS
            && let Some(&key) = self.streams.keys_of(Stream::is_ending).first()
        {
            self.drop_stream(key);
        }
    }

    /// Something has happened to a stream's connection.
    pub fn stream_ready(&mut self, key: Key, flags: EventFlags) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let program = stream.program;
        if stream.is_blocked() {
            if stream.outbox.flush(&mut stream.socket).is_err() {
                return self.drop_stream(key);
            }
            if !stream.is_blocked() {
                stream.blocked_since = None;
                self.resume_outputs(program);
            }
        }
        self.read_stream(key, flags);
        self.update_stream(key);
    }

    fn read_stream(&mut self, key: Key, flags: EventFlags) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let closed = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if stream.read_ended || !stream.held.is_empty() {
            if flags.intersects(closed) && stream.socket.is_gone() {
                self.drop_stream(key);
            }
            return;
        }
        if !flags.intersects(EventFlags::IN | closed) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.scratch);
        // No shorter than what the outputs need, or it would be cleared time and again.
        buffer.resize(frame::HEADER_LENGTH + CHUNK, 0);
        match stream.socket.read(&mut buffer) {
            Ok(0) => self.client_ended(key),
            Ok(n) => self.feed(key, &buffer[..n], 0),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.drop_stream(key),
        }
        self.scratch = buffer;
    }

    /// The client has ended its side, or is gone for good.
    fn client_ended(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if stream.socket.is_gone() || (stream.is_ending() && !stream.is_blocked()) {
            return self.drop_stream(key);
        }
        stream.read_ended = true;
        if stream.wants.stdin
            && let Some(program) = self.programs.get_mut(stream.program)
        {
            program.end_stdin();
        }
    }

    /// A program takes input again.
    pub fn resume_input(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if !stream.held.is_empty() {
            let held = std::mem::take(&mut stream.held);
            let data = std::mem::take(&mut stream.held_data);
            self.feed(key, &held, data);
            self.update_stream(key);
        }
    }

    /// Deals with what a client has sent. The first `data` bytes are the rest of a frame for the
    /// program's standard input, the others have not been decoded.
    fn feed(&mut self, key: Key, bytes: &[u8], data: usize) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if let Some(left) = &mut stream.ending {
            match left.checked_sub(bytes.len()) {
                Some(less) => *left = less,
                None => self.drop_stream(key),
            }
            return;
        }
        let Some(program) = self.programs.get_mut(stream.program) else {
            return;
        };
        let (mut data, mut rest) = bytes.split_at(data.min(bytes.len()));
        loop {
            if !data.is_empty() && stream.wants.stdin {
                let taken = program.write(&self.poll, stream.program, data);
                if taken < data.len() {
                    stream.held_data = data.len() - taken;
                    stream.held = [&data[taken..], rest].concat();
                    return;
                }
            }
            data = &[];
            match stream.decoder.next(&mut rest) {
                Ok(None) => return,
                Ok(Some(Part::Data(Kind::Stdin, bytes))) => data = bytes,
                Ok(Some(Part::End(Kind::Stdin))) if stream.wants.stdin => program.end_stdin(),
                Ok(Some(Part::End(Kind::Stdin))) => {}
                Ok(Some(Part::Message(Kind::Resize, size))) => {
                    match serde_json::from_slice::<TerminalSize>(&size) {
                        // There may be no terminal, or none any more.
                        Ok(size) => _ = program.resize(size),
                        Err(e) => {
                            let message = format!("A resize frame is not a TerminalSize: {e}.");
                            return self.refuse_stream(key, &message);
                        }
                    }
                }
                Ok(Some(Part::Message(Kind::Start, _))) => {
                    let program = stream.program;
                    if self.start_for(key, program) {
                        self.feed(key, rest, 0);
                    }
                    return;
                }
                Ok(Some(Part::Data(kind, _) | Part::End(kind) | Part::Message(kind, _))) => {
                    let message = format!("Frames of type {} are not for the agent.", kind as u8);
                    return self.refuse_stream(key, &message);
                }
                Err(e) => return self.refuse_stream(key, &format!("The stream is broken: {e}.")),
            }
        }
    }

    /// Executes the program of a stream's container. How it ends if it cannot be executed is told as ever. `false` if the stream
    /// is over.
    fn start_for(&mut self, stream: Key, program: Key) -> bool {
        let container = self.containers.with_program(program);
        if container.is_some_and(|container| self.start(container).is_ok()) {
            let sent = self.send_frame(stream, &frame::encode(Kind::Started, b""));
            if !sent {
                self.drop_stream(stream);
            }
            return sent;
        }
        let entry = container.and_then(|container| self.containers.get(container));
        let will_end = entry.is_some_and(|entry| entry.failure.is_some());
        if !will_end {
            self.refuse_stream(stream, "There is no program that waits for its start.");
        }
        will_end
    }

    /// Ends a stream that does not keep to the rules.
    fn refuse_stream(&mut self, key: Key, message: &str) {
        self.end_stream(key, &frame::encode(Kind::Error, message.as_bytes()));
    }

    /// Sends a whole frame, which waits if the client does not take it. `false` if it is gone.
    pub fn send_frame(&mut self, key: Key, frame: &[u8]) -> bool {
        let Some(stream) = self.streams.get_mut(key) else {
            return true;
        };
        if stream.outbox.send(&mut stream.socket, frame).is_err() {
            return false;
        }
        if stream.is_blocked() {
            stream.blocked_since.get_or_insert_with(Instant::now);
            self.update_stream(key);
        }
        true
    }

    /// Sends the last frames of a stream and ends it as soon as the client has them.
    pub fn end_stream(&mut self, key: Key, last: &[u8]) {
        if !self.send_frame(key, last) {
            return self.drop_stream(key);
        }
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.ending = Some(MAX_DRAIN);
        stream.held = Vec::new();
        let program = stream.program;
        self.detach(key, program);
        self.update_stream(key);
    }

    /// Waits for what a stream's state asks for, and ends it if it is through.
    fn update_stream(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if stream.is_ending() && !stream.is_blocked() {
            // To a client that has ended its side nothing more is to be said.
            if stream.read_ended || stream.socket.shutdown_write().is_err() {
                return self.drop_stream(key);
            }
        }
        let flags = stream.wanted_flags();
        if flags != stream.flags {
            stream.flags = flags;
            let modified = self.poll.modify(&stream.socket, Token::Stream(key), flags);
            if modified.is_err() {
                self.drop_stream(key);
            }
        }
    }

    /// Closes a stream's connection.
    pub fn drop_stream(&mut self, key: Key) {
        if let Some(stream) = self.streams.remove(key)
            && !stream.is_ending()
        {
            self.detach(key, stream.program);
        }
    }

    /// A program has a stream less.
    fn detach(&mut self, key: Key, program: Key) {
        let Some(it) = self.programs.get_mut(program) else {
            return;
        };
        it.attached.retain(|&other| other != key);
        if it.transient && it.attached.is_empty() {
            // Nobody can come back to it.
            it.hang_up();
            if it.exit.is_some() {
                self.programs.remove(program);
            }
        } else {
            // The others may have waited for this one.
            self.resume_outputs(program);
        }
    }

    /// Lets go of clients that keep others waiting for the same output. Returns when to look again.
    pub fn drop_stalled(&mut self, now: Instant) -> Option<Instant> {
        let mut stalled = Vec::new();
        let mut next: Option<Instant> = None;
        for (_, program) in self.programs.iter().filter(|(_, p)| p.attached.len() > 1) {
            let streams = || {
                program
                    .attached
                    .iter()
                    .filter_map(|&k| Some((k, self.streams.get(k)?)))
            };
            if streams().all(|(_, s)| s.is_blocked()) {
                continue;
            }
            for (key, stream) in streams().filter(|(_, stream)| !stream.wants.keeps) {
                let Some(since) = stream.blocked_since else {
                    continue;
                };
                if now >= since + STALL {
                    stalled.push(key);
                } else {
                    next = Some(next.map_or(since + STALL, |n| n.min(since + STALL)));
                }
            }
        }
        for key in stalled {
            self.drop_stream(key);
        }
        next
    }
}
