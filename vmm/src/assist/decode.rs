//! Decodes the few 64-bit instructions the assist can finish (Intel SDM 2A, chapter 2).
//!
//! Pure over a slice of bytes: it reads neither guest memory nor registers, allocates nothing and
//! cannot panic. What it does not know is [`DecodeError::Unknown`], never a guess.

use kvm_bindings::kvm_regs;

/// No instruction is longer (Intel SDM 2A 2.3.11).
pub const MAX_LENGTH: usize = 15;

/// Why there is no instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the instruction does.
    Truncated,
    /// Not one of those known here, or prefixes that make it another one.
    Unknown,
}

/// Which of the instructions that store extended state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveForm {
    /// `XSAVE`.
    Plain,
    /// `XSAVEOPT`: may leave out what is in its initial state.
    Optimised,
    /// `XSAVEC`: the compacted format.
    Compacted,
    /// `XSAVES`: compacted, with supervisor components.
    Supervisor,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `int3`.
    Breakpoint,
    /// `ud0`, `ud1`, `ud2`: `#UD` by definition.
    Undefined,
    /// `fwait`.
    Fwait,
    /// `XSAVE` and its kin, to the memory operand.
    Save(SaveForm),
    /// `XRSTOR`, from the memory operand.
    Restore,
    /// `XRSTORS`: compacted only, with supervisor components.
    RestoreSupervisor,
    /// `LDMXCSR`.
    LoadMxcsr,
    /// `STMXCSR`.
    StoreMxcsr,
    /// `CMPXCHG16B`, with or without `LOCK`.
    CompareExchange16,
    /// `POPCNT`.
    PopulationCount,
    /// `CRC32`.
    Crc32,
    /// `CLAC` and `STAC`: `RFLAGS.AC` becomes the value given.
    AlignmentCheck(bool),
    /// `XGETBV`.
    GetXcr,
    /// `CLWB`: a hint to a cache that is the host's business.
    CacheHint,
}

/// A segment whose base counts in 64-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// An address as the instruction gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Address {
    /// A general register's number, or none.
    pub base: Option<u8>,
    /// A general register's number and the power of two to multiply it by.
    pub index: Option<(u8, u8)>,
    /// The constant part.
    pub displacement: i32,
    /// The next instruction's address is added.
    pub rip_relative: bool,
    /// FS or GS, whose base is added.
    pub segment: Option<Segment>,
    /// The sum, before the segment base, is cut to 32 bits.
    pub short: bool,
}

impl Address {
    /// The linear address, given the registers before the instruction, its length and the two bases.
    pub fn linear(&self, regs: &kvm_regs, length: u8, fs_base: u64, gs_base: u64) -> u64 {
        let mut address = i64::from(self.displacement) as u64;
        if let Some(base) = self.base {
            address = address.wrapping_add(general(regs, base));
        }
        if let Some((index, scale)) = self.index {
            address = address.wrapping_add(general(regs, index) << (scale & 3));
        }
        if self.rip_relative {
            address = address.wrapping_add(regs.rip.wrapping_add(u64::from(length)));
        }
        if self.short {
            address &= 0xffff_ffff;
        }
        match self.segment {
            None => address,
            Some(Segment::Fs) => address.wrapping_add(fs_base),
            Some(Segment::Gs) => address.wrapping_add(gs_base),
        }
    }

    /// Whether a bad address is a stack fault: RSP or RBP is its base and no segment is named.
    pub fn is_on_stack(&self) -> bool {
        self.segment.is_none() && matches!(self.base, Some(4 | 5))
    }
}

/// The operand that may be in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// The instruction has none.
    None,
    /// A general register by number; for byte operands without REX, 4 to 7 are AH to BH.
    Register(u8),
    /// Memory.
    Memory(Address),
}

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub operation: Operation,
    /// Its bytes, 1 to 15.
    pub length: u8,
    /// The general register its ModRM byte names besides the operand.
    pub register: u8,
    /// The other operand.
    pub operand: Operand,
    /// Bytes of the operand: 1, 2, 4 or 8 where the instruction comes in sizes.
    pub size: u8,
    /// A REX prefix is there, which turns AH to BH into SPL to DIL.
    pub has_rex: bool,
}

/// Reads general register `number` (0 to 15, in the order of their encoding).
pub fn general(regs: &kvm_regs, number: u8) -> u64 {
    match number & 15 {
        0 => regs.rax,
        1 => regs.rcx,
        2 => regs.rdx,
        3 => regs.rbx,
        4 => regs.rsp,
        5 => regs.rbp,
        6 => regs.rsi,
        7 => regs.rdi,
        8 => regs.r8,
        9 => regs.r9,
        10 => regs.r10,
        11 => regs.r11,
        12 => regs.r12,
        13 => regs.r13,
        14 => regs.r14,
        _ => regs.r15,
    }
}

/// General register `number`, to be written.
pub fn general_mut(regs: &mut kvm_regs, number: u8) -> &mut u64 {
    match number & 15 {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

/// Decodes the instruction that `bytes` start with, as 64-bit code.
pub fn decode(bytes: &[u8]) -> Result<Instruction, DecodeError> {
    let mut reader = Reader {
        bytes: bytes.get(..MAX_LENGTH).unwrap_or(bytes),
        at: 0,
    };
    let prefixes = Prefixes::read(&mut reader)?;
    match reader.next()? {
        0x0f => decode_0f(&mut reader, &prefixes),
        0xcc if prefixes.no_lock() => Ok(prefixes.plain(Operation::Breakpoint, &reader)),
        0x9b if prefixes.no_lock() => Ok(prefixes.plain(Operation::Fwait, &reader)),
        _ => Err(DecodeError::Unknown),
    }
}

fn decode_0f(reader: &mut Reader, prefixes: &Prefixes) -> Result<Instruction, DecodeError> {
    match reader.next()? {
        0x01 => {
            let operation = match reader.next()? {
                0xca => Operation::AlignmentCheck(false),
                0xcb => Operation::AlignmentCheck(true),
                0xd0 => Operation::GetXcr,
                _ => return Err(DecodeError::Unknown),
            };
            prefixes.require_bare()?;
            Ok(prefixes.plain(operation, reader))
        }
        0x0b => Ok(prefixes.plain(Operation::Undefined, reader)),
        0x38 => match (reader.next()?, prefixes.repeat) {
            (opcode @ (0xf0 | 0xf1), Repeat::Ne) if prefixes.no_lock() => {
                let modrm = ModRm::read(reader, prefixes)?;
                let size = if opcode == 0xf0 { 1 } else { prefixes.size() };
                Ok(prefixes.with(Operation::Crc32, modrm, size, reader))
            }
            _ => Err(DecodeError::Unknown),
        },
        0xae => {
            let modrm = ModRm::read(reader, prefixes)?;
            let operation = match (modrm.opcode, prefixes.operand_size) {
                (2, false) => Operation::LoadMxcsr,
                (3, false) => Operation::StoreMxcsr,
                (4, false) => Operation::Save(SaveForm::Plain),
                (5, false) => Operation::Restore,
                (6, false) => Operation::Save(SaveForm::Optimised),
                (6, true) => Operation::CacheHint,
                _ => return Err(DecodeError::Unknown),
            };
            prefixes.in_memory(operation, modrm, reader)
        }
        0xb8 if prefixes.repeat == Repeat::E && prefixes.no_lock() => {
            let modrm = ModRm::read(reader, prefixes)?;
            Ok(prefixes.with(Operation::PopulationCount, modrm, prefixes.size(), reader))
        }
        0xb9 | 0xff => {
            let modrm = ModRm::read(reader, prefixes)?;
            Ok(prefixes.with(Operation::Undefined, modrm, 4, reader))
        }
        0xc7 => {
            let modrm = ModRm::read(reader, prefixes)?;
            let operation = match modrm.opcode {
                1 if prefixes.rex_w() => Operation::CompareExchange16,
                3 => Operation::RestoreSupervisor,
                4 => Operation::Save(SaveForm::Compacted),
                5 => Operation::Save(SaveForm::Supervisor),
                _ => return Err(DecodeError::Unknown),
            };
            if prefixes.operand_size {
                return Err(DecodeError::Unknown);
            }
            prefixes.in_memory(operation, modrm, reader)
        }
        _ => Err(DecodeError::Unknown),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn displacement8(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from(self.next()? as i8))
    }

    fn displacement32(&mut self) -> Result<i32, DecodeError> {
        let mut bytes = [0; 4];
        for byte in &mut bytes {
            *byte = self.next()?;
        }
        Ok(i32::from_le_bytes(bytes))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    None,
    Ne,
    E,
}

struct Prefixes {
    rex: Option<u8>,
    operand_size: bool,
    address_size: bool,
    lock: bool,
    repeat: Repeat,
    segment: Option<Segment>,
}

impl Prefixes {
    /// Takes the prefixes off. A REX counts only right before the opcode.
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut prefixes = Prefixes {
            rex: None,
            operand_size: false,
            address_size: false,
            lock: false,
            repeat: Repeat::None,
            segment: None,
        };
        loop {
            let byte = reader.next()?;
            match byte {
                0x66 => prefixes.operand_size = true,
                0x67 => prefixes.address_size = true,
                0xf0 => prefixes.lock = true,
                0xf2 => prefixes.repeat = Repeat::Ne,
                0xf3 => prefixes.repeat = Repeat::E,
                0x64 => prefixes.segment = Some(Segment::Fs),
                0x65 => prefixes.segment = Some(Segment::Gs),
                // ES, CS, SS, DS: null prefixes in 64-bit mode.
                0x26 | 0x2e | 0x36 | 0x3e => {}
                0x40..=0x4f => {
                    prefixes.rex = Some(byte);
                    continue;
                }
                _ => {
                    reader.at -= 1;
                    return Ok(prefixes);
                }
            }
            prefixes.rex = None;
        }
    }

    fn rex_bit(&self, bit: u8) -> bool {
        self.rex.is_some_and(|rex| rex & bit != 0)
    }

    fn rex_w(&self) -> bool {
        self.rex_bit(8)
    }

    fn no_lock(&self) -> bool {
        !self.lock
    }

    fn size(&self) -> u8 {
        match (self.rex_w(), self.operand_size) {
            (true, _) => 8,
            (false, true) => 2,
            (false, false) => 4,
        }
    }

    /// No prefix that selects another instruction or is illegal here.
    fn require_bare(&self) -> Result<(), DecodeError> {
        if self.lock || self.operand_size || self.repeat != Repeat::None {
            return Err(DecodeError::Unknown);
        }
        Ok(())
    }

    fn plain(&self, operation: Operation, reader: &Reader) -> Instruction {
        Instruction {
            operation,
            length: reader.at as u8, // at most MAX_LENGTH
            register: 0,
            operand: Operand::None,
            size: self.size(),
            has_rex: self.rex.is_some(),
        }
    }

    fn with(&self, operation: Operation, modrm: ModRm, size: u8, reader: &Reader) -> Instruction {
        Instruction {
            register: modrm.register,
            operand: modrm.operand,
            size,
            ..self.plain(operation, reader)
        }
    }

    /// An instruction that exists only with a memory operand and without repeat prefixes.
    fn in_memory(
        &self,
        operation: Operation,
        modrm: ModRm,
        reader: &Reader,
    ) -> Result<Instruction, DecodeError> {
        let may_lock = operation == Operation::CompareExchange16;
        if !matches!(modrm.operand, Operand::Memory(_))
            || self.repeat != Repeat::None
            || (self.lock && !may_lock)
        {
            return Err(DecodeError::Unknown);
        }
        Ok(self.with(operation, modrm, self.size(), reader))
    }
}

struct ModRm {
    /// The register field without REX.R: part of the opcode for some.
    opcode: u8,
    register: u8,
    operand: Operand,
}

impl ModRm {
    fn read(reader: &mut Reader, prefixes: &Prefixes) -> Result<Self, DecodeError> {
        let byte = reader.next()?;
        let (mode, opcode, rm) = (byte >> 6, byte >> 3 & 7, byte & 7);
        let extend = |number: u8, bit: u8| number | if prefixes.rex_bit(bit) { 8 } else { 0 };
        let register = extend(opcode, 4);
        if mode == 3 {
            return Ok(ModRm {
                opcode,
                register,
                operand: Operand::Register(extend(rm, 1)),
            });
        }

        let mut address = Address {
            segment: prefixes.segment,
            short: prefixes.address_size,
            ..Address::default()
        };
        if rm == 4 {
            let sib = reader.next()?;
            let (scale, index, base) = (sib >> 6, extend(sib >> 3 & 7, 2), sib & 7);
            // RSP cannot be an index; R12 can.
            address.index = (index != 4).then_some((index, scale));
            if base == 5 && mode == 0 {
                address.displacement = reader.displacement32()?;
            } else {
                address.base = Some(extend(base, 1));
            }
        } else if rm == 5 && mode == 0 {
            address.rip_relative = true;
            address.displacement = reader.displacement32()?;
        } else {
            address.base = Some(extend(rm, 1));
        }
        match mode {
            1 => address.displacement = reader.displacement8()?,
            2 => address.displacement = reader.displacement32()?,
            _ => {}
        }
        Ok(ModRm {
            opcode,
            register,
            operand: Operand::Memory(address),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(bytes: &[u8]) -> (Operation, Address) {
        let instruction = decode(bytes).expect("decodes");
        assert_eq!(usize::from(instruction.length), bytes.len());
        match instruction.operand {
            Operand::Memory(address) => (instruction.operation, address),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_known_instruction_decodes_to_its_operation_and_length() {
        use Operation::*;
        let table: &[(&[u8], Operation)] = &[
            (&[0xcc], Breakpoint),
            (&[0x9b], Fwait),
            (&[0x0f, 0x0b], Undefined),
            (&[0x0f, 0xb9, 0xc0], Undefined),
            (&[0x0f, 0xb9, 0x40, 0x10], Undefined),
            (&[0x0f, 0xff, 0xc0], Undefined),
            (&[0x48, 0x0f, 0xae, 0x27], Save(SaveForm::Plain)),
            (&[0x0f, 0xae, 0x27], Save(SaveForm::Plain)),
            (&[0x48, 0x0f, 0xae, 0x37], Save(SaveForm::Optimised)),
            (&[0x48, 0x0f, 0xc7, 0x27], Save(SaveForm::Compacted)),
            (&[0x48, 0x0f, 0xc7, 0x2f], Save(SaveForm::Supervisor)),
            (&[0x48, 0x0f, 0xae, 0x2f], Restore),
            (&[0x48, 0x0f, 0xc7, 0x1f], RestoreSupervisor),
            (&[0x0f, 0xae, 0x17], LoadMxcsr),
            (&[0x0f, 0xae, 0x1f], StoreMxcsr),
            (&[0x48, 0x0f, 0xc7, 0x0e], CompareExchange16),
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0e], CompareExchange16),
            (&[0x65, 0x48, 0x0f, 0xc7, 0x0e], CompareExchange16),
            (&[0xf3, 0x48, 0x0f, 0xb8, 0xc7], PopulationCount),
            (&[0xf3, 0x0f, 0xb8, 0xc7], PopulationCount),
            (&[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc3], Crc32),
            (&[0xf2, 0x0f, 0x38, 0xf0, 0xc3], Crc32),
            (&[0x0f, 0x01, 0xca], AlignmentCheck(false)),
            (&[0x0f, 0x01, 0xcb], AlignmentCheck(true)),
            (&[0x0f, 0x01, 0xd0], GetXcr),
            (&[0x66, 0x0f, 0xae, 0x37], CacheHint),
        ];
        for (bytes, operation) in table {
            let mut padded = bytes.to_vec();
            padded.extend([0x90; 8]);
            let instruction = decode(&padded).expect("decodes");
            assert_eq!(instruction.operation, *operation, "{bytes:02x?}");
            assert_eq!(usize::from(instruction.length), bytes.len(), "{bytes:02x?}");
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), Err(DecodeError::Truncated));
            }
        }
    }

    #[test]
    fn relatives_with_other_meanings_are_not_taken_for_the_known_ones() {
        let table: &[&[u8]] = &[
            &[0x90],
            &[0xcd, 0x80],
            &[0xf0, 0xcc],                         // lock int3
            &[0xf0, 0x48, 0x0f, 0xae, 0x27],       // lock xsave
            &[0xf3, 0x0f, 0xae, 0x27],             // ptwrite
            &[0xf3, 0x0f, 0xae, 0xe8],             // incssp
            &[0xf3, 0x0f, 0xae, 0x37],             // clrssbsy
            &[0x66, 0x0f, 0xae, 0x3f],             // clflushopt
            &[0x66, 0x0f, 0xae, 0xf0],             // tpause
            &[0x0f, 0xae, 0xe8],                   // lfence
            &[0x0f, 0xae, 0x07],                   // fxsave
            &[0x0f, 0xc7, 0x0e],                   // cmpxchg8b
            &[0x48, 0x0f, 0xc7, 0xf0],             // rdrand
            &[0x66, 0x0f, 0xc7, 0x37],             // vmclear
            &[0x66, 0x48, 0x0f, 0xc7, 0x0e],       // no such cmpxchg16b
            &[0x0f, 0xb8, 0xc0],                   // jmpe
            &[0x0f, 0x38, 0xf0, 0x03],             // movbe
            &[0x66, 0x0f, 0x01, 0xca],             // no such clac
            &[0xf3, 0x0f, 0x01, 0xca],             // clac is not repeated (FRED's erets)
            &[0xc5, 0xf9, 0xef, 0xc0],             // a VEX one
            &[0x48, 0x0f, 0xae, 0x97, 0, 0, 0, 0], // REX.W ldmxcsr is still ldmxcsr
        ];
        for bytes in &table[..table.len() - 1] {
            assert_eq!(decode(bytes), Err(DecodeError::Unknown), "{bytes:02x?}");
        }
        let last = decode(table[table.len() - 1]).expect("decodes");
        assert_eq!(last.operation, Operation::LoadMxcsr);
    }

    #[test]
    fn addressing_forms_give_base_index_displacement_and_segment() {
        let at = |bytes: &[u8]| memory(bytes).1;
        let plain = Address::default();
        assert_eq!(
            at(&[0x48, 0x0f, 0xae, 0x27]),
            Address {
                base: Some(7),
                ..plain
            }
        );
        assert_eq!(
            at(&[0x49, 0x0f, 0xae, 0x67, 0x80]), // [r15 - 128]
            Address {
                base: Some(15),
                displacement: -128,
                ..plain
            }
        );
        assert_eq!(
            at(&[0x48, 0x0f, 0xae, 0xa7, 0, 0, 0, 0x80]),
            Address {
                base: Some(7),
                displacement: i32::MIN,
                ..plain
            }
        );
        assert_eq!(
            at(&[0x48, 0x0f, 0xae, 0x25, 4, 3, 2, 1]),
            Address {
                rip_relative: true,
                displacement: 0x0102_0304,
                ..plain
            }
        );
        assert_eq!(
            at(&[0x48, 0x0f, 0xae, 0x24, 0x24]), // [rsp]
            Address {
                base: Some(4),
                ..plain
            }
        );
        assert_eq!(
            at(&[0x4a, 0x0f, 0xae, 0x64, 0xe3, 1]), // [rbx + r12 * 8 + 1]
            Address {
                base: Some(3),
                index: Some((12, 3)),
                displacement: 1,
                ..plain
            }
        );
        assert_eq!(
            at(&[0x64, 0x48, 0x0f, 0xae, 0x24, 0x25, 0x10, 0, 0, 0]), // fs:[0x10]
            Address {
                segment: Some(Segment::Fs),
                displacement: 0x10,
                ..plain
            }
        );
        assert_eq!(
            at(&[0x65, 0x67, 0x4f, 0x0f, 0xae, 0x64, 0x88, 0x08]), // gs:[r8d + r9d * 4 + 8]
            Address {
                base: Some(8),
                index: Some((9, 2)),
                displacement: 8,
                segment: Some(Segment::Gs),
                short: true,
                ..plain
            }
        );
        // RBP and R13 as a base always have a displacement; without one it is RIP or an index only.
        assert_eq!(
            at(&[0x49, 0x0f, 0xae, 0x65, 0]),
            Address {
                base: Some(13),
                ..plain
            }
        );
    }

    #[test]
    fn linear_addresses_wrap_and_count_the_right_bases() {
        let regs = kvm_regs {
            rip: 0x1000,
            rbx: 0x10,
            rcx: 4,
            ..Default::default()
        };
        let address = Address {
            base: Some(3),
            index: Some((1, 3)),
            displacement: -0x40,
            ..Address::default()
        };
        assert_eq!(address.linear(&regs, 7, 1, 2), (-0x10i64) as u64);
        let short = Address {
            short: true,
            segment: Some(Segment::Gs),
            ..address
        };
        assert_eq!(short.linear(&regs, 7, 1, 2), 0xffff_fff0 + 2);
        let relative = Address {
            rip_relative: true,
            displacement: 9,
            ..Address::default()
        };
        assert_eq!(relative.linear(&regs, 7, 1, 2), 0x1010);
    }

    #[test]
    fn a_rex_that_is_not_last_is_ignored() {
        let instruction = decode(&[0x48, 0xf3, 0x0f, 0xb8, 0xc7]).expect("popcnt");
        assert_eq!((instruction.size, instruction.has_rex), (4, false));
    }

    #[test]
    fn sixteen_bytes_are_too_many() {
        let mut bytes = [0x2e; 16];
        bytes[14] = 0xcc;
        assert_eq!(decode(&bytes).expect("fifteen").length, 15);
        bytes[14] = 0x2e;
        bytes[15] = 0xcc;
        assert_eq!(decode(&bytes), Err(DecodeError::Truncated));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic_to_at_most_fifteen(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            if let Ok(instruction) = decode(&bytes) {
                prop_assert!(instruction.length >= 1);
                prop_assert!(usize::from(instruction.length) <= MAX_LENGTH.min(bytes.len()));
                if let Operand::Memory(address) = instruction.operand {
                    let regs = kvm_regs { rip: u64::MAX, rax: u64::MAX, ..Default::default() };
                    let _ = address.linear(&regs, instruction.length, u64::MAX, 1);
                }
            }
        }

        #[test]
        fn what_follows_an_instruction_does_not_change_it(
            prefix in prop::sample::select(vec![0x48u8, 0x4f, 0x65, 0x67, 0xf3, 0xf2, 0x66]),
            opcode in prop::sample::select(vec![vec![0x0fu8, 0xae], vec![0x0f, 0xc7], vec![0x0f, 0xb8], vec![0x0f, 0x38, 0xf1]]),
            rest in prop::array::uniform6(any::<u8>()),
        ) {
            let bytes = [vec![prefix], opcode, rest.to_vec()].concat();
            if let Ok(whole) = decode(&bytes) {
                prop_assert_eq!(decode(&bytes[..usize::from(whole.length)]), Ok(whole));
            }
        }
    }
}
