//! Extended headers (POSIX pax interchange format), with GNU's and star's additions.

use super::TarError;
use super::header::id;
use crate::erofs::{Piece, Time};

/// What extended headers say of the entry that follows them.
#[derive(Debug, Default)]
pub struct Pax {
    /// Its name.
    pub path: Option<Vec<u8>>,
    /// What it links to.
    pub link: Option<Vec<u8>>,
    /// Bytes of data that follow it.
    pub size: Option<u64>,
    /// Its owner.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
    /// Its time.
    pub mtime: Option<Time>,
    /// Its extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its holes.
    pub sparse: Sparse,
}

/// What GNU tar says of a file with holes, in three ways of saying it.
#[derive(Debug, Default)]
pub struct Sparse {
    /// The file's name; `path` is then a made-up one.
    pub name: Option<Vec<u8>>,
    /// The file's real size.
    pub size: Option<u64>,
    /// Whether the list of pieces precedes the data (version 1.0).
    pub in_data: bool,
    /// The list of pieces (versions 0.0 and 0.1).
    pub pieces: Vec<Piece>,
    offset: Option<u64>,
}

impl Pax {
    /// Reads the records of one extended header: `LENGTH KEY=VALUE\n`.
    pub fn parse(&mut self, mut records: &[u8], max_pieces: usize) -> Result<(), TarError> {
        while !records.is_empty() {
            let space = records
                .iter()
                .take(20)
                .position(|byte| *byte == b' ')
                .ok_or(TarError::ExtendedHeader)?;
            let len = decimal(&records[..space]).ok_or(TarError::ExtendedHeader)?;
            let len = usize::try_from(len).map_err(|_| TarError::ExtendedHeader)?;
            let record = records
                .get(space + 1..len)
                .ok_or(TarError::ExtendedHeader)?;
            let record = record.strip_suffix(b"\n").ok_or(TarError::ExtendedHeader)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or(TarError::ExtendedHeader)?;
            self.record(&record[..equals], &record[equals + 1..], max_pieces)?;
            records = &records[len..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], max_pieces: usize) -> Result<(), TarError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err(TarError::ExtendedHeader);
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.record(key, value, max_pieces);
        }
        let number = |what| move || TarError::Number(what);
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            // An empty value takes back what an earlier header said.
            _ if value.is_empty() => match key {
                b"size" => self.size = None,
                b"uid" => self.uid = None,
                b"gid" => self.gid = None,
                b"mtime" => self.mtime = None,
                _ => {}
            },
            b"size" => self.size = Some(decimal(value).ok_or_else(number("size"))?),
            b"uid" => self.uid = Some(pax_id(value).ok_or_else(number("owner"))?),
            b"gid" => self.gid = Some(pax_id(value).ok_or_else(number("group"))?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(number("time"))?),
            _ => {}
        }
        Ok(())
    }
}

impl Sparse {
    fn record(&mut self, key: &[u8], value: &[u8], max_pieces: usize) -> Result<(), TarError> {
        let number = || decimal(value).ok_or(TarError::Sparse);
        match key {
            b"name" => self.name = text(value)?,
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.in_data = number()? == 1,
            b"minor" | b"numblocks" => {}
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(TarError::Sparse)?;
                self.pieces.push(Piece {
                    offset,
                    len: number()?,
                });
            }
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    let offset = decimal(offset).ok_or(TarError::Sparse)?;
                    let len = numbers.next().and_then(decimal).ok_or(TarError::Sparse)?;
                    self.pieces.push(Piece { offset, len });
                    if self.pieces.len() > max_pieces {
                        break;
                    }
                }
            }
            _ => {}
        }
        if self.pieces.len() > max_pieces {
            Err(TarError::Pieces(max_pieces))
        } else {
            Ok(())
        }
    }
}

/// A name; an empty one takes back an earlier one.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>, TarError> {
    if value.contains(&0) {
        return Err(TarError::ExtendedHeader);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// A number of decimal digits and nothing else.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn pax_id(value: &[u8]) -> Option<u32> {
    id(decimal(value).and_then(|number| i64::try_from(number).ok()))
}

/// Seconds with a fraction, which is cut after nanoseconds, towards the past.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, b"".as_slice()),
    };
    let whole = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0;
    let mut finer = false;
    for (index, digit) in fraction.iter().enumerate() {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = u32::from(digit - b'0');
        match index {
            0..9 => nanoseconds += digit * 10_u32.pow(8 - index as u32),
            _ => finer |= digit != 0,
        }
    }
    if !negative {
        return Some(Time {
            seconds: whole,
            nanoseconds,
        });
    }
    nanoseconds += u32::from(finer);
    Some(match nanoseconds {
        0 => Time {
            seconds: -whole,
            nanoseconds,
        },
        1_000_000_000 => Time {
            seconds: -whole - 1,
            nanoseconds: 0,
        },
        _ => Time {
            seconds: -whole - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_when_negative_or_fine_then_rounds_down() {
        let time = |text: &str| time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(
            time("1350244992.023960108"),
            Some((1_350_244_992, 23_960_108))
        );
        assert_eq!(time("1.5"), Some((1, 500_000_000)));
        assert_eq!(time("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time("-1.9999999999"), Some((-2, 0)));
        assert_eq!(time("-7"), Some((-7, 0)));
        assert_eq!(time("0.1234567899"), Some((0, 123_456_789)));
        assert_eq!(time("1e9"), None);
        assert_eq!(time(""), None);
        assert_eq!(time("99999999999999999999"), None);
    }

    #[test]
    fn parse_when_records_are_whole_then_keeps_them() {
        let mut pax = Pax::default();
        pax.parse(
            b"12 path=a/b\n25 SCHILY.xattr.user.x=\n\n11 uid=123\n8 size=\n",
            8,
        )
        .expect("well formed");
        assert_eq!(pax.path.as_deref(), Some(b"a/b".as_slice()));
        assert_eq!(pax.uid, Some(123));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"\n".to_vec())]);
        assert_eq!(pax.size, None);
    }

    #[test]
    fn parse_when_broken_then_is_refused() {
        for records in [
            "7 a=bc",
            "0 a=b\n",
            "99 a=b\n",
            "x a=b\n",
            "6 ab=\n6 abcd\n",
            "-1 a=b\n",
            "5 a=b\n",
        ] {
            assert!(
                Pax::default().parse(records.as_bytes(), 8).is_err(),
                "{records:?}"
            );
        }
        let many = b"34 GNU.sparse.map=0,1,2,1,4,1,6,1\n";
        assert!(matches!(
            Pax::default().parse(many, 2),
            Err(TarError::Pieces(2))
        ));
    }
}
