//! What the guest tells of its memory (virtio 1.2 §5.5.6.3).

use crate::GuestMemory;
use crate::virtio::chain::Buffers;

/// Bytes in one statistic: a tag and a value, without padding.
const ENTRY_LEN: u32 = 10;
/// More than there are tags, so that what follows is not worth reading.
const MOST_ENTRIES: u32 = 64;

/// The guest's memory as it sees it. What it did not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// Bytes read from swap.
    pub swap_in: Option<u64>,
    /// Bytes written to swap.
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes not used for anything.
    pub free: Option<u64>,
    /// Bytes there are.
    pub total: Option<u64>,
    /// Bytes that programs could have without swapping.
    pub available: Option<u64>,
    /// Bytes of files kept in memory that could be given up.
    pub disk_caches: Option<u64>,
}

impl MemoryStatistics {
    /// Reads what the driver has put into `buffers`. Tags that we do not know are passed over.
    pub(super) fn read(memory: &GuestMemory, buffers: &Buffers) -> Self {
        let mut statistics = MemoryStatistics::default();
        for n in 0..(buffers.len() / ENTRY_LEN).min(MOST_ENTRIES) {
            let mut entry = [0; ENTRY_LEN as usize];
            if !buffers.read_at(memory, n * ENTRY_LEN, &mut entry) {
                break;
            }
            let [t0, t1, value @ ..] = entry;
            let field = match u16::from_le_bytes([t0, t1]) {
                0 => &mut statistics.swap_in,
                1 => &mut statistics.swap_out,
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free,
                5 => &mut statistics.total,
                6 => &mut statistics.available,
                7 => &mut statistics.disk_caches,
                _ => continue,
            };
            *field = Some(u64::from_le_bytes(value));
        }
        statistics
    }
}
