//! What a registry asks for: the `WWW-Authenticate` header (RFC 9110 §11.6.1), and the tokens behind it
//! (distribution's token authentication).

use serde::Deserialize;

/// Whom to ask for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Realm {
    pub url: String,
    pub service: Option<String>,
    /// What the registry itself says a token has to be good for.
    pub scope: Option<String>,
}

/// The way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Realm),
}

/// Finds a challenge that we can answer. A header may hold several, and there may be several headers.
/// Tokens are preferred: they can do less.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in split(header) {
            if scheme.eq_ignore_ascii_case("bearer") {
                let get = |name: &str| {
                    let found = parameters
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone())
                };
                if let Some(url) = get("realm") {
                    return Some(Challenge::Bearer(Realm {
                        url,
                        service: get("service"),
                        scope: get("scope"),
                    }));
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// Schemes, each with its parameters. What cannot be read ends the list.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let Some((value, after)) = value_of(value.trim_start_matches([' ', '\t'])) else {
                    break;
                };
                let Some((_, parameters)) = challenges.last_mut() else {
                    break;
                };
                parameters.push((word.into(), value));
                after
            }
            None => {
                challenges.push((word.into(), Vec::new()));
                after
            }
        }
        .trim_start_matches([' ', '\t', ',']);
    }
    challenges
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return Some((text[..end].into(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

/// The answer of a token server. `access_token` is what OAuth calls the same.
#[derive(Deserialize)]
pub(super) struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    pub(super) fn into_string(self) -> Option<String> {
        self.token
            .or(self.access_token)
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
    }
}

/// For a query, or a form: everything but letters, digits and `-._~`.
pub(super) fn percent_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(url: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer(Realm {
            url: url.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }))
    }

    #[test]
    fn challenge_of_any_known_form_is_read() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.x/token",service="registry.x",scope="repository:a/b:pull,push""#,
                bearer(
                    "https://auth.x/token",
                    Some("registry.x"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                r#"bearer realm=https://a/t"#,
                bearer("https://a/t", None, None),
            ),
            (r#"Basic realm="a \"b\", c""#, Some(Challenge::Basic)),
            (r#"Basic"#, Some(Challenge::Basic)),
            (
                r#"Basic realm="x", Bearer realm="https://a/t" , service = "s""#,
                bearer("https://a/t", Some("s"), None),
            ),
            (r#"Negotiate, Basic realm=x"#, Some(Challenge::Basic)),
            (r#"Bearer service="x""#, None),
            (r#"Bearer realm="x"#, None),
            ("Digest", None),
            ("", None),
        ] {
            assert_eq!(parse([header].into_iter()), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn challenge_when_anything_never_panics(header in "[Bb]asic[ ,=\"\\\\a]{0,20}|\\PC{0,40}") {
            parse([header.as_str()].into_iter());
        }
    }

    #[test]
    fn percent_encoding_leaves_nothing_special() {
        assert_eq!(percent_encode("a b&c=d/é"), "a%20b%26c%3Dd%2F%C3%A9");
    }
}
