//! The MP table (Intel MultiProcessor Specification 1.4 §4): with no ACPI, this is how the guest
//! learns of its CPUs, its I/O APIC and which interrupt arrives at which pin.

use bulkhead_devices::GuestMemory;
use vm_memory::{Address, Bytes, GuestMemoryError};

use super::layout::{IO_APIC, IO_APIC_PINS, LOCAL_APIC, MP_TABLE, MP_TABLE_MAX_SIZE, TIMER_IRQ};

/// The most CPUs the table has room for in the last KiB of base memory.
pub const MAX_CPUS: u8 = 32;

const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const PROCESSOR_SIZE: usize = 20;
/// Bus, I/O APIC and interrupt entries.
const ENTRY_SIZE: usize = 8;
const _: () = assert!(
    FLOATING_POINTER_SIZE
        + HEADER_SIZE
        + MAX_CPUS as usize * PROCESSOR_SIZE
        + (2 + IO_APIC_PINS as usize + 2) * ENTRY_SIZE
        <= MP_TABLE_MAX_SIZE
);

const SPECIFICATION_1_4: u8 = 4;
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger mode "conform to the bus", which for ISA is active high and edge-triggered:
/// just what an irqfd delivers.
const CONFORM: [u8; 2] = [0, 0];
const ALL_LOCAL_APICS: u8 = 0xff;

/// What KVM's in-kernel APICs report as their versions.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Family 6; Linux reads CPUID itself and prints this at most.
const CPU_SIGNATURE: u32 = 0x600;
/// An on-chip FPU and an on-chip APIC.
const CPU_FEATURES: u32 = 1 << 9 | 1;

const ISA_BUS: u8 = 0;

/// Why no table could be written.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// A number of CPUs that cannot be.
    #[error("a VM has 1 to {MAX_CPUS} CPUs, not {0}")]
    Cpus(u8),
    /// An interrupt the I/O APIC has no pin for.
    #[error("interrupt {0} is not one of the I/O APIC's {IO_APIC_PINS}")]
    Irq(u32),
    /// Guest memory is smaller than base memory.
    #[error("no room for the MP table: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Writes the table for CPUs with the APIC ids 0 to `cpus` - 1, the first of which boots.
///
/// `irqs` are the interrupts that are wired, each to the pin of the same number, besides the timer's.
/// The guest sets up every pin it is told of, and spends time on it: name those in use.
pub fn write(
    memory: &GuestMemory,
    cpus: u8,
    irqs: impl IntoIterator<Item = u32>,
) -> Result<(), MpTableError> {
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(MpTableError::Cpus(cpus));
    }
    // The first id that no local APIC has.
    let io_apic_id = cpus;
    let mut wired = [false; IO_APIC_PINS as usize];
    // Linux gives up without a timer on the I/O APIC.
    for irq in irqs.into_iter().chain([TIMER_IRQ]) {
        *wired.get_mut(irq as usize).ok_or(MpTableError::Irq(irq))? = true;
    }

    let mut table = Table::new();
    for id in 0..cpus {
        table.processor(id);
    }
    table.entry([BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = (IO_APIC as u32).to_le_bytes();
    table.entry([
        IO_APIC_ENTRY,
        io_apic_id,
        IO_APIC_VERSION,
        ENABLED,
        a,
        b,
        c,
        d,
    ]);
    for (pin, _) in wired.iter().enumerate().filter(|(_, wired)| **wired) {
        let pin = pin as u8; // below IO_APIC_PINS
        table.interrupt(IO_INTERRUPT, VECTORED, pin, [io_apic_id, pin]);
    }
    // The PICs reach the boot CPU's LINT0, NMIs every CPU's LINT1.
    table.interrupt(LOCAL_INTERRUPT, EXT_INT, 0, [0, 0]);
    table.interrupt(LOCAL_INTERRUPT, NMI, 0, [ALL_LOCAL_APICS, 1]);

    let mut bytes = floating_pointer().to_vec();
    bytes.extend(table.finish());
    Ok(memory.write_slice(&bytes, MP_TABLE)?)
}

/// Points at the configuration table right behind it (§4.1).
fn floating_pointer() -> [u8; FLOATING_POINTER_SIZE] {
    let table = MP_TABLE.raw_value() as u32 + FLOATING_POINTER_SIZE as u32;
    let mut bytes = [0; FLOATING_POINTER_SIZE];
    bytes[0..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = 1; // its length in 16-byte units
    bytes[9] = SPECIFICATION_1_4;
    bytes[10] = checksum(&bytes);
    bytes
}

/// The configuration table (§4.2, §4.3).
struct Table {
    bytes: Vec<u8>,
    entries: u16,
}

impl Table {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(MP_TABLE_MAX_SIZE);
        bytes.resize(HEADER_SIZE, 0);
        Table { bytes, entries: 0 }
    }

    fn processor(&mut self, id: u8) {
        let boot = if id == 0 { BOOT_PROCESSOR } else { 0 };
        self.bytes
            .extend([PROCESSOR, id, LOCAL_APIC_VERSION, ENABLED | boot]);
        self.bytes.extend(CPU_SIGNATURE.to_le_bytes());
        self.bytes.extend(CPU_FEATURES.to_le_bytes());
        self.bytes.extend([0; 8]);
        self.entries += 1;
    }

    fn interrupt(&mut self, entry: u8, kind: u8, irq: u8, [apic, pin]: [u8; 2]) {
        let [low, high] = CONFORM;
        self.entry([entry, kind, low, high, ISA_BUS, irq, apic, pin]);
    }

    fn entry(&mut self, bytes: [u8; ENTRY_SIZE]) {
        self.bytes.extend(bytes);
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u16; // at most MP_TABLE_MAX_SIZE, asserted above
        let header = &mut self.bytes[..HEADER_SIZE];
        header[0..4].copy_from_slice(b"PCMP");
        header[4..6].copy_from_slice(&len.to_le_bytes());
        header[6] = SPECIFICATION_1_4;
        header[8..16].copy_from_slice(b"BULKHEAD");
        header[16..28].copy_from_slice(b"MICROVM     ");
        header[34..36].copy_from_slice(&self.entries.to_le_bytes());
        header[36..40].copy_from_slice(&(LOCAL_APIC as u32).to_le_bytes());
        let checksum = checksum(&self.bytes);
        self.bytes[7] = checksum;
        self.bytes
    }
}

/// The byte that makes all of them add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, &byte| sum.wrapping_add(byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Parsed {
        local_apic: u32,
        /// (APIC id, flags)
        processors: Vec<(u8, u8)>,
        buses: Vec<(u8, String)>,
        /// (id, flags, address)
        io_apics: Vec<(u8, u8, u32)>,
        /// (kind, flags, bus, irq, APIC, pin)
        interrupts: Vec<(u8, u16, u8, u8, u8, u8)>,
        local_interrupts: Vec<(u8, u16, u8, u8, u8, u8)>,
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().map(|&b| u32::from(b)).sum::<u32>() as u8
    }

    fn u16_at(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// Reads the table as a kernel does: looks for the floating pointer in the last KiB of base
    /// memory, checks the sums, walks the entries.
    fn parse(memory: &GuestMemory) -> Parsed {
        let mut kib = vec![0; 1024];
        memory
            .read_slice(&mut kib, GuestAddress(639 * 1024))
            .expect("last KiB");
        let pointer = kib
            .chunks(16)
            .find(|chunk| chunk.starts_with(b"_MP_") && sum(chunk) == 0)
            .expect("floating pointer");
        assert_eq!((pointer[8], pointer[9], pointer[11]), (1, 4, 0));
        let start = u32_at(pointer, 4) as usize - 639 * 1024;

        let table = &kib[start..];
        assert!(table.starts_with(b"PCMP"));
        let table = &table[..usize::from(u16_at(table, 4))];
        assert_eq!(sum(table), 0, "checksum");
        let mut parsed = Parsed {
            local_apic: u32_at(table, 36),
            ..Default::default()
        };
        let mut rest = &table[44..];
        for _ in 0..u16_at(table, 34) {
            let interrupt = |e: &[u8]| (e[1], u16_at(e, 2), e[4], e[5], e[6], e[7]);
            match rest[0] {
                0 => parsed.processors.push((rest[1], rest[3])),
                1 => parsed
                    .buses
                    .push((rest[1], String::from_utf8_lossy(&rest[2..8]).into_owned())),
                2 => parsed.io_apics.push((rest[1], rest[3], u32_at(rest, 4))),
                3 => parsed.interrupts.push(interrupt(rest)),
                4 => parsed.local_interrupts.push(interrupt(rest)),
                other => panic!("entry of type {other}"),
            }
            rest = &rest[if rest[0] == 0 { 20 } else { 8 }..];
        }
        assert!(rest.is_empty(), "length and entry count agree");
        parsed
    }

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory")
    }

    #[test]
    fn table_when_parsed_back_describes_the_machine() {
        let memory = memory();
        write(&memory, 2, [4, 5, 16]).expect("write");
        let parsed = parse(&memory);
        assert_eq!(parsed.local_apic, 0xfee0_0000);
        assert_eq!(parsed.processors, [(0, 3), (1, 1)]);
        assert_eq!(parsed.buses, [(0, "ISA   ".to_owned())]);
        assert_eq!(parsed.io_apics, [(2, 1, 0xfec0_0000)]);
        assert_eq!(
            parsed.interrupts,
            [0, 4, 5, 16].map(|irq| (0, 0, 0, irq, 2, irq))
        );
        assert_eq!(
            parsed.local_interrupts,
            [(3, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0xff, 1)]
        );
    }

    #[test]
    fn table_for_the_most_cpus_and_every_irq_fits_below_640_kib() {
        let memory = memory();
        write(&memory, 32, 0..24).expect("write");
        let parsed = parse(&memory);
        assert_eq!(parsed.processors.len(), 32);
        assert_eq!(parsed.interrupts.len(), 24);
        assert_eq!(parsed.io_apics[0].0, 32, "an id no CPU has");
        let beyond: u64 = memory.read_obj(GuestAddress(0xa_0000)).expect("read");
        assert_eq!(beyond, 0);
    }

    #[test]
    fn write_when_asked_for_impossible_machines_refuses() {
        let memory = memory();
        assert!(matches!(write(&memory, 0, []), Err(MpTableError::Cpus(0))));
        assert!(matches!(
            write(&memory, 33, []),
            Err(MpTableError::Cpus(33))
        ));
        assert!(matches!(
            write(&memory, 1, [24]),
            Err(MpTableError::Irq(24))
        ));
    }
}
