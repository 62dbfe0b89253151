//! What parent and child say to each other, through a pair of sockets that keep messages apart. The child's end is closed when
//! the program is executed: then the parent reads the end, and knows.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, read};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, accept_with, recvmsg, send, sendmsg,
};

use super::Failure;
use crate::sys;

/// What a child says.
#[derive(Debug)]
pub enum Message {
    /// It opened a terminal, and this is the master.
    Terminal(OwnedFd),
    /// It is under a filter that asks, and this is how it is answered.
    Listener(OwnedFd),
    /// It waits for hooks to be run.
    Hooks,
    /// This descriptor, which it shares with the parent, is one that it needs later.
    Keeps(RawFd),
    /// All but the start is done.
    Ready,
    /// An operation of its plan failed.
    Failed {
        /// Which.
        operation: usize,
        /// Why.
        error: Errno,
    },
    /// The program was executed, or the child is no more.
    Gone,
}

const READY: u32 = u32::MAX;
const TERMINAL: u32 = u32::MAX - 1;
const HOOKS: u32 = u32::MAX - 2;
const LISTENER: u32 = u32::MAX - 3;
const KEEPS: u32 = u32::MAX - 4;

pub(super) fn report_failure(channel: BorrowedFd, (operation, error): Failure) {
    let message = encode(u32::try_from(operation).unwrap_or(0), error.raw_os_error());
    // Whoever does not listen any more need not know.
    let _ = send(channel, &message, SendFlags::NOSIGNAL);
}

pub(super) fn report_kept(channel: BorrowedFd, descriptor: BorrowedFd) -> Result<(), Errno> {
    let message = encode(KEEPS, descriptor.as_raw_fd());
    send(channel, &message, SendFlags::NOSIGNAL).map(drop)
}

pub(super) fn report_ready(channel: BorrowedFd) -> Result<(), Errno> {
    send(channel, &encode(READY, 0), SendFlags::NOSIGNAL).map(drop)
}

pub(super) fn await_hooks(channel: BorrowedFd) -> Result<(), Errno> {
    send(channel, &encode(HOOKS, 0), SendFlags::NOSIGNAL)?;
    await_go(channel)
}

pub(super) fn report_terminal(channel: BorrowedFd, master: &OwnedFd) -> Result<(), Errno> {
    hand_over(channel, TERMINAL, master)
}

pub(super) fn report_listener(channel: BorrowedFd, listener: &OwnedFd) -> Result<(), Errno> {
    hand_over(channel, LISTENER, listener)
}

fn hand_over(channel: BorrowedFd, what: u32, descriptor: &OwnedFd) -> Result<(), Errno> {
    let message = encode(what, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptor = [descriptor.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptor));
    sendmsg(
        channel,
        &[IoSlice::new(&message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

/// Waits for somebody who starts the program, and is told what becomes of it then. Who goes away again does not count.
pub(super) fn await_caller(gate: BorrowedFd) -> Result<BorrowedFd<'static>, Errno> {
    loop {
        let caller = match accept_with(gate, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            caller => caller?,
        };
        if let Ok(1) = read(&caller, &mut [0; 1]) {
            return Ok(sys::leak(caller));
        }
    }
}

/// Waits for the parent; if that is gone, nobody wants the container any more.
pub(super) fn await_go(channel: BorrowedFd) -> Result<(), Errno> {
    let mut go = [0; 1];
    loop {
        match read(channel, &mut go) {
            Err(Errno::INTR) => {}
            Ok(0) => sys::exit(127),
            result => return result.map(drop),
        }
    }
}

/// Lets a child that waits go on.
pub fn send_go(channel: impl AsFd) -> Result<(), Errno> {
    // A child that is gone shows in what is received next.
    match send(channel, &[0], SendFlags::NOSIGNAL) {
        Ok(_) | Err(Errno::PIPE) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits for what a child says.
pub fn receive(channel: impl AsFd) -> Result<Message, Errno> {
    let mut message = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let parts = &mut [IoSliceMut::new(&mut message)];
        match recvmsg(&channel, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // The child was killed with a message of ours unread.
            Err(Errno::CONNRESET) => return Ok(Message::Gone),
            result => break result?.bytes,
        }
    };
    let mut descriptor = None;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
            descriptor = fds.last();
        }
    }
    if length == 0 {
        return Ok(Message::Gone);
    }
    let [o0, o1, o2, o3, e0, e1, e2, e3] = message;
    let operation = u32::from_le_bytes([o0, o1, o2, o3]);
    let error = i32::from_le_bytes([e0, e1, e2, e3]);
    Ok(match operation {
        READY => Message::Ready,
        HOOKS => Message::Hooks,
        KEEPS => Message::Keeps(error),
        TERMINAL => Message::Terminal(descriptor.ok_or(Errno::BADF)?),
        LISTENER => Message::Listener(descriptor.ok_or(Errno::BADF)?),
        operation => Message::Failed {
            operation: operation as usize,
            error: Errno::from_raw_os_error(error),
        },
    })
}

fn encode(operation: u32, error: i32) -> [u8; 8] {
    let ([o0, o1, o2, o3], [e0, e1, e2, e3]) = (operation.to_le_bytes(), error.to_le_bytes());
    [o0, o1, o2, o3, e0, e1, e2, e3]
}
