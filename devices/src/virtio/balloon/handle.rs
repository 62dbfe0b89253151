//! What the VMM holds of a balloon that is behind its transport.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::release::PAGE_SIZE;
use super::statistics::MemoryStatistics;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::wakeup::Wakeup;

/// A hold on a balloon, for any thread.
#[derive(Debug, Clone)]
pub struct BalloonHandle(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    /// Pages the balloon should have, and has according to the driver.
    pub target: AtomicU32,
    pub actual: AtomicU32,
    /// Whether the driver is up.
    pub notify: AtomicBool,
    pub interrupt: OnceLock<Arc<Interrupt>>,
    /// Statistics were asked for and the driver was not yet.
    pub statistics_wanted: AtomicBool,
    pub statistics: Mutex<(u64, MemoryStatistics)>,
    pub wakeup: Wakeup,
}

impl BalloonHandle {
    /// Asks the guest to give up so many bytes in all, in whole pages of 4 KiB. It goes as far as it
    /// can, when it can: [`Self::actual`] says how far it is.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        let changed = self.0.target.swap(pages, Ordering::AcqRel) != pages;
        if changed
            && self.0.notify.load(Ordering::Acquire)
            && let Some(interrupt) = self.0.interrupt.get()
        {
            interrupt.signal_config();
        }
    }

    /// Bytes the guest is asked to give up.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// Bytes the guest says it has given up. Not to be relied on: it may say what it likes.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// Asks the guest for fresh statistics, which [`Self::statistics`] has once it has answered: at
    /// leisure, or never.
    pub fn request_statistics(&self) {
        self.0.statistics_wanted.store(true, Ordering::Release);
        self.0.wakeup.ring();
    }

    /// How many times the guest has told its statistics, and what it told last.
    pub fn statistics(&self) -> (u64, MemoryStatistics) {
        *self.0.statistics()
    }
}

impl Shared {
    pub fn statistics(&self) -> std::sync::MutexGuard<'_, (u64, MemoryStatistics)> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
