//! The local APIC's two input pins, as a PC's firmware leaves them (Intel SDM 3A 11.5.1).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::{Error, VcpuFd};

/// Offsets of the local vector table's entries for the pins.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;

const DELIVERY_MODE: u32 = 7 << 8;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;

/// Connects the 8259 to LINT0 and the NMI line to LINT1. The VM must have an in-kernel irqchip.
pub fn set_pins(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut lapic = vcpu.get_lapic()?;
    set_mode(&mut lapic, LVT_LINT0, MODE_EXTINT);
    set_mode(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
}

fn set_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let register = &mut lapic.regs[offset..offset + 4];
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(register.iter()) {
        *to = *from as u8;
    }
    let value = u32::from_le_bytes(bytes) & !DELIVERY_MODE | mode;
    for (to, from) in register.iter_mut().zip(value.to_le_bytes()) {
        *to = from as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT1 + 1] = 0x07;
        lapic.regs[LVT_LINT1 + 2] = 0x01; // masked
        set_mode(&mut lapic, LVT_LINT1, MODE_NMI);
        assert_eq!(lapic.regs[LVT_LINT1 + 1], 0x04);
        assert_eq!(lapic.regs[LVT_LINT1 + 2], 0x01);
    }
}
