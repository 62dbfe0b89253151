//! The few parts of a PC, besides virtio, that a guest may ask for: a serial port, the keyboard
//! controller as far as it resets the machine, and a port of our own to end the VM with.

pub mod exit_port;
pub mod exit_signal;
pub mod i8042;
pub mod serial;
