//! What sits on the MMIO or port-I/O bus.

/// A device with registers in a window of an I/O address space.
///
/// Called on vCPU threads, several at a time: a device does its own locking.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset` bytes into the window.
    ///
    /// Must fill all of `data`: what it leaves untouched is what the guest sees.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset` bytes into the window.
    fn write(&self, offset: u64, data: &[u8]);
}
