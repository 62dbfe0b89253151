//! An I/O address space: which device answers where.

use std::sync::Arc;

use bulkhead_devices::bus::BusDevice;

/// The windows of one address space (MMIO or port I/O). Built before the vCPUs run and never changed
/// after, so that looking up takes no lock.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start; the windows do not overlap.
    windows: Vec<Window>,
}

struct Window {
    start: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// Puts `device` at `[start, start + len)`.
    ///
    /// # Panics
    /// When windows overlap: the layout of a machine is ours, not the guest's, so that is a bug.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) {
        let at = self.windows.partition_point(|w| w.start < start);
        let free_below = at == 0 || {
            let below = &self.windows[at - 1];
            below.start + below.len <= start
        };
        let free_above = self.windows.get(at).is_none_or(|w| start + len <= w.start);
        assert!(free_below && free_above, "windows on a bus overlap");
        self.windows.insert(at, Window { start, len, device });
    }

    /// Reads from the device at `addr`. Where there is none, the bus floats: all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((window, offset)) => window.device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `addr`, if there is one.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((window, offset)) = self.find(addr, data.len()) {
            window.device.write(offset, data);
        }
    }

    /// The window in which the whole access lies.
    fn find(&self, addr: u64, len: usize) -> Option<(&Window, u64)> {
        let at = self.windows.partition_point(|w| w.start <= addr);
        let window = self.windows.get(at.checked_sub(1)?)?;
        let offset = addr - window.start;
        let end = offset.checked_add(len as u64)?;
        (end <= window.len).then_some((window, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().expect("lock").push((offset, data.to_vec()));
        }
    }

    #[test]
    fn access_goes_to_the_window_it_lies_in_whole() {
        let (low, high) = (Arc::<Recorder>::default(), Arc::<Recorder>::default());
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x10, high.clone());
        bus.insert(0x1000, 0x10, low.clone());

        let mut data = [0; 4];
        bus.read(0x200c, &mut data);
        assert_eq!(data, [0x0c; 4]);
        for nowhere in [0x200d, 0x2010, 0xfff, 0, u64::MAX] {
            bus.read(nowhere, &mut data);
            assert_eq!(data, [0xff; 4], "{nowhere:#x}");
            bus.write(nowhere, &data);
        }
        bus.write(0x1001, &[7]);
        assert_eq!(*low.0.lock().expect("lock"), [(1, vec![7])]);
        assert!(high.0.lock().expect("lock").is_empty());
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn insert_when_windows_overlap_panics() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, Arc::<Recorder>::default());
        bus.insert(0x100f, 0x10, Arc::<Recorder>::default());
    }
}
