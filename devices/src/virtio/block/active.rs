//! The disk at work: requests from the queue to the engine, and its results back.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestMemoryError};

use super::disk::Disk;
use super::engine::Backend;
use super::request::{Command, Extent, Limits, Reply, Request, Status, WRITE_DATA_OFFSET};
use super::slot::{Kind, Progress, Slot};
use super::{Counters, ID_BYTES};
use crate::rate_limiter::RateLimiter;
use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::state::QueuePosition;

/// What the disk works with that outlives resets.
pub(super) struct Host {
    pub disk: Disk,
    pub engine: Backend,
    pub limiter: Option<RateLimiter>,
    pub serial: [u8; ID_BYTES],
    pub counters: Counters,
}

/// Why the device cannot go on before a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("a request has no room for its status")]
    NoStatus,
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    #[error("I/O engine: {0}")]
    Engine(#[from] std::io::Error),
}

/// Everything that comes with `DRIVER_OK` and goes with a reset.
pub(super) struct Active {
    queue: VirtQueue,
    limits: Limits,
    /// The driver does not flush, so every write must be on stable storage when it completes
    /// (virtio 1.2 §5.2.6.2).
    durable: bool,
    /// As many as the queue has descriptors: a driver that keeps the rules never needs more.
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// There may be more on the queue than there were free slots.
    starved: bool,
    /// Chains were given back that the driver has not been told of.
    unsignalled: bool,
    /// Met a [`Failure`]: nothing more is taken or given back.
    failed: bool,
    chain: DescriptorChain,
    extents: Vec<Extent>,
}

/// What became of the chain last popped.
enum Begun {
    Yes,
    /// The rate limit holds it back.
    NotYet,
}

impl Active {
    pub fn new(queue: VirtQueue, features: u64, disk: &Disk) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        Active {
            limits: Limits {
                size: disk.size,
                read_only: disk.read_only,
                discard: has(VIRTIO_BLK_F_DISCARD),
                write_zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
            },
            durable: !has(VIRTIO_BLK_F_FLUSH),
            slots: (0..queue.size()).map(|_| Slot::new()).collect(),
            free: (0..queue.size()).rev().collect(),
            queue,
            starved: false,
            unsignalled: false,
            failed: false,
            chain: DescriptorChain::new(),
            extents: Vec::new(),
        }
    }

    /// Takes what is on the queue, gives back what is done, and interrupts the driver once for all
    /// of it. Reports a failure once; from then on only slots are cleared.
    pub fn serve(&mut self, host: &mut Host) -> Result<(), Failure> {
        if self.failed {
            while host.engine.next_completion().is_some() {}
            return Ok(());
        }
        let result = self.serve_all(host);
        self.failed = result.is_err();
        result
    }

    /// How far it got with the queue, of which nothing is held after [`Self::settle`].
    pub fn position(&self) -> QueuePosition {
        self.queue.position()
    }

    /// Waits for everything that was begun and gives it back. Nothing new is taken off the queue.
    /// Fails once, like [`Self::serve`]; nothing is in flight afterwards in any case.
    pub fn settle(&mut self, host: &mut Host) -> Result<(), Failure> {
        let result = if self.failed {
            Ok(())
        } else {
            self.settle_all(host)
        };
        self.failed |= result.is_err();
        if self.failed {
            host.engine.drain();
        }
        result
    }

    fn settle_all(&mut self, host: &mut Host) -> Result<(), Failure> {
        loop {
            self.reap(host)?;
            if self.free.len() == self.slots.len() {
                break;
            }
            host.engine.wait()?;
        }
        if std::mem::take(&mut self.unsignalled) {
            self.queue.signal_used()?;
        }
        Ok(())
    }

    fn serve_all(&mut self, host: &mut Host) -> Result<(), Failure> {
        loop {
            self.take_requests(host)?;
            host.engine.submit()?;
            // Cached reads are done already; others may be by now.
            self.reap(host)?;
            if !self.starved || self.free.is_empty() {
                break;
            }
        }
        if std::mem::take(&mut self.unsignalled) {
            self.queue.signal_used()?;
        }
        Ok(())
    }

    fn take_requests(&mut self, host: &mut Host) -> Result<(), Failure> {
        self.starved = false;
        // The timer will bring us back.
        if host.limiter.as_ref().is_some_and(RateLimiter::is_blocked) {
            return Ok(());
        }
        loop {
            self.queue.disable_notification()?;
            loop {
                let Some(slot) = self.free.last().copied() else {
                    self.starved = true;
                    return Ok(());
                };
                if !self.queue.pop(&mut self.chain)? {
                    break;
                }
                if let Begun::NotYet = self.begin(slot, host)? {
                    self.queue.undo_pop();
                    host.counters.throttled += 1;
                    return Ok(());
                }
            }
            if !self.queue.enable_notification()? {
                return Ok(());
            }
        }
    }

    /// Starts the request in `self.chain`, or answers it if that takes no I/O. `index` is the slot
    /// next in line on `free`.
    fn begin(&mut self, index: u16, host: &mut Host) -> Result<Begun, Failure> {
        let memory = self.queue.memory();
        let request = Request::parse(&self.chain, memory, &self.limits, &mut self.extents)
            .ok_or(Failure::NoStatus)?;
        if let Some(limiter) = &mut host.limiter {
            let bytes = request.command.map_or(0, Command::transfer_len);
            if !limiter.consume(bytes.into()) {
                return Ok(Begun::NotYet);
            }
        }
        let reply = request.reply;
        let command = match request.command {
            Ok(command) => command,
            Err(status) => {
                host.counters.errors += 1;
                self.give_back(reply, status, 0)?;
                return Ok(Begun::Yes);
            }
        };
        let slot = &mut self.slots[usize::from(index)];
        match command {
            Command::GetId => {
                let id = &host.serial[..ID_BYTES.min(reply.room as usize)];
                whole(self.chain.writable.write_at(memory, 0, id))?;
                self.give_back(reply, Status::Ok, id.len() as u32)?;
                return Ok(Begun::Yes);
            }
            Command::Read { offset, len } => {
                slot.begin(Kind::Read, reply);
                slot.transfer(offset, len, false);
                let buffers = &self.chain.writable;
                whole(buffers.append_iovecs(memory, 0, len as usize, &mut slot.iovecs))?;
            }
            Command::Write { offset, len } => {
                slot.begin(Kind::Write, reply);
                slot.transfer(offset, len, self.durable);
                let buffers = &self.chain.readable;
                let data = WRITE_DATA_OFFSET;
                whole(buffers.append_iovecs(memory, data, len as usize, &mut slot.iovecs))?;
            }
            Command::Flush => {
                slot.begin(Kind::Flush, reply);
                if !self.limits.read_only {
                    slot.sync();
                }
            }
            Command::Discard => {
                slot.begin(Kind::Discard, reply);
                slot.deallocate(&self.extents, false);
            }
            Command::WriteZeroes => {
                slot.begin(Kind::WriteZeroes, reply);
                slot.deallocate(&self.extents, self.durable);
            }
        }
        self.free.pop();
        match slot.next_io() {
            // SAFETY: the `iovecs` are the slot's, which is not touched before the operation is over
            // (it is not in `free`), and point into guest memory, which `queue` keeps mapped. Both
            // are dropped only after the engine was drained (`Block::reset`).
            Some(io) => unsafe { host.engine.push(index, io)? },
            // Nothing to do, like a transfer of no bytes.
            None => self.finish(index, Status::Ok, &mut host.counters)?,
        }
        Ok(Begun::Yes)
    }

    /// Takes the engine's results, until none is there.
    fn reap(&mut self, host: &mut Host) -> Result<(), Failure> {
        loop {
            let mut resubmitted = false;
            while let Some((index, result)) = host.engine.next_completion() {
                let slot = &mut self.slots[usize::from(index)];
                let status = match slot.advance(result) {
                    Progress::Done(status) => status,
                    Progress::More => {
                        if let Some(io) = slot.next_io() {
                            // SAFETY: as in `begin`; the slot's last operation is over.
                            unsafe { host.engine.push(index, io)? };
                            resubmitted = true;
                        }
                        continue;
                    }
                };
                self.finish(index, status, &mut host.counters)?;
            }
            if !resubmitted {
                return Ok(());
            }
            host.engine.submit()?;
        }
    }

    /// The request in slot `index` is over.
    fn finish(
        &mut self,
        index: u16,
        status: Status,
        counters: &mut Counters,
    ) -> Result<(), Failure> {
        let slot = &self.slots[usize::from(index)];
        let (count, bytes) = match slot.kind {
            Kind::Read => (&mut counters.reads, &mut counters.read_bytes),
            Kind::Write => (&mut counters.writes, &mut counters.write_bytes),
            Kind::Flush => (&mut counters.flushes, &mut 0),
            Kind::Discard => (&mut counters.discards, &mut 0),
            Kind::WriteZeroes => (&mut counters.write_zeroes, &mut 0),
        };
        if status == Status::Ok {
            *count += 1;
            *bytes += u64::from(slot.done);
        } else {
            counters.errors += 1;
        }
        let read = match slot.kind {
            Kind::Read => slot.done,
            _ => 0,
        };
        let reply = slot.reply;
        self.free.push(index);
        self.give_back(reply, status, read)
    }

    /// Answers a request, `data` bytes of whose writable part were filled.
    fn give_back(&mut self, reply: Reply, status: Status, data: u32) -> Result<(), Failure> {
        self.queue.memory().write_obj(status as u8, reply.status)?;
        self.queue.push_used(reply.head, reply.written(data))?;
        self.unsignalled = true;
        Ok(())
    }
}

/// A range inside a chain's checked length was there, as it must be.
fn whole(there: bool) -> Result<(), Failure> {
    if there {
        Ok(())
    } else {
        Err(GuestMemoryError::InvalidBackendAddress.into())
    }
}
