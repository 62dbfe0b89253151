//! Saving a transport with its device, and putting another in its place.
//!
//! A state and guest memory are one picture only if nothing moves between the two: from
//! [`MmioTransport::save`] until guest memory is copied, neither a vCPU nor the event loop may run.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_queue::{Queue, QueueState as RawQueue, QueueT};

use super::{HANDSHAKE, MmioTransport, State, VIRTIO_RING_F_EVENT_IDX};
use crate::virtio::Activation;
use crate::virtio::interrupt::{CONFIG_CHANGE, USED_RING};
use crate::virtio::queue::VirtQueue;
use crate::virtio::state::{DeviceState, QueuePosition, QueueState, StateError};

impl MmioTransport {
    /// Says what the device is like, so that another can go on in its place. What is in flight is
    /// completed or counted as not taken yet; the device goes on afterwards as before.
    ///
    /// vCPUs are paused, and the event loop does not call this device, until guest memory has been
    /// copied as well. May wait for a disk.
    pub fn save(&self) -> Result<DeviceState, StateError> {
        let mut state = self.lock();
        let saved = state.device.save()?;
        let queues = state.queues.iter().enumerate().map(|(index, queue)| {
            let position = saved.queues.get(index).copied().flatten();
            save_queue(queue, position.unwrap_or_default())
        });
        // Read after the device was asked, which may have told the driver what it has finished.
        let saved = DeviceState {
            device_type: state.device.device_type(),
            status: state.status,
            driver_features: state.driver_features,
            device_features_select: state.device_features_sel,
            driver_features_select: state.driver_features_sel,
            queue_select: state.queue_sel,
            interrupt_status: state.interrupt.status(),
            config_generation: state.interrupt.config_generation(),
            needs_reset: state.interrupt.needs_reset(),
            queues: queues.collect(),
            device: saved.own,
        };
        if state.is_running() {
            // What the device left lying while it finished other things.
            for (queue, notifier) in state.queues.iter().zip(&self.notifiers) {
                if queue.ready() {
                    // Fails only when the counter is full, and then the loop is awake already.
                    let _ = notifier.write(1);
                }
            }
        }
        Ok(saved)
    }

    /// Puts a transport that was just made, around the same kind of device, into a state that was
    /// saved, over guest memory as it was then. If this fails, the transport is of no further use.
    ///
    /// Nothing is asked of the device and no interrupt is raised before [`Self::restart`].
    pub fn restore(&self, saved: &DeviceState) -> Result<(), StateError> {
        self.lock().restore(saved)
    }

    /// To be called after [`Self::restore`], once the eventfds are bound and just before the guest
    /// runs: looks at every queue as if the driver had notified, and asserts the interrupt again if
    /// it was pending, because either may have been under way when the state was saved.
    pub fn restart(&self) {
        let mut state = self.lock();
        if state.is_running() {
            state.device.restart();
        }
        for index in 0..state.queues.len() {
            if state.is_running() && state.queues[index].ready() {
                state.device.process_queue(index);
            }
        }
        self.interrupt.reassert();
    }
}

fn save_queue(queue: &Queue, position: QueuePosition) -> QueueState {
    QueueState {
        size: queue.size(),
        ready: queue.ready(),
        descriptor_table: queue.desc_table(),
        available_ring: queue.avail_ring(),
        used_ring: queue.used_ring(),
        next_available: position.next_available,
        next_used: position.next_used,
        signalled: position.signalled,
    }
}

/// The queue as the driver configured it, if it can have done so. The position is not in it.
fn configured_queue(saved: &QueueState, max_size: u16) -> Option<Queue> {
    let raw = RawQueue {
        max_size,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: false,
        size: saved.size,
        ready: saved.ready,
        desc_table: saved.descriptor_table,
        avail_ring: saved.available_ring,
        used_ring: saved.used_ring,
    };
    Queue::try_from(raw).ok()
}

impl State {
    fn restore(&mut self, saved: &DeviceState) -> Result<(), StateError> {
        self.check_registers(saved)?;
        let queues = self.configured_queues(&saved.queues)?;
        let running = saved.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !saved.needs_reset;
        let activation = if running {
            Some(self.resumed(saved, &queues)?)
        } else {
            None
        };
        self.device.restore(&saved.device, activation)?;
        self.status = saved.status;
        self.driver_features = saved.driver_features;
        self.device_features_sel = saved.device_features_select;
        self.driver_features_sel = saved.driver_features_select;
        self.queue_sel = saved.queue_select;
        self.queues = queues;
        self.interrupt.restore(
            saved.interrupt_status,
            saved.config_generation,
            saved.needs_reset,
        );
        Ok(())
    }

    fn check_registers(&self, saved: &DeviceState) -> Result<(), StateError> {
        let device = || self.device.name().to_owned();
        let malformed = |what| {
            Err(StateError::Malformed {
                device: device(),
                what,
            })
        };
        if self.status != 0 {
            return Err(StateError::InUse { device: device() });
        }
        let (ours, theirs) = (self.device.device_type(), saved.device_type);
        if ours != theirs {
            return Err(StateError::Mismatch {
                device: device(),
                what: format!("it is a device of type {ours}, and was one of type {theirs}"),
            });
        }
        // A driver climbs from the first bit upwards, and may give up at any point.
        let climbed = saved.status & !VIRTIO_CONFIG_S_FAILED;
        let possible = |steps| HANDSHAKE[..steps].iter().sum::<u32>() == climbed;
        if !(0..=HANDSHAKE.len()).any(possible) {
            return malformed(format!("no driver sets the status {:#x}", saved.status));
        }
        if saved.interrupt_status & !(USED_RING | CONFIG_CHANGE) != 0 {
            return malformed(format!(
                "there is no interrupt status {:#x}",
                saved.interrupt_status
            ));
        }
        if saved.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && !self.features_acceptable(saved.driver_features)
        {
            return Err(StateError::Mismatch {
                device: device(),
                what: format!(
                    "it offers the features {:#x}, and the guest uses {:#x}",
                    self.offered_features(),
                    saved.driver_features
                ),
            });
        }
        Ok(())
    }

    fn configured_queues(&self, saved: &[QueueState]) -> Result<Vec<Queue>, StateError> {
        if saved.len() != self.queues.len() {
            return Err(StateError::Mismatch {
                device: self.device.name().to_owned(),
                what: format!(
                    "it has {} queues, and had {}",
                    self.queues.len(),
                    saved.len()
                ),
            });
        }
        let mut queues = Vec::with_capacity(saved.len());
        for (index, (saved, ours)) in saved.iter().zip(&self.queues).enumerate() {
            let queue = configured_queue(saved, ours.max_size());
            queues.push(queue.ok_or_else(|| {
                self.bad_queue(index, "has a size or an alignment that is not allowed")
            })?);
        }
        Ok(queues)
    }

    /// What the device goes on with.
    fn resumed(&self, saved: &DeviceState, queues: &[Queue]) -> Result<Activation, StateError> {
        let event_idx = saved.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut resumed = Vec::with_capacity(queues.len());
        for (index, (saved, configured)) in saved.queues.iter().zip(queues).enumerate() {
            if !saved.ready {
                resumed.push(None);
                continue;
            }
            self.check_rings(saved, configured)
                .map_err(|why| self.bad_queue(index, why))?;
            let mut queue = Queue::try_from(configured.state())
                .map_err(|_| self.bad_queue(index, "makes no sense"))?;
            queue.set_event_idx(event_idx);
            let position = QueuePosition {
                next_available: saved.next_available,
                next_used: saved.next_used,
                signalled: saved.signalled,
            };
            resumed.push(Some(VirtQueue::resume(
                queue,
                Arc::clone(&self.memory),
                Arc::clone(&self.interrupt),
                position,
            )));
        }
        Ok(Activation {
            memory: Arc::clone(&self.memory),
            queues: resumed,
            features: saved.driver_features,
        })
    }

    /// Whether the rings are in guest memory and stand where the state says.
    fn check_rings(&self, saved: &QueueState, queue: &Queue) -> Result<(), &'static str> {
        if !queue.is_valid(&*self.memory) {
            return Err("is not in guest memory");
        }
        let unreadable = |_| "cannot be read";
        let order = Ordering::Acquire;
        let available = queue.avail_idx(&*self.memory, order).map_err(unreadable)?;
        if available.0.wrapping_sub(saved.next_available) > queue.size() {
            return Err("holds more than it has room for");
        }
        // The device's own index, where it wrote it last. Another one would give buffers back that
        // the driver has already, or never those that it waits for.
        let used = queue.used_idx(&*self.memory, order).map_err(unreadable)?;
        if used.0 != saved.next_used {
            return Err("is not where guest memory has it, which is of another moment");
        }
        Ok(())
    }

    fn bad_queue(&self, queue: usize, why: &'static str) -> StateError {
        StateError::BadQueue {
            device: self.device.name().to_owned(),
            queue,
            why,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
