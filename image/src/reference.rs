//! The names of images: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.
//!
//! What a name leaves out is filled in as Docker does it: the host is Docker Hub, a one-word path lies
//! in its `library`, the tag is `latest` unless there is a digest. The grammar is that of the OCI
//! distribution-spec (#pulling-manifests) and of Docker's reference package.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The host that names without one mean.
pub const DOCKER_HUB: &str = "docker.io";
const LIBRARY: &str = "library/";
const LATEST: &str = "latest";
/// The longest `HOST/PATH`.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// The name of an image, with nothing left out. Where there are a tag and a digest, the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why something is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name of an image: {problem}")]
pub struct ReferenceError {
    /// What was given, shortened if it is long.
    pub name: String,
    /// What is wrong with it.
    pub problem: ReferenceProblem,
}

/// What can be wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceProblem {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Host and path are too long.
    #[error("host and path have more than {MAX_NAME} characters")]
    TooLong,
    /// Docker's grammar has no capitals in paths.
    #[error("its path must be in lower case")]
    Capitals,
    /// Anything else in the path.
    #[error(
        "its path must be words of a-z and 0-9, joined within by '.', '_', '__' or dashes, between slashes"
    )]
    Path,
    /// A host that is none.
    #[error("the part before the first slash is no host name with an optional port")]
    Host,
    /// A tag that is none.
    #[error(
        "a tag has 1 to {MAX_TAG} of a-z, A-Z, 0-9, '_', '.' and '-', and begins with none of the last two"
    )]
    Tag,
    /// A digest that is none.
    #[error("{0}")]
    Digest(#[from] DigestError),
    /// 64 hexadecimal digits.
    #[error("64 hexadecimal digits are an ID; put sha256: in front")]
    LooksLikeId,
}

impl Reference {
    /// The registry's host, with its port if it was given: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository on that host: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag. There is a tag or a digest, or both.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and path, `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// Host and path as people write them: `busybox`.
    pub fn familiar_repository(&self) -> String {
        if self.host != DOCKER_HUB {
            return self.repository();
        }
        // What is left must be read as the same path again, and not as a host's name and more.
        match (self.path.strip_prefix(LIBRARY), self.path.split_once('/')) {
            (Some(word), _) if !word.contains('/') => word.into(),
            (_, Some((first, _))) if !means_host(first) => self.path.clone(),
            _ => self.repository(),
        }
    }

    /// The whole as people write it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    /// What a registry is asked for in this repository: the digest if there is one, or else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => LATEST.into(),
        }
    }

    /// The same repository with this digest and no tag.
    pub fn at(&self, digest: Digest) -> Reference {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same without its digest, if it has a tag too: the name that an image gets when it was asked
    /// for by both.
    pub fn without_digest(&self) -> Option<Reference> {
        self.tag.as_ref()?;
        Some(Reference {
            digest: None,
            ..self.clone()
        })
    }

    fn suffix(&self) -> String {
        let mut suffix = String::new();
        if let Some(tag) = &self.tag {
            suffix = format!(":{tag}");
        }
        if let Some(digest) = &self.digest {
            suffix = format!("{suffix}@{digest}");
        }
        suffix
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError {
            name: text.chars().take(300).collect(),
            problem,
        })
    }
}

impl fmt::Display for Reference {
    /// The whole name with nothing left out: `docker.io/library/busybox:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.path, self.suffix())
    }
}

fn parse(text: &str) -> Result<Reference, ReferenceProblem> {
    if text.is_empty() {
        return Err(ReferenceProblem::Empty);
    }
    if Digest::from_hex(text).is_ok() {
        return Err(ReferenceProblem::LooksLikeId);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse()?)),
        None => (text, None),
    };
    // A colon behind the last slash begins a tag; one before it belongs to the host's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(ReferenceProblem::Tag);
    }
    let (host, path) = match name.split_once('/') {
        Some((first, path)) if means_host(first) => {
            if !is_host(first) {
                return Err(ReferenceProblem::Host);
            }
            (first, path)
        }
        _ => (DOCKER_HUB, name),
    };
    let host = if host == "index.docker.io" {
        DOCKER_HUB
    } else {
        host
    };
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceProblem::Capitals);
    }
    if !path.split('/').all(is_path_component) {
        return Err(ReferenceProblem::Path);
    }
    let path = if host == DOCKER_HUB && !path.contains('/') {
        format!("{LIBRARY}{path}")
    } else {
        path.into()
    };
    if host.len() + 1 + path.len() > MAX_NAME {
        return Err(ReferenceProblem::TooLong);
    }
    let tag = tag.map(str::to_owned);
    Ok(Reference {
        host: host.into(),
        path,
        tag: tag.or_else(|| digest.is_none().then(|| LATEST.into())),
        digest,
    })
}

/// Whether what stands before the first slash is a host and not a part of the path.
fn means_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':', '['])
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return rest.is_empty(),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// A tag: `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
fn is_tag(text: &str) -> bool {
    text.len() <= MAX_TAG
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Words of letters and digits, joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && bytes.split(|&byte| is_word(byte)).all(|joint| {
            matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|&b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn whole(text: &str) -> String {
        text.parse::<Reference>().expect(text).to_string()
    }

    #[test]
    fn reference_when_parts_are_left_out_gets_dockers() {
        for (given, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.35", "docker.io/library/busybox:1.35"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("a/b/c:x", "docker.io/a/b/c:x"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("quay.io/a/b", "quay.io/a/b:latest"),
            ("REGISTRY/a", "REGISTRY/a:latest"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("[fe80::1]/a", "[fe80::1]/a:latest"),
            ("a__b/c--d.e_f0", "docker.io/a__b/c--d.e_f0:latest"),
        ] {
            assert_eq!(whole(given), expected);
        }
        assert_eq!(
            whole(&format!("a@sha256:{HEX}")),
            format!("docker.io/library/a@sha256:{HEX}")
        );
        assert_eq!(
            whole(&format!("h.x:1/a:t@sha256:{HEX}")),
            format!("h.x:1/a:t@sha256:{HEX}")
        );
    }

    #[test]
    fn reference_when_malformed_is_refused_in_a_sentence() {
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "Busybox",
            "a/B",
            "a:",
            "a:-x",
            "a:.x",
            "a b",
            "a:b c",
            "a@",
            "a@sha256:12",
            "a..b",
            "a___b",
            "a.-b",
            "-a",
            "a-",
            "a_",
            "localhost:99999/a",
            "localhost:/a:b:c",
            "ex ample.com/a",
            "-x.com/a",
            "[::1/a",
            "[::1]x/a",
            "[zz]/a",
            ".../a",
            "../a",
            "a/../b",
            "http://a.b/c",
            "a\n",
            "é",
            HEX,
            &"a".repeat(256),
            &format!("a:{}", "b".repeat(129)),
        ] {
            let error = bad.parse::<Reference>().expect_err(bad).to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn reference_when_shown_is_familiar() {
        for (given, expected) in [
            ("docker.io/library/busybox", "busybox:latest"),
            ("docker.io/library/a/b", "library/a/b:latest"),
            ("docker.io/me/app:1", "me/app:1"),
            ("docker.io/me.org/app:1", "docker.io/me.org/app:1"),
            ("docker.io/localhost/app:1", "docker.io/localhost/app:1"),
            (
                "localhost:5000/library/a",
                "localhost:5000/library/a:latest",
            ),
        ] {
            let reference: Reference = given.parse().expect(given);
            assert_eq!(reference.familiar(), expected);
        }
    }

    proptest! {
        #[test]
        fn reference_when_printed_parses_to_the_same(
            host in prop::option::of("(localhost|[a-z]{1,8}\\.[a-z]{2,3}|\\[::1\\]|10\\.0\\.0\\.1)(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,9}(([._]|__|-{1,3})[a-z0-9]{1,9}){0,2}(/[a-z0-9]{1,9}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in any::<bool>(),
        ) {
            let host = host.or_else(|| path.contains('.').then(|| DOCKER_HUB.into()));
            let mut text = host.map(|host| format!("{host}/")).unwrap_or_default();
            text.push_str(&path);
            if let Some(tag) = tag { text = format!("{text}:{tag}"); }
            if digest { text = format!("{text}@sha256:{HEX}"); }
            let reference: Reference = text.parse().expect("valid");
            prop_assert_eq!(&reference.to_string().parse::<Reference>().expect("whole"), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().expect("familiar"), &reference);
        }

        #[test]
        fn reference_when_anything_never_panics_and_stays_within_its_alphabet(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(reference.to_string().bytes().all(|b| b.is_ascii_graphic()));
                prop_assert!(!reference.path().split('/').any(|part| part.is_empty() || part.starts_with('.')));
            }
        }
    }
}
