//! Names of entries: made plain, and told apart from whiteouts (OCI image-spec layer.md#whiteouts).

use super::error::Problem;
use super::limits::Limits;
use crate::erofs::NAME_LEN;

/// What the name of an entry asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'p> {
    /// The entry itself.
    Entry,
    /// Lower layers have no such path.
    Whiteout {
        /// The directory it is in.
        directory: &'p [u8],
        /// What is hidden in it.
        name: &'p [u8],
    },
    /// Lower layers have nothing in this directory.
    Opaque(&'p [u8]),
    /// Nothing: it is a file system's own.
    Ignored,
}

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Makes a name plain: parts with one slash between them, none before or behind. An absolute one
/// becomes relative to the image's root, which is empty.
pub fn normalise(name: &[u8], plain: &mut Vec<u8>, limits: &Limits) -> Result<(), Problem> {
    plain.clear();
    if name.is_empty() || name.contains(&0) {
        return Err(Problem::Name);
    }
    let mut depth = 0;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Problem::Name),
            _ if part.len() > NAME_LEN => return Err(Problem::NameLength),
            _ => {}
        }
        if !plain.is_empty() {
            plain.push(b'/');
        }
        plain.extend_from_slice(part);
        depth += 1;
    }
    if plain.len() > limits.path_len {
        return Err(Problem::PathLength(limits.path_len));
    }
    if depth > limits.depth {
        Err(Problem::Depth(limits.depth))
    } else {
        Ok(())
    }
}

/// A plain path's directory and its last part.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// What the entry with this plain path is for.
pub fn meaning(path: &[u8]) -> Result<Meaning<'_>, Problem> {
    let (directory, name) = split(path);
    for part in directory.split(|byte| *byte == b'/') {
        if part.starts_with(WHITEOUT_META) {
            return Ok(Meaning::Ignored);
        }
        if part.starts_with(WHITEOUT) {
            return Err(Problem::Whiteout);
        }
    }
    if name == OPAQUE {
        return Ok(Meaning::Opaque(directory));
    }
    if name.starts_with(WHITEOUT_META) {
        return Ok(Meaning::Ignored);
    }
    match name.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(Problem::Whiteout),
        Some(name) => Ok(Meaning::Whiteout { directory, name }),
        None => Ok(Meaning::Entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(name: &str) -> Result<String, Problem> {
        let mut plain = Vec::new();
        normalise(name.as_bytes(), &mut plain, &Limits::default())?;
        Ok(String::from_utf8(plain).expect("it was text"))
    }

    #[test]
    fn normalise_when_odd_but_harmless_then_is_plain() {
        for (name, expected) in [
            ("./a//b/", "a/b"),
            ("/etc/./passwd", "etc/passwd"),
            ("./", ""),
            ("/", ""),
            ("a", "a"),
        ] {
            assert_eq!(plain(name).expect("harmless"), expected);
        }
    }

    #[test]
    fn normalise_when_it_leads_out_or_is_too_long_then_is_refused() {
        for name in ["..", "a/../../b", "a/..", "", "a\0b"] {
            assert!(matches!(plain(name), Err(Problem::Name)), "{name:?}");
        }
        assert!(matches!(plain(&"n".repeat(256)), Err(Problem::NameLength)));
        assert!(matches!(plain(&"a/".repeat(1025)), Err(Problem::Depth(_))));
        assert!(matches!(
            plain(&"long/".repeat(1000)),
            Err(Problem::PathLength(_))
        ));
    }

    #[test]
    fn meaning_when_reserved_then_is_no_entry() {
        let hidden = Meaning::Whiteout {
            directory: b"a",
            name: b"b",
        };
        assert_eq!(meaning(b"a/.wh.b").expect("fine"), hidden);
        assert_eq!(
            meaning(b"a/b/.wh..wh..opq").expect("fine"),
            Meaning::Opaque(b"a/b")
        );
        assert_eq!(
            meaning(b".wh..wh..opq").expect("fine"),
            Meaning::Opaque(b"")
        );
        assert_eq!(
            meaning(b".wh..wh.plnk/1.2").expect("fine"),
            Meaning::Ignored
        );
        assert_eq!(meaning(b"a/.why").expect("fine"), Meaning::Entry);
        for path in [b".wh.".as_slice(), b"a/.wh..", b".wh...", b".wh.a/b"] {
            assert!(matches!(meaning(path), Err(Problem::Whiteout)));
        }
    }
}
