//! Bytes that can be made twice, and a number that tells whether they arrived.

/// An endless sequence of pseudo-random bytes, the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Stream { state: seed }
    }

    /// Fills `buffer` with the next bytes. Only the last buffer of a sequence may have a length
    /// that is not a multiple of 8: the rest of a word is not carried over.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            word.copy_from_slice(&z.to_le_bytes()[..word.len()]);
        }
    }
}

/// A checksum of a sequence of bytes: FNV-1a's step on 8 bytes at a time, with the length at its end.
/// It finds what a broken device does (lost, repeated, moved, stale bytes), and nothing cleverer.
#[derive(Debug, Clone)]
pub struct Checksum {
    hash: u64,
    length: u64,
    /// Bytes that do not make a word yet.
    rest: [u8; 8],
}

impl Default for Checksum {
    fn default() -> Self {
        Checksum {
            hash: 0xcbf2_9ce4_8422_2325,
            length: 0,
            rest: [0; 8],
        }
    }
}

impl Checksum {
    /// The checksum of `bytes`.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut checksum = Checksum::default();
        checksum.update(bytes);
        checksum.value()
    }

    /// Takes in the next bytes. How the sequence is cut into calls makes no difference.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let held = (self.length % 8) as usize;
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if held > 0 {
            let n = bytes.len().min(8 - held);
            self.rest[held..held + n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if held + n < 8 {
                return;
            }
            self.step(u64::from_le_bytes(self.rest));
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.step(u64::from_le_bytes(*word));
        }
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    /// The checksum of all that was taken in.
    pub fn value(&self) -> u64 {
        let mut end = self.clone();
        let held = (self.length % 8) as usize;
        end.rest[held..].fill(0);
        end.step(u64::from_le_bytes(end.rest));
        end.step(self.length);
        end.hash ^ (end.hash >> 32)
    }

    fn step(&mut self, word: u64) {
        // The rotation brings the high bits, which a multiplication only ever moves upwards, back.
        self.hash = (self.hash ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Stream::new(seed).fill(&mut bytes);
        bytes
    }

    #[test]
    fn stream_when_made_in_pieces_then_the_same() {
        let whole = bytes(7, 1001);
        let mut stream = Stream::new(7);
        let mut pieces = vec![0; 1001];
        let (a, b) = pieces.split_at_mut(512);
        stream.fill(a);
        stream.fill(b);
        assert_eq!(whole, pieces);
        assert_ne!(whole, bytes(8, 1001));
    }

    #[test]
    fn checksum_when_taken_in_pieces_then_the_same() {
        let all = bytes(1, 300);
        for step in [1, 3, 7, 8, 9, 64, 299] {
            let mut checksum = Checksum::default();
            for piece in all.chunks(step) {
                checksum.update(piece);
            }
            assert_eq!(checksum.value(), Checksum::of(&all), "{step}");
        }
    }

    #[test]
    fn checksum_when_bytes_are_lost_moved_or_changed_then_another() {
        let all = bytes(1, 4096);
        let sum = Checksum::of(&all);
        for at in 0..all.len() {
            let mut changed = all.clone();
            changed[at] ^= 0x80;
            assert_ne!(Checksum::of(&changed), sum, "{at}");
        }
        assert_ne!(Checksum::of(&all[..4095]), sum);
        assert_ne!(Checksum::of(&[&all[512..], &all[..512]].concat()), sum);
        assert_ne!(Checksum::of(&[0; 8]), Checksum::of(&[0; 16]));
        assert_ne!(Checksum::of(&[0; 7]), Checksum::of(&[0; 8]));
    }
}
