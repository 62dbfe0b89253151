//! The XSAVE area (Intel SDM 1, chapter 13): what the save and restore instructions do between an
//! area in guest memory and the state KVM keeps.
//!
//! Pure: the area is anything that can be read and written at an offset, the state is a byte buffer
//! in the standard format, as `KVM_GET_XSAVE2` fills it.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::decode::SaveForm;

/// x87 state.
const X87: u64 = 1;
/// SSE state.
const SSE: u64 = 1 << 1;
/// AVX state, which shares MXCSR with SSE in the standard format.
const AVX: u64 = 1 << 2;

/// Bytes of the legacy region and the header, which every area has.
pub const FIXED_SIZE: usize = 576;
/// Offset of MXCSR and its mask in the legacy region.
const MXCSR: usize = 24;
/// x87 registers, and XMM registers after them.
const X87_REGISTERS: std::ops::Range<usize> = 32..160;
const XMM_REGISTERS: std::ops::Range<usize> = 160..416;
/// Offsets in the area of the two words the header starts with.
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
/// In XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// MXCSR after reset.
const MXCSR_DEFAULT: u32 = 0x1f80;
/// The mask of processors that do not report one (Intel SDM 1 11.6.6).
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;

/// CPUID leaf that describes the area.
const LEAF: u32 = 0xd;

/// The instruction raises `#GP(0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// How an instruction on an area can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaError {
    /// The guest's mistake.
    GeneralProtection,
    /// The area ends before the component does: the caller's bound was wrong.
    OutOfBounds,
}

impl From<GeneralProtection> for AreaError {
    fn from(_: GeneralProtection) -> Self {
        AreaError::GeneralProtection
    }
}

/// Guest memory that an instruction names.
pub trait Area {
    /// Copies bytes out; `None` beyond the end.
    fn read(&self, offset: usize, data: &mut [u8]) -> Option<()>;
    /// Copies bytes in; `None` beyond the end.
    fn write(&mut self, offset: usize, data: &[u8]) -> Option<()>;
}

impl Area for super::paging::Window<'_> {
    fn read(&self, offset: usize, data: &mut [u8]) -> Option<()> {
        super::paging::Window::read(self, offset, data)
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> Option<()> {
        super::paging::Window::write(self, offset, data)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Component {
    offset: usize,
    size: usize,
    /// In the compacted format it starts at a multiple of 64.
    aligned: bool,
}

/// Where the host's processor keeps each component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    components: [Component; 63],
    features: u64,
    size: usize,
}

impl Layout {
    /// Reads the layout from CPUID leaf 0xD. Components that would not lie in `state_size` bytes,
    /// the size of KVM's buffer, are left out: there is no way to get at them.
    pub fn new(cpuid: &CpuId, state_size: usize) -> Self {
        let leaf = |index: u32| -> Option<&kvm_cpuid_entry2> {
            cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == LEAF && entry.index == index)
        };
        let offered = leaf(0).map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax));
        let mut layout = Layout {
            components: [Component::default(); 63],
            features: offered & (X87 | SSE),
            size: FIXED_SIZE,
        };
        for (i, component) in layout.components.iter_mut().enumerate().skip(2) {
            let Some(entry) = leaf(i as u32).filter(|_| offered >> i & 1 != 0) else {
                continue;
            };
            let (offset, size) = (entry.ebx as usize, entry.eax as usize);
            let end = offset.saturating_add(size);
            if offset < FIXED_SIZE || end > state_size {
                continue;
            }
            *component = Component {
                offset,
                size,
                aligned: entry.ecx & 2 != 0,
            };
            layout.features |= 1 << i;
            layout.size = layout.size.max(end);
        }
        layout
    }

    /// The components there are.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Bytes of an area, from its start, that an instruction on `features` may touch.
    pub fn extent(&self, features: u64, compacted: bool) -> usize {
        self.offsets(features, compacted)
            .filter(|(i, _, _)| features >> i & 1 != 0)
            .map(|(_, offset, component)| offset + component.size)
            .max()
            .unwrap_or(FIXED_SIZE)
            .max(FIXED_SIZE)
    }

    /// Number, offset and description of each extended component, in an area in the compacted format
    /// that has `features`, or in one in the standard format.
    fn offsets(
        &self,
        features: u64,
        compacted: bool,
    ) -> impl Iterator<Item = (usize, usize, &Component)> {
        let mut next = FIXED_SIZE;
        let there = self.features & if compacted { features } else { u64::MAX };
        self.components
            .iter()
            .enumerate()
            .skip(2)
            .filter(move |(i, _)| there >> i & 1 != 0)
            .map(move |(i, component)| {
                if !compacted {
                    return (i, component.offset, component);
                }
                if component.aligned {
                    next = next.next_multiple_of(64);
                }
                let offset = next;
                next += component.size;
                (i, offset, component)
            })
    }

    /// `XSAVE`, `XSAVEOPT`, `XSAVEC`, and `XSAVES` without supervisor components: stores the
    /// components of `state` that `requested` (RFBM) has.
    pub fn save(
        &self,
        form: SaveForm,
        wide_pointers: bool,
        requested: u64,
        state: &State,
        area: &mut impl Area,
    ) -> Result<(), AreaError> {
        let out = AreaError::OutOfBounds;
        let bytes = state.bytes();
        let requested = requested & self.features;
        let compacted = matches!(form, SaveForm::Compacted | SaveForm::Supervisor);
        let mut in_use = state.in_use() & requested;
        if compacted && requested & SSE != 0 && state.mxcsr() != MXCSR_DEFAULT {
            in_use |= SSE;
        }
        // `XSAVE` stores components in their initial state too; all others may leave them out.
        let stored = if form == SaveForm::Plain {
            requested
        } else {
            in_use
        };

        if stored & X87 != 0 {
            let pointers = x87_header(bytes, wide_pointers);
            area.write(0, &pointers).ok_or(out)?;
            area.write(X87_REGISTERS.start, &bytes[X87_REGISTERS])
                .ok_or(out)?;
        }
        if stored & SSE != 0 {
            area.write(XMM_REGISTERS.start, &bytes[XMM_REGISTERS])
                .ok_or(out)?;
        }
        let mxcsr = if compacted {
            stored & SSE
        } else {
            requested & (SSE | AVX)
        };
        if mxcsr != 0 {
            area.write(MXCSR, &bytes[MXCSR..MXCSR + 8]).ok_or(out)?;
        }
        for (i, offset, component) in self.offsets(requested, compacted) {
            if stored >> i & 1 != 0 {
                let from = &bytes[component.offset..component.offset + component.size];
                area.write(offset, from).ok_or(out)?;
            }
        }

        if compacted {
            write_word(area, XSTATE_BV, in_use)?;
            write_word(area, XCOMP_BV, COMPACTED | requested)
        } else {
            let old = read_word(area, XSTATE_BV)?;
            write_word(area, XSTATE_BV, old & !requested | in_use)
        }
    }

    /// Reads an area's header and checks it as `XRSTOR` does, or `XRSTORS` if `supervisor`, with
    /// XCR0 as given.
    pub fn check_header(
        &self,
        supervisor: bool,
        xcr0: u64,
        area: &impl Area,
    ) -> Result<Header, AreaError> {
        let mut bytes = [0; 64];
        area.read(XSTATE_BV, &mut bytes)
            .ok_or(AreaError::OutOfBounds)?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (saved, form) = (word(0), word(8));
        let compacted = form & COMPACTED != 0;
        let present = if compacted { form & !COMPACTED } else { xcr0 };
        // The standard format reserves bytes 8 to 23 of the header, the compacted one 16 to 63.
        let reserved = if compacted {
            &bytes[16..64]
        } else {
            &bytes[8..24]
        };
        if (supervisor && !compacted)
            || present & !xcr0 != 0
            || saved & !present != 0
            || reserved.iter().any(|byte| *byte != 0)
        {
            return Err(AreaError::GeneralProtection);
        }
        Ok(Header {
            saved,
            present,
            compacted,
        })
    }

    /// `XRSTOR`, and `XRSTORS` without supervisor components: loads into `state` the components that
    /// `requested` (RFBM) has, from an area with `header`.
    pub fn restore(
        &self,
        wide_pointers: bool,
        requested: u64,
        header: &Header,
        area: &impl Area,
        state: &mut State,
    ) -> Result<(), AreaError> {
        let out = AreaError::OutOfBounds;
        let requested = requested & self.features;
        let loaded = requested & header.saved;

        let mxcsr = match header.compacted {
            false if requested & (SSE | AVX) != 0 => Some(read_u32(area, MXCSR)?),
            true if loaded & SSE != 0 => Some(read_u32(area, MXCSR)?),
            true if requested & SSE != 0 => Some(MXCSR_DEFAULT),
            _ => None,
        };
        if let Some(value) = mxcsr {
            state.set_mxcsr(value)?;
        }

        let bytes = state.bytes_mut();
        if loaded & X87 != 0 {
            area.read(0, &mut bytes[..MXCSR]).ok_or(out)?;
            let pointers = x87_header(bytes, wide_pointers);
            bytes[..MXCSR].copy_from_slice(&pointers);
            area.read(X87_REGISTERS.start, &mut bytes[X87_REGISTERS])
                .ok_or(out)?;
        }
        if loaded & SSE != 0 {
            area.read(XMM_REGISTERS.start, &mut bytes[XMM_REGISTERS])
                .ok_or(out)?;
        } else if requested & SSE != 0 {
            bytes[XMM_REGISTERS].fill(0);
        }
        for (i, offset, component) in self.offsets(header.present, header.compacted) {
            if loaded >> i & 1 != 0 {
                let to = &mut bytes[component.offset..component.offset + component.size];
                area.read(offset, to).ok_or(out)?;
            }
        }
        let mut in_use = state.in_use() & !requested | loaded;
        // The state has no MXCSR of its own: it counts only if SSE is in use.
        if state.mxcsr() != MXCSR_DEFAULT {
            if state.in_use() & SSE == 0 && requested & SSE == 0 {
                state.bytes_mut()[XMM_REGISTERS].fill(0);
            }
            in_use |= SSE;
        }
        state.set_in_use(in_use);
        Ok(())
    }
}

/// The header of an area, found good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// XSTATE_BV: what the area has and is not in its initial state.
    pub saved: u64,
    /// What the area has room for.
    pub present: u64,
    /// The format.
    pub compacted: bool,
}

/// A vCPU's extended state: at least a fixed part and header, in the standard format.
#[derive(Debug)]
pub struct State {
    words: Box<[u64]>,
    mxcsr_mask: u32,
}

impl State {
    /// Room for `size` bytes (a multiple of 8, at least [`FIXED_SIZE`]), all in its initial state.
    pub fn new(size: usize) -> Self {
        State {
            words: vec![0; size.max(FIXED_SIZE).div_ceil(8)].into_boxed_slice(),
            mxcsr_mask: MXCSR_MASK_DEFAULT,
        }
    }

    /// The whole buffer.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the words are initialised, any byte of them is a valid u8, and the borrow of
        // `self` covers the slice.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 8) }
    }

    /// The whole buffer, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any byte pattern makes valid words, and the borrow is exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.words.len() * 8)
        }
    }

    /// Learns from a state that KVM filled which bits of MXCSR the processor has.
    pub fn learn_mxcsr_mask(&mut self) {
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.bytes()[MXCSR + 4..MXCSR + 8]);
        self.mxcsr_mask = match u32::from_le_bytes(mask) {
            0 => MXCSR_MASK_DEFAULT,
            mask => mask,
        };
    }

    /// Sets all components to their initial state, for a restore that replaces them all.
    pub fn reset(&mut self) {
        self.set_in_use(0);
        self.put_mxcsr(MXCSR_DEFAULT);
    }

    /// XSTATE_BV: the components not in their initial state.
    pub fn in_use(&self) -> u64 {
        u64::from_le(self.words[XSTATE_BV / 8])
    }

    fn set_in_use(&mut self, features: u64) {
        self.words[XSTATE_BV / 8] = features.to_le();
    }

    /// The MXCSR register.
    pub fn mxcsr(&self) -> u32 {
        u64::from_le(self.words[MXCSR / 8]) as u32
    }

    /// Sets the MXCSR register, as an instruction that loads it does.
    pub fn set_mxcsr(&mut self, value: u32) -> Result<(), GeneralProtection> {
        if value & !self.mxcsr_mask != 0 {
            return Err(GeneralProtection);
        }
        self.put_mxcsr(value);
        Ok(())
    }

    fn put_mxcsr(&mut self, value: u32) {
        let mask = u64::from(self.mxcsr_mask) << 32;
        self.words[MXCSR / 8] = (mask | u64::from(value)).to_le();
    }

    /// `LDMXCSR`: sets the register, and makes it count.
    pub fn load_mxcsr(&mut self, value: u32) -> Result<(), GeneralProtection> {
        self.set_mxcsr(value)?;
        if self.in_use() & SSE == 0 {
            self.bytes_mut()[XMM_REGISTERS].fill(0);
        }
        self.set_in_use(self.in_use() | SSE);
        Ok(())
    }
}

/// The control words and pointers that the legacy region starts with. Without REX.W the pointers are
/// 32 bits and a selector, which processors of this century store as zero.
fn x87_header(bytes: &[u8], wide_pointers: bool) -> [u8; MXCSR] {
    let mut header = [0; MXCSR];
    header.copy_from_slice(&bytes[..MXCSR]);
    if !wide_pointers {
        header[12..16].fill(0);
        header[20..24].fill(0);
    }
    header
}

fn read_u32(area: &impl Area, offset: usize) -> Result<u32, AreaError> {
    let mut bytes = [0; 4];
    area.read(offset, &mut bytes)
        .ok_or(AreaError::OutOfBounds)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_word(area: &impl Area, offset: usize) -> Result<u64, AreaError> {
    let mut bytes = [0; 8];
    area.read(offset, &mut bytes)
        .ok_or(AreaError::OutOfBounds)?;
    Ok(u64::from_le_bytes(bytes))
}

fn write_word(area: &mut impl Area, offset: usize, value: u64) -> Result<(), AreaError> {
    area.write(offset, &value.to_le_bytes())
        .ok_or(AreaError::OutOfBounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AVX512: u64 = 0xe0;
    const ALL: u64 = X87 | SSE | AVX | AVX512 | 1 << 9;
    const STATE_SIZE: usize = 4096;

    struct Bytes(Vec<u8>);

    impl Area for Bytes {
        fn read(&self, offset: usize, data: &mut [u8]) -> Option<()> {
            data.copy_from_slice(self.0.get(offset..offset.checked_add(data.len())?)?);
            Some(())
        }

        fn write(&mut self, offset: usize, data: &[u8]) -> Option<()> {
            let end = offset.checked_add(data.len())?;
            self.0.get_mut(offset..end)?.copy_from_slice(data);
            Some(())
        }
    }

    /// A processor with AVX-512, whose compacted format has a gap before PKRU's aligned neighbour.
    fn layout() -> Layout {
        let entry = |index: u32, eax: u32, ebx: u32, ecx: u32| kvm_cpuid_entry2 {
            function: LEAF,
            index,
            eax,
            ebx,
            ecx,
            ..Default::default()
        };
        let entries = [
            entry(0, ALL as u32, 0, 0),
            entry(2, 0x100, 0x240, 0),
            entry(5, 0x40, 0x440, 2),
            entry(6, 0x200, 0x480, 2),
            entry(7, 0x400, 0x680, 2),
            entry(9, 8, 0xa80, 0),
        ];
        Layout::new(&CpuId::from_entries(&entries).expect("cpuid"), STATE_SIZE)
    }

    /// Every component in use, each byte telling where it is.
    fn full_state() -> State {
        let mut state = State::new(STATE_SIZE);
        for (i, byte) in state.bytes_mut().iter_mut().enumerate() {
            *byte = (i % 251) as u8 | 1;
        }
        state.bytes_mut()[512..576].fill(0);
        state.put_mxcsr(0x1fa0);
        state.set_in_use(ALL);
        state
    }

    fn saved(form: SaveForm, requested: u64, state: &State) -> Bytes {
        let mut area = Bytes(vec![0xaa; STATE_SIZE]);
        area.0[512..576].fill(0);
        layout()
            .save(form, true, requested, state, &mut area)
            .expect("save");
        area
    }

    fn word(area: &Bytes, at: usize) -> u64 {
        read_word(area, at).expect("word")
    }

    #[test]
    fn leaf_0xd_gives_offsets_and_leaves_out_what_does_not_fit() {
        let layout = layout();
        assert_eq!(layout.features(), ALL);
        assert_eq!(layout.size, 0xa88);
        assert_eq!(layout.extent(X87, false), 576);
        assert_eq!(layout.extent(AVX, false), 0x340);
        assert_eq!(layout.extent(u64::MAX, false), 0xa88);
        // 576 + 0x100 = 0x340; opmask 0x340, ZMM 0x380; PKRU 0x980.
        assert_eq!(layout.extent(ALL, true), 0x988);
        assert_eq!(layout.extent(X87 | 1 << 9, true), 584);

        let bad = [
            kvm_cpuid_entry2 {
                function: LEAF,
                eax: 0xffff_ffff,
                edx: 0xffff_ffff,
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: LEAF,
                index: 2,
                eax: u32::MAX,
                ebx: u32::MAX,
                ..Default::default()
            },
            kvm_cpuid_entry2 {
                function: LEAF,
                index: 62,
                eax: 64,
                ebx: 64,
                ..Default::default()
            },
        ];
        let layout = Layout::new(&CpuId::from_entries(&bad).expect("cpuid"), STATE_SIZE);
        assert_eq!((layout.features(), layout.size), (3, FIXED_SIZE));
        let none = Layout::new(&CpuId::from_entries(&[]).expect("cpuid"), 0);
        assert_eq!(none.features(), 0);
    }

    #[test]
    fn xsave_writes_only_what_is_requested_and_merges_xstate_bv() {
        let state = full_state();
        let mut area = Bytes(vec![0xaa; STATE_SIZE]);
        area.write(XSTATE_BV, &(X87 | 1 << 9).to_le_bytes())
            .expect("header");
        layout()
            .save(SaveForm::Plain, true, AVX, &state, &mut area)
            .expect("save");
        assert_eq!(word(&area, XSTATE_BV), X87 | AVX | 1 << 9);
        assert_eq!(area.0[..MXCSR], [0xaa; MXCSR]);
        assert_eq!(area.0[MXCSR..32], state.bytes()[MXCSR..32]);
        assert_eq!(area.0[32..512], [0xaa; 480]);
        assert_eq!(area.0[0x240..0x340], state.bytes()[0x240..0x340]);
        assert!(area.0[0x340..].iter().all(|byte| *byte == 0xaa));
    }

    #[test]
    fn xsave_clears_the_bit_of_a_component_in_its_initial_state_and_xsaveopt_skips_it() {
        let mut state = full_state();
        state.set_in_use(X87 | SSE);
        let plain = saved(SaveForm::Plain, ALL, &state);
        assert_eq!(word(&plain, XSTATE_BV), X87 | SSE);
        assert_eq!(plain.0[0x240..0x340], state.bytes()[0x240..0x340]);
        let optimised = saved(SaveForm::Optimised, ALL, &state);
        assert_eq!(word(&optimised, XSTATE_BV), X87 | SSE);
        assert_eq!(optimised.0[0x240..0x340], [0xaa; 0x100]);
    }

    #[test]
    fn xsavec_packs_what_is_requested_and_says_so() {
        let state = full_state();
        let area = saved(SaveForm::Compacted, X87 | AVX512 | 1 << 9, &state);
        assert_eq!(word(&area, XSTATE_BV), X87 | AVX512 | 1 << 9);
        assert_eq!(word(&area, XCOMP_BV), COMPACTED | X87 | AVX512 | 1 << 9);
        assert_eq!(area.0[0x240..0x280], state.bytes()[0x440..0x480]);
        assert_eq!(area.0[0x280..0x480], state.bytes()[0x480..0x680]);
        assert_eq!(area.0[0x880..0x888], state.bytes()[0xa80..0xa88]);
        assert_eq!(area.0[160..416], [0xaa; 256]);
    }

    #[test]
    fn xsavec_counts_sse_as_used_if_mxcsr_is_not_its_default() {
        let mut state = full_state();
        state.set_in_use(X87);
        let area = saved(SaveForm::Compacted, ALL, &state);
        assert_eq!(word(&area, XSTATE_BV), X87 | SSE);
        state.put_mxcsr(MXCSR_DEFAULT);
        let area = saved(SaveForm::Compacted, ALL, &state);
        assert_eq!(word(&area, XSTATE_BV), X87);
    }

    #[test]
    fn narrow_pointers_lose_their_upper_half() {
        let state = full_state();
        let mut area = Bytes(vec![0xaa; STATE_SIZE]);
        layout()
            .save(SaveForm::Plain, false, X87, &state, &mut area)
            .expect("save");
        assert_eq!(area.0[8..12], state.bytes()[8..12]);
        assert_eq!(area.0[12..16], [0; 4]);
        assert_eq!(area.0[16..20], state.bytes()[16..20]);
        assert_eq!(area.0[20..24], [0; 4]);
    }

    fn restore(area: &Bytes, requested: u64, state: &mut State) -> Result<(), AreaError> {
        let layout = layout();
        let header = layout.check_header(false, ALL, area)?;
        layout.restore(true, requested, &header, area, state)
    }

    #[test]
    fn every_form_of_save_restores_to_the_same_state() {
        let state = full_state();
        for form in [
            SaveForm::Plain,
            SaveForm::Optimised,
            SaveForm::Compacted,
            SaveForm::Supervisor,
        ] {
            for requested in [ALL, X87, SSE, AVX | SSE, AVX512, 1 << 9 | AVX] {
                let area = saved(form, requested, &state);
                let mut back = State::new(STATE_SIZE);
                back.reset();
                restore(&area, requested, &mut back).expect("restore");
                let again = saved(SaveForm::Plain, requested, &back);
                let direct = saved(SaveForm::Plain, requested, &state);
                let mxcsr_lost = matches!(form, SaveForm::Compacted | SaveForm::Supervisor)
                    && requested & SSE == 0;
                for i in (0..STATE_SIZE).filter(|i| !mxcsr_lost || !(24..32).contains(i)) {
                    assert_eq!(
                        again.0[i], direct.0[i],
                        "{form:?} {requested:#x} byte {i:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn restore_puts_requested_components_not_saved_into_their_initial_state() {
        let mut area = Bytes(vec![0; STATE_SIZE]);
        area.write(XSTATE_BV, &AVX.to_le_bytes()).expect("header");
        area.write(MXCSR, &0x1f80u32.to_le_bytes()).expect("mxcsr");
        let mut state = full_state();
        restore(&area, SSE | AVX | AVX512, &mut state).expect("restore");
        assert_eq!(state.in_use(), X87 | AVX | 1 << 9);
        assert_eq!(state.mxcsr(), 0x1f80);
    }

    #[test]
    fn an_unusual_mxcsr_survives_a_restore_whose_sse_registers_are_initial() {
        let mut area = Bytes(vec![0; STATE_SIZE]);
        area.write(MXCSR, &0x1fa0u32.to_le_bytes()).expect("mxcsr");
        let mut state = full_state();
        restore(&area, SSE, &mut state).expect("restore");
        assert_eq!(state.mxcsr(), 0x1fa0);
        assert_eq!(state.in_use() & SSE, SSE);
        assert_eq!(state.bytes()[XMM_REGISTERS], [0; 256]);
    }

    #[test]
    fn bad_headers_and_mxcsr_are_general_protection_faults() {
        let gp = Err(AreaError::GeneralProtection);
        let cases: &[(usize, u64, u64, bool)] = &[
            // offset, value, XCR0, XRSTORS
            (XSTATE_BV, 1 << 3, ALL, false),
            (XSTATE_BV, AVX512, 7, false),
            (XSTATE_BV, 1 << 63, ALL, false),
            (XCOMP_BV, 1, ALL, false),
            (528, 1, ALL, false),
            (528, 1 << 63, ALL, false),
            (XCOMP_BV, COMPACTED | AVX512, 7, false),
            (XCOMP_BV, COMPACTED | 1 << 62, ALL, false),
            (XCOMP_BV, 0, ALL, true),
        ];
        for (offset, value, xcr0, supervisor) in cases {
            let mut area = Bytes(vec![0; STATE_SIZE]);
            area.write(*offset, &value.to_le_bytes()).expect("header");
            let header = layout().check_header(*supervisor, *xcr0, &area);
            assert_eq!(header.map(|_| ()), gp, "{offset:#x} {value:#x}");
        }
        // In the compacted format what is saved must be present, and all the rest is reserved.
        for (offset, value) in [(XSTATE_BV, AVX), (528, 1u64), (568, 1 << 63)] {
            let mut area = Bytes(vec![0; STATE_SIZE]);
            area.write(XCOMP_BV, &(COMPACTED | X87).to_le_bytes())
                .expect("header");
            area.write(offset, &value.to_le_bytes()).expect("header");
            let header = layout().check_header(false, ALL, &area);
            assert_eq!(header.map(|_| ()), gp, "{offset:#x} {value:#x}");
        }
        // The standard format ignores the last 40 bytes of the header.
        let mut area = Bytes(vec![0; STATE_SIZE]);
        area.0[536..576].fill(0xff);
        assert!(layout().check_header(false, ALL, &area).is_ok());
        // MXCSR bits 16 and up do not exist.
        area.write(MXCSR, &0x1_0000u32.to_le_bytes())
            .expect("mxcsr");
        let mut state = State::new(STATE_SIZE);
        assert_eq!(restore(&area, SSE, &mut state), gp);
        assert_eq!(restore(&area, X87, &mut state), Ok(()));
    }

    proptest! {
        #[test]
        fn any_area_restores_without_panic_or_is_refused(
            bytes in prop::collection::vec(any::<u8>(), 576),
            sparse in any::<bool>(),
            bv in any::<u64>(),
            requested in any::<u64>(),
            length in 576usize..3000,
            xcr0 in any::<u64>(),
        ) {
            let mut area = Bytes(bytes);
            if sparse {
                area.0[512..576].fill(0);
                area.write(XSTATE_BV, &(bv & ALL).to_le_bytes()).expect("fits");
                area.write(MXCSR, &0x1f80u32.to_le_bytes()).expect("fits");
            }
            area.0.resize(length, 1);
            let mut state = full_state();
            let layout = layout();
            if let Ok(header) = layout.check_header(bv & 1 != 0, xcr0 & ALL, &area) {
                let _ = layout.restore(true, requested & xcr0, &header, &area, &mut state);
            }
        }
    }
}
