//! Tells the guest that its connections are no more (virtio 1.2 §5.10.6.7).
//!
//! A device that goes on in another's place has none of its connections. The guest has, until it
//! takes the event: then it drops all that it knows of, new ones too. So whoever wants to connect to it
//! waits until it has taken the event, which shows when it puts another buffer on the event queue.

use crate::virtio::chain::DescriptorChain;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::state::QueuePosition;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`
const TRANSPORT_RESET: u32 = 0;
/// Bytes in `struct virtio_vsock_event`.
const EVENT_SIZE: u32 = 4;

/// The event queue.
pub struct Events {
    queue: VirtQueue,
    reset: Reset,
}

/// How far the guest is with the reset of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    /// There is none, or it is over.
    None,
    /// It is to be told.
    Due,
    /// It was told, when the available ring's index was this.
    Told(u16),
}

impl Events {
    /// Nothing to tell.
    pub fn new(queue: VirtQueue) -> Self {
        Events {
            queue,
            reset: Reset::None,
        }
    }

    /// Another device was here before: the guest is to be told, by [`Self::tell`].
    pub fn owe_reset(&mut self) {
        self.reset = Reset::Due;
    }

    /// How far the device got. No buffer is ever held.
    pub fn position(&self) -> QueuePosition {
        self.queue.position()
    }

    /// Tells the guest what it is owed. With no buffer to tell it in, it is left to find out from the
    /// answers to what it sends on its connections.
    pub fn tell(&mut self) -> Result<(), QueueError> {
        if self.reset != Reset::Due {
            return Ok(());
        }
        self.reset = Reset::None;
        let mut chain = DescriptorChain::new();
        while self.queue.pop(&mut chain)? {
            let event = TRANSPORT_RESET.to_le();
            let told = chain.writable.write_obj(self.queue.memory(), 0, event);
            let written = if told { EVENT_SIZE } else { 0 };
            // Before the guest can see the event and answer it.
            let index = self.queue.available_index()?;
            self.queue.push_used(chain.head(), written)?;
            if told {
                self.reset = Reset::Told(index);
                self.queue.notify_beyond(index)?;
                break;
            }
        }
        self.queue.signal_used()
    }

    /// Whether the guest may still drop connections that are new.
    pub fn is_reset_under_way(&mut self) -> Result<bool, QueueError> {
        if let Reset::Told(index) = self.reset
            && self.queue.available_index()? != index
        {
            self.reset = Reset::None;
        }
        Ok(self.reset != Reset::None)
    }
}
