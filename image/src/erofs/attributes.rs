//! What an inode has besides its contents: owner, permissions, time, extended attributes.

use super::format::{NAME_LEN, XATTR_HEADER_LEN};

/// A moment, counted from 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

/// What an inode has besides its contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions: the lower twelve bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// Name prefixes that have a number on the disk. An ACL's whole name is its prefix.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
const ACLS: [u8; 2] = [2, 3];

/// What overlayfs keeps in extended attributes. In the lower layer of an overlay they would be taken
/// as orders, from whoever made the image.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// A file's extended attributes, encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs(Box<[u8]>);

/// Why extended attributes cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// A name is too long.
    #[error("the name of an extended attribute is longer than {NAME_LEN} bytes")]
    Name,
    /// All of them together are too much.
    #[error("its extended attributes are larger than {0} bytes")]
    Size(usize),
}

impl Xattrs {
    /// Most bytes of one inode's extended attributes: what Linux lets a program list.
    pub const MAX_LEN: usize = 64 << 10;

    /// Encodes names and values, sorted; of equal names the last counts. Left out are names of
    /// classes that EROFS does not have, and those that overlayfs would obey.
    pub fn encode(pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<Self, XattrError> {
        if pairs.is_empty() {
            return Ok(Self::default());
        }
        let mut known = std::collections::BTreeMap::new();
        for (name, value) in pairs {
            if let Some((prefix, rest)) = split(name) {
                if rest.len() > NAME_LEN {
                    return Err(XattrError::Name);
                }
                known.insert((prefix, rest), value);
            }
        }
        let mut entries = Vec::new();
        for ((prefix, rest), value) in known {
            if entries.len() + 4 + rest.len() + value.len() + 3 > Self::MAX_LEN {
                return Err(XattrError::Size(Self::MAX_LEN));
            }
            entries.extend([rest.len() as u8, prefix]);
            entries.extend((value.len() as u16).to_le_bytes());
            entries.extend_from_slice(rest);
            entries.extend_from_slice(value);
            entries.resize(entries.len().next_multiple_of(4), 0);
        }
        Ok(Self(entries.into_boxed_slice()))
    }

    /// Bytes they take behind an inode.
    pub fn len(&self) -> usize {
        if self.0.is_empty() {
            0
        } else {
            XATTR_HEADER_LEN + self.0.len()
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What an inode says of their size.
    pub(super) fn count(&self) -> u16 {
        if self.0.is_empty() {
            0
        } else {
            (1 + self.0.len() / 4) as u16
        }
    }

    pub(super) fn entries(&self) -> &[u8] {
        &self.0
    }
}

/// The prefix of a name that has this number.
pub(super) fn prefix(number: u8) -> Option<&'static [u8]> {
    let mut all = PREFIXES.iter();
    all.find(|(_, other)| *other == number)
        .map(|(prefix, _)| *prefix)
}

/// A name as the number of its prefix and the rest.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    PREFIXES.iter().find_map(|&(prefix, number)| {
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() == ACLS.contains(&number)).then_some((number, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
        (name.into(), value.into())
    }

    #[test]
    fn encode_when_names_repeat_or_are_foreign_then_keeps_the_last_and_the_known() {
        let xattrs = Xattrs::encode(&[
            pair("user.b", "old"),
            pair("security.capability", "cap"),
            pair("system.posix_acl_access", "acl"),
            pair("user.b", "new"),
            pair("system.nfs4_acl", "x"),
            pair("user.", "x"),
            pair("trusted.overlay.opaque", "y"),
        ])
        .expect("fits");
        assert_eq!(
            xattrs.entries(),
            b"\x01\x01\x03\0bnew\0\x02\x03\0acl\0\x0a\x06\x03\0capabilitycap\0\0\0".as_slice()
        );
        assert_eq!(xattrs.len() % 4, 0);
        assert_eq!(usize::from(xattrs.count()), 1 + (xattrs.len() - 12) / 4);
    }

    #[test]
    fn encode_when_too_large_then_is_refused() {
        let value = "x".repeat(Xattrs::MAX_LEN);
        assert_eq!(
            Xattrs::encode(&[pair("user.a", &value)]),
            Err(XattrError::Size(Xattrs::MAX_LEN))
        );
        let name = format!("user.{}", "n".repeat(256));
        assert_eq!(Xattrs::encode(&[pair(&name, "")]), Err(XattrError::Name));
    }
}
