//! Bytes from the guest that a Unix socket was too full to take.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::GuestMemory;
use crate::virtio::chain::Buffers;

/// A queue of bytes that has no memory while it is empty.
///
/// How much it may hold is the caller's to bound: it is what the guest has credit for.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
}

impl Backlog {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends the `len` bytes at `offset` of a chain. `false`, and nothing appended, if they are
    /// not all there.
    #[must_use]
    pub fn append(
        &mut self,
        memory: &GuestMemory,
        buffers: &Buffers,
        offset: u32,
        len: u32,
    ) -> bool {
        let before = self.bytes.len();
        self.bytes.resize(before + len as usize, 0);
        let (front, back) = self.bytes.as_mut_slices();
        // The new bytes are the last of the two halves together.
        let front_start = before.min(front.len());
        let back_start = before - front_start;
        let into_front = &mut front[front_start..];
        let behind = offset + into_front.len() as u32;
        let whole = buffers.read_at(memory, offset, into_front)
            && buffers.read_at(memory, behind, &mut back[back_start..]);
        if !whole {
            self.bytes.truncate(before);
        }
        whole
    }

    /// Offers what waits to `write`, which says how much it took. Returns that; memory goes back
    /// when nothing is left.
    pub fn drain_to(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let (front, back) = self.bytes.as_slices();
        let taken = write(&[IoSlice::new(front), IoSlice::new(back)])?;
        if taken >= self.bytes.len() {
            self.clear();
        } else {
            self.bytes.drain(..taken);
        }
        Ok(taken)
    }

    /// Forgets what waits, and gives its memory back.
    pub fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::virtio::chain::DescriptorChain;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    /// Guest memory with the bytes 0, 1, 2... from 0x1000, and a chain that reads them.
    fn guest() -> (GuestMemory, DescriptorChain) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(0x1000).collect();
        memory.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&0x1000u64.to_le_bytes());
        descriptor[8..12].copy_from_slice(&0x1000u32.to_le_bytes());
        memory.write_slice(&descriptor, GuestAddress(0)).unwrap();
        let mut chain = DescriptorChain::new();
        chain.parse(&memory, GuestAddress(0), 1, 0).unwrap();
        (memory, chain)
    }

    #[test]
    fn bytes_that_are_not_there_are_not_appended() {
        let (memory, chain) = guest();
        let mut backlog = Backlog::default();
        assert!(backlog.append(&memory, &chain.readable, 0xff0, 0x10));
        assert!(!backlog.append(&memory, &chain.readable, 0xff0, 0x11));
        assert_eq!(backlog.len(), 0x10);
    }

    #[test]
    fn memory_when_drained_goes_back() {
        let (memory, chain) = guest();
        let mut backlog = Backlog::default();
        assert!(backlog.append(&memory, &chain.readable, 0, 0x1000));
        backlog.drain_to(|_| Ok(0x1000)).unwrap();
        assert_eq!(backlog.bytes.capacity(), 0);
    }

    proptest! {
        // Goes round the ring's end in every way.
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in proptest::collection::vec((0u32..300, 0u32..300, 0usize..400), 1..50)
        ) {
            let (memory, chain) = guest();
            let mut backlog = Backlog::default();
            let mut expected = VecDeque::new();
            for (offset, len, take) in steps {
                prop_assert!(backlog.append(&memory, &chain.readable, offset, len));
                expected.extend((offset..offset + len).map(|n| n as u8));
                let mut out = Vec::new();
                backlog.drain_to(|parts| {
                    parts.iter().for_each(|part| out.extend_from_slice(part));
                    out.truncate(take);
                    Ok(out.len())
                }).unwrap();
                let want: Vec<u8> = expected.drain(..out.len()).collect();
                prop_assert_eq!(out, want);
                prop_assert_eq!(backlog.len(), expected.len());
            }
        }
    }
}
