//! Fills the driver's receive buffers with what the connections have for it.
//!
//! Payload goes from a Unix socket straight into guest memory. One read fills several receive
//! buffers, each with a packet of its own: Linux gives buffers of one page, and a system call for each
//! would cost more than the copy.

use libc::iovec;

use super::connection::{Connection, MAX_BATCH};
use super::muxer::Muxer;
use super::packet::{HEADER_SIZE, Header, MAX_PAYLOAD, op};
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::state::QueuePosition;

/// Iovecs one call takes (`IOV_MAX`).
const MAX_IOVECS: usize = 1024;

/// Bytes in a receive buffer of Linux's.
const UNIT: u32 = 4096;

/// How a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It had what it wanted.
    Over,
    /// There are no buffers.
    Starved,
}

/// The receive queue and what it takes to work on it.
pub struct Receive {
    queue: VirtQueue,
    chains: Vec<DescriptorChain>,
    iovecs: Vec<iovec>,
    /// Buffers of up to [`UNIT`] this turn on the event loop may still use; larger ones count for
    /// several. Bounds how long a driver that adds buffers as fast as they are filled can keep the
    /// loop from its other work.
    budget: u32,
    /// Buffers were returned since the driver was last told of any.
    returned: bool,
}

// SAFETY: the iovecs are scratch space, filled and used within one call; what they point to is guest
// memory, which belongs to no thread.
unsafe impl Send for Receive {}

impl Receive {
    /// Nothing filled yet.
    pub fn new(queue: VirtQueue) -> Self {
        Receive {
            queue,
            chains: (0..MAX_BATCH).map(|_| DescriptorChain::new()).collect(),
            iovecs: Vec::new(),
            budget: 0,
            returned: false,
        }
    }

    /// How far it got. Between turns no buffer is held.
    pub fn position(&self) -> QueuePosition {
        self.queue.position()
    }

    /// One turn on the event loop. `true` if there is work left that could be done at once.
    pub fn serve(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        if muxer.is_quiet() {
            return Ok(false);
        }
        self.queue.disable_notification()?;
        self.budget = self.queue.size().into();
        let starved = self.serve_all(muxer)? == Turn::Starved;
        self.signal()?;
        // With nothing for the driver its buffers are of no interest, and nor are notifications of
        // more: they stay off.
        Ok(if starved {
            self.queue.enable_notification()?
        } else {
            !muxer.is_quiet()
        })
    }

    fn serve_all(&mut self, muxer: &mut Muxer) -> Result<Turn, QueueError> {
        while let Some(header) = muxer.next_reset() {
            if self.budget == 0 {
                return Ok(Turn::Over);
            }
            if !self.put(|| header)? {
                return Ok(Turn::Starved);
            }
            muxer.reset_sent();
        }
        while self.budget > 0 {
            let Some(id) = muxer.next_ready() else {
                break;
            };
            let Some((connection, cid)) = muxer.connection(id) else {
                continue;
            };
            let (turn, bytes) = self.serve_one(connection, cid)?;
            muxer.count_to_guest(bytes);
            if turn == Turn::Starved {
                muxer.turn_cut_short(id);
                return Ok(Turn::Starved);
            }
            muxer.settle(id);
        }
        Ok(Turn::Over)
    }

    /// One connection's turn: the packets it owes, and one read of payload. Also returns the bytes
    /// of payload.
    fn serve_one(
        &mut self,
        connection: &mut Connection,
        cid: u64,
    ) -> Result<(Turn, u32), QueueError> {
        if self.put_owed(connection, cid, &[op::REQUEST, op::RESPONSE])? == Turn::Starved {
            return Ok((Turn::Starved, 0));
        }
        let mut bytes = 0;
        if connection.has_payload() {
            let (turn, read) = self.put_payload(connection, cid)?;
            if turn == Turn::Starved {
                return Ok((turn, read));
            }
            bytes = read;
            if bytes > 0 {
                // The driver can work on these while the next are read.
                self.signal()?;
            }
        }
        let last = [op::CREDIT_UPDATE, op::CREDIT_REQUEST, op::SHUTDOWN];
        Ok((self.put_owed(connection, cid, &last)?, bytes))
    }

    fn put_owed(
        &mut self,
        connection: &mut Connection,
        cid: u64,
        operations: &[u16],
    ) -> Result<Turn, QueueError> {
        for operation in operations {
            if connection.owes(*operation) && !self.put(|| connection.packet(cid, *operation, 0))? {
                return Ok(Turn::Starved);
            }
        }
        Ok(Turn::Over)
    }

    /// Puts a packet without payload into the next buffer, if there is one.
    fn put(&mut self, header: impl FnOnce() -> Header) -> Result<bool, QueueError> {
        loop {
            // Out of budget is treated as out of buffers: there will be another turn.
            if self.budget == 0 || !self.queue.pop(&mut self.chains[0])? {
                return Ok(false);
            }
            if self.chains[0].writable.len() >= HEADER_SIZE {
                break;
            }
            self.give_back(0, 0)?;
        }
        let filled = header().write(&self.chains[0].writable, self.queue.memory());
        debug_assert!(filled, "the chain has room for a header");
        self.give_back(0, HEADER_SIZE)?;
        Ok(true)
    }

    fn give_back(&mut self, chain: usize, written: u32) -> Result<(), QueueError> {
        self.budget = self.budget.saturating_sub(written.div_ceil(UNIT).max(1));
        self.returned = true;
        self.queue.push_used(self.chains[chain].head(), written)
    }

    fn signal(&mut self) -> Result<(), QueueError> {
        if std::mem::take(&mut self.returned) {
            self.queue.signal_used()?;
        }
        Ok(())
    }

    /// Fills buffers with payload of one connection, by one read.
    fn put_payload(
        &mut self,
        connection: &mut Connection,
        cid: u64,
    ) -> Result<(Turn, u32), QueueError> {
        let mut rooms = [0; MAX_BATCH];
        let count = self.gather(connection, &mut rooms)?;
        if count == 0 {
            return Ok((Turn::Starved, 0));
        }
        let room: u32 = rooms[..count].iter().sum();
        // SAFETY: the iovecs lie in guest memory, which the queue keeps mapped and nobody has
        // references to.
        let read = unsafe { connection.read(&self.iovecs) };

        let mut left = read;
        let mut used = 0;
        while left > 0 && used < count {
            let len = left.min(rooms[used]);
            let header = connection.packet(cid, op::RW, len);
            let filled = header.write(&self.chains[used].writable, self.queue.memory());
            debug_assert!(filled, "the chain has room for a header");
            self.give_back(used, HEADER_SIZE + len)?;
            left -= len;
            used += 1;
        }
        for _ in used..count {
            self.queue.undo_pop();
        }
        connection.batch = match read {
            // Says nothing of how much comes when something does.
            0 => connection.batch,
            n if n == room => (connection.batch * 4).min(MAX_BATCH),
            n if n < room / 2 => (connection.batch / 2).max(1),
            _ => connection.batch,
        };
        Ok((Turn::Over, read))
    }

    /// Takes buffers for the next read of a connection, and collects where their payload goes.
    /// Returns how many there are, and in `rooms` the payload each is to hold.
    fn gather(
        &mut self,
        connection: &Connection,
        rooms: &mut [u32; MAX_BATCH],
    ) -> Result<usize, QueueError> {
        self.iovecs.clear();
        let mut credit = connection.credit.to_guest();
        let mut count = 0;
        while count < connection.batch
            && credit > 0
            && (count as u32) < self.budget
            && self.queue.pop(&mut self.chains[count])?
        {
            let buffers = &self.chains[count].writable;
            let room = buffers
                .len()
                .saturating_sub(HEADER_SIZE)
                .min(MAX_PAYLOAD)
                .min(credit);
            let fits = room > 0
                && self.iovecs.len() + buffers.segments().len() <= MAX_IOVECS
                && buffers.append_iovecs(
                    self.queue.memory(),
                    HEADER_SIZE,
                    room as usize,
                    &mut self.iovecs,
                );
            if fits {
                rooms[count] = room;
                credit -= room;
                count += 1;
            } else if count == 0 {
                // No room for payload: of no use.
                self.give_back(0, 0)?;
            } else {
                self.queue.undo_pop();
                break;
            }
        }
        Ok(count)
    }
}
