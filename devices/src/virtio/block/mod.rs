//! The virtio block device (virtio 1.2 §5.2) on a raw file or block device.
//!
//! - [`disk`] is the file: opened, checked, locked;
//! - [`request`] is what the driver asks for, parsed and checked whole;
//! - [`slot`] is a request in flight;
//! - [`engine`] does its I/O beside the event loop;
//! - [`active`] is the device at work between `DRIVER_OK` and a reset;
//! - [`Block`] is what the transport sees of it all.

mod active;
mod disk;
mod engine;
mod request;
mod slot;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};

use super::interrupt::Interrupt;
use super::state::{SavedDevice, StateError, read_own};
use super::{ActivateError, Activation, EventSource, VirtioDevice, device_id, read_config_bytes};
use crate::rate_limiter::{RateLimit, RateLimiter};
use active::{Active, Failure, Host};
pub use disk::BlockError;
use disk::{Disk, SECTOR_SIZE};
use engine::Backend;
pub use engine::Engine;
use request::{MAX_SEGMENT_SECTORS, MAX_SEGMENTS};

const QUEUE_SIZE: u16 = 256;
const CONFIG_SIZE: usize = 60;
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Event tokens.
const COMPLETIONS: u32 = 0;
const TIMER: u32 = 1;

/// What a disk is made from.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// A raw image or a block device. None: a drive with no disk in it, of no size.
    pub path: Option<PathBuf>,
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest reads as its serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Holds the guest back.
    pub rate_limit: Option<RateLimit>,
    /// A word for logs and metrics, like `block0`.
    pub name: String,
    /// How I/O is done.
    pub engine: Engine,
}

/// What a disk has done since it was made.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    reads: u64,
    writes: u64,
    flushes: u64,
    discards: u64,
    write_zeroes: u64,
    read_bytes: u64,
    write_bytes: u64,
    /// Requests answered with anything but success.
    errors: u64,
    /// Times the rate limit held a request back.
    throttled: u64,
}

/// What a snapshot keeps: enough to see that a disk is the same as far as the guest can tell. What is on
/// it is somebody else's to keep.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnState {
    /// In sectors.
    capacity: u64,
    read_only: bool,
    /// Those the device offers.
    features: u64,
}

/// A virtio disk.
pub struct Block {
    name: String,
    features: u64,
    config: [u8; CONFIG_SIZE],
    interrupt: Option<Arc<Interrupt>>,
    /// First of these two, because what is in flight ends before the engine does.
    active: Option<Active>,
    /// It was restored, and the driver has still to be told that there is a disk now, or none any more.
    has_changed: bool,
    host: Host,
}

impl Block {
    /// Opens and locks the disk and finds out how I/O can be done on it.
    pub fn open(config: BlockConfig) -> Result<Self, BlockError> {
        let path = config.path.clone().unwrap_or_default();
        let mut serial = [0; ID_BYTES];
        if let Some(given) = config.serial {
            match serial.get_mut(..given.len()) {
                Some(place) => place.copy_from_slice(given.as_bytes()),
                None => {
                    return Err(BlockError::SerialTooLong {
                        path,
                        serial: given,
                    });
                }
            }
        }
        let disk = match &config.path {
            Some(path) => Disk::open(path, config.read_only)?,
            None => Disk::none(config.read_only)?,
        };
        let engine = Backend::open(config.engine, &disk.file, &path, QUEUE_SIZE, &config.name)?;
        let limiter =
            RateLimiter::new(&config.rate_limit.unwrap_or_default()).map_err(|error| {
                BlockError::Host {
                    path,
                    what: "make a timer",
                    error,
                }
            })?;
        Ok(Block {
            name: config.name,
            features: features(&disk),
            config: config_space(&disk),
            interrupt: None,
            active: None,
            has_changed: false,
            host: Host {
                disk,
                engine,
                limiter,
                serial,
                counters: Counters::default(),
            },
        })
    }

    /// The size the guest sees, in bytes.
    pub fn size(&self) -> u64 {
        self.host.disk.size
    }

    /// Whether I/O goes through io_uring.
    pub fn uses_io_uring(&self) -> bool {
        matches!(self.host.engine, Backend::Uring(_))
    }

    /// Serves the queue and what has completed.
    fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Err(error) = active.serve(&mut self.host) {
            self.stopped(&error);
        }
    }

    fn stopped(&self, error: &Failure) {
        log::warn!("{}: stopped until the driver resets it: {error}", self.name);
        if let Some(interrupt) = &self.interrupt {
            interrupt.signal_needs_reset();
        }
    }

    fn own_state(&self) -> OwnState {
        OwnState {
            capacity: self.host.disk.size / SECTOR_SIZE,
            read_only: self.host.disk.read_only,
            features: self.features,
        }
    }

    /// Whether the guest can go on with this disk as if it were the one that `was`.
    fn check_same(&self, was: &OwnState) -> Result<(), String> {
        let is = self.own_state();
        // Any disk can be put into an empty drive, and taken out.
        if is.capacity != was.capacity && is.capacity != 0 && was.capacity != 0 {
            return Err(format!(
                "it has {} bytes and had {}; give it the disk it had",
                self.host.disk.size,
                u128::from(was.capacity) * u128::from(SECTOR_SIZE)
            ));
        }
        let word = |read_only| if read_only { "read-only" } else { "writable" };
        if is.read_only != was.read_only {
            return Err(format!(
                "it is {} and was {}",
                word(is.read_only),
                word(was.read_only)
            ));
        }
        if is.features != was.features {
            return Err(format!(
                "it offers the features {:#x} and offered {:#x}: its file system is of another kind",
                is.features, was.features
            ));
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_id::BLOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn set_interrupt(&mut self, interrupt: Arc<Interrupt>) {
        self.interrupt = Some(interrupt);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let queue = activation.take_queue(0)?;
        self.host
            .engine
            .start()
            .map_err(|e| ActivateError::Host("cannot start I/O threads", e))?;
        self.active = Some(Active::new(queue, activation.features, &self.host.disk));
        Ok(())
    }

    fn reset(&mut self) {
        self.host.engine.drain();
        self.active = None;
    }

    fn save(&mut self) -> Result<SavedDevice, StateError> {
        let settled = self.active.as_mut().map(|active| {
            let settled = active.settle(&mut self.host);
            (settled, active.position())
        });
        let mut queues = Vec::new();
        match settled {
            Some((Ok(()), position)) => queues.push(Some(position)),
            // As ever, the driver is told and has to reset the device.
            Some((Err(error), _)) => self.stopped(&error),
            None => {}
        }
        SavedDevice::new(&self.name, queues, &self.own_state())
    }

    fn restore(
        &mut self,
        own: &serde_json::Value,
        activation: Option<Activation>,
    ) -> Result<(), StateError> {
        let own: OwnState = read_own(&self.name, own)?;
        self.check_same(&own).map_err(|what| StateError::Mismatch {
            device: self.name.clone(),
            what,
        })?;
        self.has_changed = own.capacity != self.own_state().capacity;
        match activation {
            Some(activation) => self
                .activate(activation)
                .map_err(|e| StateError::activating(&self.name, e)),
            None => Ok(()),
        }
    }

    fn restart(&mut self) {
        if std::mem::take(&mut self.has_changed)
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.signal_config();
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let source = |fd, token| EventSource {
            fd,
            token,
            edge: false,
            writable: false,
        };
        let completions = source(self.host.engine.event_fd(), COMPLETIONS);
        let timer = self.host.limiter.as_ref();
        std::iter::once(completions)
            .chain(timer.map(|limiter| source(limiter.timer_fd(), TIMER)))
            .collect()
    }

    fn process_queue(&mut self, _index: usize) {
        self.serve();
    }

    fn process_event(&mut self, token: u32) {
        match token {
            COMPLETIONS => self.host.engine.acknowledge_event(),
            TIMER => {
                if let Some(limiter) = &mut self.host.limiter {
                    limiter.timer_fired();
                }
            }
            _ => return,
        }
        self.serve();
    }

    fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let c = &self.host.counters;
        report("reads", c.reads);
        report("writes", c.writes);
        report("flushes", c.flushes);
        report("discards", c.discards);
        report("write_zeroes", c.write_zeroes);
        report("read_bytes", c.read_bytes);
        report("write_bytes", c.write_bytes);
        report("errors", c.errors);
        report("throttled", c.throttled);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
    }
}

fn features(disk: &Disk) -> u64 {
    let mut features =
        1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_TOPOLOGY;
    if disk.read_only {
        features |= 1 << VIRTIO_BLK_F_RO;
    } else {
        features |= 1 << VIRTIO_BLK_F_FLUSH;
    }
    if disk.punches_holes {
        features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    }
    features
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4), field by field.
fn config_space(disk: &Disk) -> [u8; CONFIG_SIZE] {
    let block_sectors = (disk.block_size / SECTOR_SIZE) as u32;
    let mut config = [0; CONFIG_SIZE];
    let mut put = |offset: usize, bytes: &[u8]| {
        config[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &(disk.size / SECTOR_SIZE).to_le_bytes()); // capacity
    // Header and status take a descriptor each.
    put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes()); // seg_max
    put(20, &(SECTOR_SIZE as u32).to_le_bytes()); // blk_size
    put(24, &[block_sectors.ilog2() as u8]); // physical_block_exp
    put(26, &(block_sectors as u16).to_le_bytes()); // min_io_size
    put(34, &1u16.to_le_bytes()); // num_queues
    put(36, &MAX_SEGMENT_SECTORS.to_le_bytes()); // max_discard_sectors
    put(40, &MAX_SEGMENTS.to_le_bytes()); // max_discard_seg
    put(44, &block_sectors.to_le_bytes()); // discard_sector_alignment
    put(48, &MAX_SEGMENT_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &MAX_SEGMENTS.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    config
}
