//! Device models: what a guest sees as hardware.
//!
//! A device here knows guest memory, virtqueues and eventfds, and nothing of KVM: the VMM binds its
//! eventfds to ioeventfds and irqfds, puts it on a bus and calls it from one event loop. So each
//! device can be driven whole from a test, a benchmark or a fuzzer with no virtual machine at all.
//!
//! Everything a guest can reach is treated as hostile. A request that breaks the rules is dropped, or
//! stops the device with `DEVICE_NEEDS_RESET` (virtio 1.2 §2.1.1); it never panics and never touches
//! memory outside the guest's.

pub mod bus;
pub mod legacy;
pub mod rate_limiter;
pub mod stream;
pub mod virtio;

/// The guest's physical memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
