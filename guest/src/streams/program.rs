//! A program's ends of its streams.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_protocol::frame::{self, HEADER_LENGTH, Header, Kind};
use bulkhead_protocol::{Exit, TerminalSize};
use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{CHUNK, TURNS};
use crate::guest::Guest;
use crate::server::poll::{Poll, Token};
use crate::server::slab::Key;

/// What a terminal takes for the end of its input: Ctrl-D.
const END_OF_INPUT: &[u8] = b"\x04";

/// A program, as far as its streams go.
#[derive(Debug)]
pub struct Program {
    stdin: Option<Input>,
    outputs: [Option<Output>; 2],
    is_terminal: bool,
    /// The streams that are attached to it.
    pub attached: Vec<Key>,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// It goes when it has ended and its last stream leaves.
    pub transient: bool,
}

/// The agent's ends of a program's streams; non-blocking.
#[derive(Debug, Default)]
pub struct Ends {
    /// Where its standard input is written to.
    pub stdin: Option<OwnedFd>,
    /// Where its standard output is read from; of a terminal, the master.
    pub stdout: Option<OwnedFd>,
    /// Where its standard error is read from.
    pub stderr: Option<OwnedFd>,
    /// Whether they are a terminal.
    pub is_terminal: bool,
}

#[derive(Debug)]
struct Input {
    fd: OwnedFd,
    watched: bool,
}

#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    watched: bool,
    /// Once the program has ended: how much of what is in the pipe was written before that. What its
    /// children write later is theirs, and they may never end.
    left: Option<usize>,
}

/// One of a program's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output, or the terminal.
    Out = 0,
    /// Standard error.
    Err = 1,
}

impl Channel {
    const BOTH: [Channel; 2] = [Channel::Out, Channel::Err];

    fn kind(self) -> Kind {
        match self {
            Channel::Out => Kind::Stdout,
            Channel::Err => Kind::Stderr,
        }
    }

    fn token(self, program: Key) -> Token {
        match self {
            Channel::Out => Token::Stdout(program),
            Channel::Err => Token::Stderr(program),
        }
    }
}

/// What came of reading an output once.
enum Take {
    /// So many bytes.
    Some(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Program {
    /// A program that runs, or is about to.
    pub fn new(ends: Ends, transient: bool) -> Self {
        let output = |fd| Output {
            fd,
            watched: false,
            left: None,
        };
        Program {
            stdin: ends.stdin.map(|fd| Input { fd, watched: false }),
            outputs: [ends.stdout.map(output), ends.stderr.map(output)],
            is_terminal: ends.is_terminal,
            attached: Vec::new(),
            exit: None,
            transient,
        }
    }

    /// Writes to its standard input and returns how much of it was taken; all of it, if there is
    /// nobody to take it.
    pub fn write(&mut self, poll: &Poll, this: Key, bytes: &[u8]) -> usize {
        let Some(input) = &mut self.stdin else {
            return bytes.len();
        };
        let mut written = 0;
        while written < bytes.len() {
            match write(&input.fd, &bytes[written..]) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let added = input.watched
                        || poll
                            .add(&input.fd, Token::Stdin(this), EventFlags::OUT)
                            .is_ok();
                    input.watched = added;
                    if !added {
                        // Nobody would ever say that it can go on.
                        self.stdin = None;
                        return bytes.len();
                    }
                    return written;
                }
                // The program has closed it, or is no more.
                Err(_) => {
                    self.stdin = None;
                    return bytes.len();
                }
            }
        }
        written
    }

    /// Its standard input has room; whoever waited for that is asked to write again.
    fn stop_watching_stdin(&mut self, poll: &Poll) {
        if let Some(input) = &mut self.stdin {
            poll.remove(&input.fd);
            input.watched = false;
        }
    }

    /// Ends its standard input.
    pub fn end_stdin(&mut self) {
        if let Some(input) = self.stdin.take()
            && self.is_terminal
        {
            // A terminal's input ends with a character, and the program may go on reading later: it
            // stays open. If it is so full that it does not take this, nobody reads it.
            let _ = write(&input.fd, END_OF_INPUT);
            self.stdin = Some(input);
        }
    }

    /// Closes everything: a program that goes on writing gets SIGPIPE.
    pub fn hang_up(&mut self) {
        self.stdin = None;
        self.outputs = [None, None];
    }

    /// Its terminal, if it has one.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let output = self.outputs[Channel::Out as usize].as_ref()?;
        self.is_terminal.then(|| output.fd.as_fd())
    }

    /// Sets the size of its terminal. `false` if it has none.
    pub fn resize(&self, size: TerminalSize) -> bool {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        self.terminal()
            .is_some_and(|terminal| tcsetwinsize(terminal, size).is_ok())
    }

    fn is_over(&self, channel: Channel) -> bool {
        self.outputs[channel as usize].is_none()
    }

    /// The program has ended, and with it what it wrote.
    fn count_what_is_left(&mut self) {
        // A terminal is hung up with its program, and then ends of its own accord.
        if self.is_terminal {
            return;
        }
        for output in self.outputs.iter_mut().flatten() {
            let left = ioctl_fionread(&output.fd).unwrap_or(0);
            output.left = Some(usize::try_from(left).unwrap_or(usize::MAX));
        }
    }

    fn watch(&mut self, poll: &Poll, this: Key, channel: Channel) {
        if let Some(output) = &mut self.outputs[channel as usize]
            && !output.watched
        {
            let token = channel.token(this);
            output.watched = poll.add(&output.fd, token, EventFlags::IN).is_ok();
        }
    }

    /// An end-of-file would be reported for ever, so it is not enough to wait for nothing.
    fn stop_watching(&mut self, poll: &Poll, channel: Channel) {
        if let Some(output) = &mut self.outputs[channel as usize]
            && output.watched
        {
            poll.remove(&output.fd);
            output.watched = false;
        }
    }

    fn take(&mut self, channel: Channel, buffer: &mut [u8]) -> Take {
        let Some(output) = &mut self.outputs[channel as usize] else {
            return Take::End;
        };
        let room = buffer.len().min(output.left.unwrap_or(usize::MAX));
        if room == 0 {
            return Take::End;
        }
        loop {
            return match read(&output.fd, &mut buffer[..room]) {
                Ok(0) => Take::End,
                Ok(n) => {
                    if let Some(left) = &mut output.left {
                        *left -= n;
                    }
                    Take::Some(n)
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if output.left.is_none() => Take::Nothing,
                // EIO is how a terminal says that nobody has it open any more.
                Err(_) => Take::End,
            };
        }
    }
}

impl Guest {
    /// A program's standard input has room.
    pub fn stdin_has_room(&mut self, program: Key) {
        let Some(it) = self.programs.get_mut(program) else {
            return;
        };
        it.stop_watching_stdin(&self.poll);
        for stream in it.attached.clone() {
            self.resume_input(stream);
        }
    }

    /// Moves a program's output to the streams that want it, until there is none, one of them takes
    /// no more, or others should have their turn.
    pub fn pump(&mut self, program: Key, channel: Channel) {
        let mut buffer = std::mem::take(&mut self.scratch);
        buffer.resize(HEADER_LENGTH + CHUNK, 0);
        let mut gone = Vec::new();
        let mut over = false;
        for _ in 0..TURNS {
            let Some(it) = self.programs.get_mut(program) else {
                break;
            };
            let wanting = || {
                let streams = it.attached.iter().copied();
                streams.filter(|&key| self.streams.get(key).is_some_and(|s| s.wants(channel)))
            };
            let waits = |key: Key| self.streams.get(key).is_some_and(|s| s.is_blocked());
            if wanting().next().is_none() || wanting().any(waits) {
                it.stop_watching(&self.poll, channel);
                break;
            }
            let targets: Vec<Key> = wanting().collect();
            let length = match it.take(channel, &mut buffer[HEADER_LENGTH..]) {
                Take::Some(length) => length,
                Take::Nothing => {
                    it.watch(&self.poll, program, channel);
                    break;
                }
                Take::End => {
                    it.outputs[channel as usize] = None;
                    over = true;
                    break;
                }
            };
            let header = Header {
                kind: channel.kind(),
                // At most CHUNK.
                length: length as u32,
            };
            buffer[..HEADER_LENGTH].copy_from_slice(&header.encode());
            for key in targets {
                if !self.send_frame(key, &buffer[..HEADER_LENGTH + length]) {
                    gone.push(key);
                }
            }
        }
        self.scratch = buffer;
        for key in gone {
            self.drop_stream(key);
        }
        if over {
            self.settle(program);
        }
    }

    /// Begins, or goes on, to read a program's outputs.
    pub fn resume_outputs(&mut self, program: Key) {
        let Some(it) = self.programs.get_mut(program) else {
            return;
        };
        for channel in Channel::BOTH {
            it.watch(&self.poll, program, channel);
        }
    }

    /// A program has ended.
    pub fn program_ended(&mut self, program: Key, exit: Exit) {
        let Some(it) = self.programs.get_mut(program) else {
            return;
        };
        it.exit = Some(exit);
        it.stdin = None;
        it.count_what_is_left();
        for channel in Channel::BOTH {
            self.pump(program, channel);
        }
        self.settle(program);
    }

    /// Tells the streams that have received all they wanted of a program that has ended how it ended.
    pub fn settle(&mut self, program: Key) {
        let Some(it) = self.programs.get(program) else {
            return;
        };
        let Some(exit) = &it.exit else {
            return;
        };
        let served = |stream: &Key| {
            let Some(stream) = self.streams.get(*stream) else {
                return false;
            };
            let mut channels = Channel::BOTH.into_iter();
            channels.all(|c| it.is_over(c) || !stream.wants(c))
        };
        let streams: Vec<Key> = it.attached.iter().copied().filter(served).collect();
        if !streams.is_empty() {
            let mut last = Vec::new();
            if let Some(error) = &exit.error {
                last = frame::encode(Kind::Error, error.as_bytes());
            }
            // A plain struct, which serialises.
            let exit = serde_json::to_vec(exit).unwrap_or_default();
            last.extend(frame::encode(Kind::Exit, &exit));
            for stream in streams {
                self.end_stream(stream, &last);
            }
        }
        let is_done = |it: &Program| it.transient && it.attached.is_empty();
        if self.programs.get(program).is_some_and(is_done) {
            self.programs.remove(program);
        }
    }
}
