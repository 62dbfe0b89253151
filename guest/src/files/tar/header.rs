//! The blocks that entries begin with.

use std::ops::Range;

use super::BLOCK;

/// A block of an archive.
pub type Block = [u8; BLOCK];

pub const NAME: Range<usize> = 0..100;
pub const MODE: Range<usize> = 100..108;
pub const UID: Range<usize> = 108..116;
pub const GID: Range<usize> = 116..124;
pub const SIZE: Range<usize> = 124..136;
pub const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
pub const TYPE: usize = 156;
pub const LINK: Range<usize> = 157..257;
pub const MAGIC: Range<usize> = 257..265;
pub const MAJOR: Range<usize> = 329..337;
pub const MINOR: Range<usize> = 337..345;
pub const PREFIX: Range<usize> = 345..500;
/// What [`MAGIC`] is in POSIX's format; GNU's has other bytes behind the first five.
pub const USTAR: &[u8; 8] = b"ustar\x0000";

fn sum(block: &Block) -> u64 {
    let bytes = block.iter().enumerate();
    bytes
        .map(|(i, &b)| {
            if CHECKSUM.contains(&i) {
                32
            } else {
                u64::from(b)
            }
        })
        .sum()
}

/// Writes the sum that makes a block a header.
pub fn set_checksum(block: &mut Block) {
    let text = format!("{:06o}\0 ", sum(block));
    block[CHECKSUM].copy_from_slice(text.as_bytes());
}

/// Whether a block has the sum of a header.
pub fn has_checksum(block: &Block) -> bool {
    number(&block[CHECKSUM]) == Some(sum(block) as i64)
}

/// The bytes of a field up to its NUL.
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(field)
}

/// A number, in octal digits or, as GNU has those that do not fit, in base 256 with two's complement.
pub fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        let digits = text(field).trim_ascii();
        return digits.iter().try_fold(0i64, |n, &digit| {
            let digit = char::from(digit).to_digit(8)?;
            n.checked_mul(8)?.checked_add(digit.into())
        });
    }
    // The bit below the mark is the sign.
    let top = i64::from((first << 1) as i8 >> 1);
    rest.iter()
        .try_fold(top, |n, &byte| n.checked_mul(256)?.checked_add(byte.into()))
}

/// Writes a number in octal digits. `false`, and zeros, if it does not fit.
pub fn set_number(field: &mut [u8], value: u64) -> bool {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}\0");
    let fits = text.len() == field.len();
    if fits {
        field.copy_from_slice(text.as_bytes());
    } else {
        field.fill(b'0');
        field[width] = 0;
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_when_written_in_any_way_then_read() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777777\0", Some(0o77777777777)),
            (b"\x80\0\0\0\0\0\x01\0\0\0\0\x02", Some((1 << 40) + 2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"-1\0", None),
            (b"", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn number_when_it_does_not_fit_then_said() {
        let mut field = [b'x'; 8];
        assert!(set_number(&mut field, 0o7777777));
        assert_eq!(&field, b"7777777\0");
        assert!(!set_number(&mut field, 0o10000000));
        assert_eq!(&field, b"0000000\0");
    }
}
