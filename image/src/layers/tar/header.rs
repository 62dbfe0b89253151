//! A header block (POSIX ustar interchange format, and GNU's use of it).

use super::TarError;

/// Bytes of a block.
pub const BLOCK_LEN: usize = 512;

/// A header block whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a>(&'a [u8; BLOCK_LEN]);

/// Which dialect a header is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Old,
    Posix,
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the sum over the block.
    pub fn parse(block: &'a [u8; BLOCK_LEN]) -> Result<Self, TarError> {
        let stated = octal(&block[148..156]).ok_or(TarError::Checksum)?;
        let mut unsigned = 0_u64;
        let mut signed = 0_i64;
        for (index, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                *byte
            };
            unsigned += u64::from(byte);
            // Some ancient programs added signed characters.
            signed += i64::from(byte as i8);
        }
        if stated != unsigned && i64::try_from(stated) != Ok(signed) {
            return Err(TarError::Checksum);
        }
        Ok(Self(block))
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar") => Dialect::Posix,
            _ => Dialect::Old,
        }
    }

    /// What kind of entry this is.
    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, put together from its two fields.
    pub fn path_into(&self, path: &mut Vec<u8>) {
        path.clear();
        if self.dialect() == Dialect::Posix {
            let prefix = text(&self.0[345..500]);
            if !prefix.is_empty() {
                path.extend_from_slice(prefix);
                path.push(b'/');
            }
        }
        path.extend_from_slice(text(&self.0[..100]));
    }

    /// What a link points to.
    pub fn link(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    /// Permissions, and perhaps the type's bits.
    pub fn mode(&self) -> Result<u16, TarError> {
        number(&self.0[100..108])
            .map(|mode| mode as u16)
            .ok_or(TarError::Number("mode"))
    }

    /// Owner.
    pub fn uid(&self) -> Result<u32, TarError> {
        id(number(&self.0[108..116])).ok_or(TarError::Number("owner"))
    }

    /// Group.
    pub fn gid(&self) -> Result<u32, TarError> {
        id(number(&self.0[116..124])).ok_or(TarError::Number("group"))
    }

    /// Bytes of data that follow.
    pub fn size(&self) -> Result<u64, TarError> {
        size(number(&self.0[124..136])).ok_or(TarError::Number("size"))
    }

    /// Seconds since 1970.
    pub fn mtime(&self) -> Result<i64, TarError> {
        number(&self.0[136..148]).ok_or(TarError::Number("time"))
    }

    /// A device's major and minor number.
    pub fn device(&self) -> Result<(u32, u32), TarError> {
        let part = |bytes| id(number(bytes)).ok_or(TarError::Number("device number"));
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    /// GNU's old sparse format: the file's real size, the first pieces, and whether blocks with more
    /// pieces follow.
    pub fn gnu_sparse(&self) -> Result<(u64, &'a [u8], bool), TarError> {
        let size = size(number(&self.0[483..495])).ok_or(TarError::Number("size"))?;
        Ok((size, &self.0[386..482], self.0[482] != 0))
    }
}

/// Bytes of a piece in GNU's old sparse format.
pub const GNU_PIECE_LEN: usize = 24;

/// A piece in GNU's old sparse format: offset and length; none where the list ends.
pub fn gnu_piece(bytes: &[u8]) -> Result<Option<(u64, u64)>, TarError> {
    if bytes[0] == 0 {
        return Ok(None);
    }
    let part = |bytes| size(number(bytes)).ok_or(TarError::Sparse);
    Ok(Some((part(&bytes[..12])?, part(&bytes[12..24])?)))
}

/// A user or group that a file can have: the last number means nobody at all.
pub fn id(number: Option<i64>) -> Option<u32> {
    u32::try_from(number?).ok().filter(|id| *id != u32::MAX)
}

fn size(number: Option<i64>) -> Option<u64> {
    u64::try_from(number?).ok()
}

/// A field's text, which ends with a NUL if it is shorter than the field.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal digits, or, marked by the first bit, a big-endian two's complement.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return i64::try_from(octal(field)?).ok();
    }
    let negative = first & 0x40 != 0;
    let start = i64::from(first & 0x7f) - if negative { 0x80 } else { 0 };
    rest.iter().try_fold(start, |number, byte| {
        number.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

/// Octal digits between spaces and NULs; nothing at all is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    // Some programs leave rubbish behind a NUL.
    if rest.first() == Some(&b' ') && !rest.iter().all(blank) {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_when_octal_then_ignores_blanks() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777"), Some(0o7777_7777));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x4\0"), None);
        assert_eq!(number(b"12 4\0"), None);
    }

    #[test]
    fn number_when_binary_then_is_signed_and_bounded() {
        assert_eq!(number(b"\x80\0\0\0\0\x01\0\0"), Some(65536));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(
            number(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
            Some(i64::MAX)
        );
        assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
        assert_eq!(
            number(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            None
        );
    }

    #[test]
    fn id_when_out_of_range_then_none() {
        assert_eq!(id(Some(i64::from(u32::MAX) - 1)), Some(u32::MAX - 1));
        assert_eq!(id(Some(i64::from(u32::MAX))), None);
        assert_eq!(id(Some(-1)), None);
    }
}
