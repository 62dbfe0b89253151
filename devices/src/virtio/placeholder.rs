//! A place on the bus where a device could be.

use super::mmio::{MAGIC, VENDOR, VERSION};
use crate::bus::BusDevice;

/// A window with no device in it (`DeviceID` 0, virtio 1.2 §4.2.3.1.1).
///
/// A guest that was told of the window finds that it is empty and leaves it alone. So what a guest is
/// told when it boots need not depend on which devices it gets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placeholder;

impl BusDevice for Placeholder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Registers are 32 bits wide and read as such (§4.2.2.2).
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        *data = match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x0c => VENDOR,
            // `DeviceID` among them.
            _ => 0,
        }
        .to_le_bytes();
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64) -> u32 {
        let mut data = [0xff; 4];
        Placeholder.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn window_when_probed_is_a_transport_without_a_device() {
        assert_eq!([0, 4, 8].map(read), [0x7472_6976, 2, 0]);
        assert_eq!(read(0xc), VENDOR);
        Placeholder.write(0x70, &[1, 0, 0, 0]);
        assert!((0x10..0x200).step_by(4).all(|offset| read(offset) == 0));
        let mut wide = [0xff; 8];
        Placeholder.read(0, &mut wide);
        assert_eq!(wide, [0; 8]);
    }
}
