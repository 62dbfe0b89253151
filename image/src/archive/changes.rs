//! `--change`: Dockerfile instructions that alter an image's configuration.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The configuration (OCI image-spec config.md, `config`) that these instructions make of nothing.
pub(super) fn apply(changes: &[String]) -> Result<Value> {
    let mut config = Map::new();
    for change in changes {
        instruction(&mut config, change.trim())
            .map_err(|why| Error::Change(change.clone(), why))?;
    }
    Ok(Value::Object(config))
}

fn instruction(config: &mut Map<String, Value>, text: &str) -> std::result::Result<(), String> {
    let (name, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("it says nothing".into());
    }
    match name.to_ascii_uppercase().as_str() {
        "CMD" => set(config, "Cmd", command(rest)?),
        "ENTRYPOINT" => set(config, "Entrypoint", command(rest)?),
        "WORKDIR" => set(config, "WorkingDir", rest.into()),
        "USER" => set(config, "User", rest.into()),
        "STOPSIGNAL" => set(config, "StopSignal", rest.into()),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                if number.parse::<u16>().is_err() || !["tcp", "udp", "sctp"].contains(&protocol) {
                    return Err(format!("{port:?} is no port"));
                }
                insert(
                    config,
                    "ExposedPorts",
                    format!("{number}/{protocol}"),
                    json!({}),
                );
            }
        }
        "VOLUME" => {
            let volumes = match list(rest) {
                Some(volumes) => volumes,
                None => rest.split_whitespace().map(str::to_owned).collect(),
            };
            for volume in volumes {
                insert(config, "Volumes", volume, json!({}));
            }
        }
        "LABEL" => {
            for (key, value) in pairs(rest)? {
                insert(config, "Labels", key, value.into());
            }
        }
        "ENV" => {
            for (key, value) in pairs(rest)? {
                let all = config.entry("Env").or_insert_with(|| json!([]));
                let begin = format!("{key}=");
                if let Value::Array(all) = all {
                    all.retain(|old| !old.as_str().is_some_and(|old| old.starts_with(&begin)));
                    all.push(format!("{begin}{value}").into());
                }
            }
        }
        _ => {
            return Err("only CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR can be changed".into());
        }
    }
    Ok(())
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.into(), value);
}

fn insert(config: &mut Map<String, Value>, key: &str, name: String, value: Value) {
    let all = config.entry(key).or_insert_with(|| json!({}));
    if let Value::Object(all) = all {
        all.insert(name, value);
    }
}

/// `["a", "b"]`.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A list, or words for a shell.
fn command(text: &str) -> std::result::Result<Value, String> {
    match list(text) {
        Some(words) if words.is_empty() => Err("the list is empty".into()),
        Some(words) => Ok(json!(words)),
        None => Ok(json!(["/bin/sh", "-c", text])),
    }
}

/// `A=b C="d e"`, or one pair as `A b c`.
fn pairs(text: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    let is_pair = |word: &String| word.find('=').is_some_and(|at| at > 0);
    if words.first().is_some_and(is_pair) {
        return words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
                _ => Err(format!("{word:?} is no NAME=VALUE")),
            })
            .collect();
    }
    match text.split_once([' ', '\t']) {
        Some((key, value)) => Ok(vec![(key.into(), value.trim().into())]),
        None => Err(format!("{text:?} is no NAME=VALUE")),
    }
}

/// Words as a shell separates them: quotes and backslashes keep blanks together.
fn words(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_every_kind_make_a_configuration() {
        let changes = [
            r#"CMD ["/bin/echo", "a b"]"#,
            "entrypoint exec top",
            r#"ENV A=1 B="2 3" C=a\ b"#,
            "ENV A one",
            "ENV D two words",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "VOLUME /a /b",
            "LABEL x.y=z",
            "USER 1000:1000",
            "WORKDIR /srv",
            "STOPSIGNAL SIGINT",
        ]
        .map(str::to_owned);
        assert_eq!(
            apply(&changes).expect("sound"),
            json!({
                "Cmd": ["/bin/echo", "a b"],
                "Entrypoint": ["/bin/sh", "-c", "exec top"],
                "Env": ["B=2 3", "C=a b", "A=one", "D=two words"],
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/data": {}, "/a": {}, "/b": {}},
                "Labels": {"x.y": "z"},
                "User": "1000:1000",
                "WorkingDir": "/srv",
                "StopSignal": "SIGINT",
            })
        );
    }

    #[test]
    fn change_when_it_is_none_is_refused_in_a_sentence() {
        for bad in [
            "",
            "CMD",
            "RUN make",
            "EXPOSE many",
            "ENV A",
            "ENV A=\"b",
            "LABEL =x",
            "CMD []",
        ] {
            let error = apply(&[bad.to_owned()]).expect_err(bad).to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
