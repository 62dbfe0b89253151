//! Who we are: what `docker login` or `podman login` stored, in a file or with a credential helper.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{Error, Result, io_error};
use crate::manifest::printable;
use crate::reference::DOCKER_HUB;

/// What stands for Docker Hub in these files.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The longest file or helper's answer that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What is shown to a registry, or to its token server.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// What a token server gave at login, to be exchanged for tokens.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// As an `Authorization` header has it.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password { user, password } => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            Credentials::IdentityToken(_) => None,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What is stored for the registry `host`, in `file` or where Docker and Podman store such things.
pub(super) fn find(host: &str, file: Option<&Path>) -> Result<Option<Credentials>> {
    let places = match file {
        Some(file) => vec![file.to_owned()],
        None => places(),
    };
    for place in places {
        if let Some(config) = read(&place)?
            && let Some(found) = find_in(&config, host)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn places() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(home.as_ref()?.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE").map(PathBuf::from),
        docker.map(|folder| folder.join("config.json")),
        variable("XDG_RUNTIME_DIR").map(|run| Path::new(&run).join("containers/auth.json")),
        home.map(|home| home.join(".config/containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read(path: &Path) -> Result<Option<Config>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => (),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("read", path)(e)),
    }
    // The text of the error would be a piece of the file, which is full of secrets.
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        let place = format!("line {} column {} is no such JSON", e.line(), e.column());
        io_error("read", path)(io::Error::new(io::ErrorKind::InvalidData, place))
    })
}

fn find_in(config: &Config, host: &str) -> Result<Option<Credentials>> {
    let key = if host == DOCKER_HUB {
        DOCKER_HUB_KEY
    } else {
        host
    };
    let failed = |why: String| Error::Credentials {
        host: host.into(),
        why,
    };
    let helper = config
        .cred_helpers
        .iter()
        .find(|(name, _)| is_for(name, host))
        .map(|(_, helper)| helper)
        .or(config
            .creds_store
            .as_ref()
            .filter(|store| !store.is_empty()));
    if let Some(helper) = helper
        && let Some(found) = ask_helper(helper, key).map_err(failed)?
    {
        return Ok(Some(found));
    }
    let Some((_, auth)) = config.auths.iter().find(|(name, _)| is_for(name, host)) else {
        return Ok(None);
    };
    if let Some(token) = auth
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(Credentials::IdentityToken(token.clone())));
    }
    if let (Some(user), Some(password)) = (&auth.username, &auth.password) {
        return Ok(Some(Credentials::Password {
            user: user.clone(),
            password: password.clone(),
        }));
    }
    let Some(auth) = auth.auth.as_ref().filter(|auth| !auth.is_empty()) else {
        return Ok(None);
    };
    let pair = STANDARD
        .decode(auth)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) => Ok(Some(Credentials::Password {
            user: user.into(),
            password: password.trim_end_matches('\0').into(),
        })),
        None => Err(failed(
            "what is stored is not USER:PASSWORD in base64; log in again".into(),
        )),
    }
}

/// Whether a key of these files, a host or an old-fashioned URL, means `host`.
fn is_for(key: &str, host: &str) -> bool {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest);
    let name = bare.split('/').next().unwrap_or(bare);
    name == host || host == DOCKER_HUB && matches!(name, "index.docker.io" | "registry-1.docker.io")
}

/// Asks `docker-credential-NAME` (docker-credential-helpers' protocol).
fn ask_helper(name: &str, key: &str) -> std::result::Result<Option<Credentials>, String> {
    if name.contains('/') {
        return Err(format!(
            "{:?} is no name of a credential helper",
            printable(name)
        ));
    }
    let program = format!("docker-credential-{name}");
    let failed = |e: io::Error| format!("cannot run {program}: {e}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it says itself what it misses.
        let _ = stdin.write_all(format!("{key}\n").as_bytes());
    }
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        let said = printable(String::from_utf8_lossy(&bytes).trim());
        // The one thing that helpers have to say in these words.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{program} failed: {said}"));
    }
    let Answer { username, secret } =
        serde_json::from_slice(&bytes).map_err(|_| format!("{program} answered nonsense"))?;
    Ok(Some(if username == "<token>" {
        Credentials::IdentityToken(secret)
    } else {
        Credentials::Password {
            user: username,
            password: secret,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(config: &str, host: &str) -> Result<Option<Credentials>> {
        find_in(&serde_json::from_str(config).expect("JSON"), host)
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.into(),
            password: password.into(),
        })
    }

    #[test]
    fn credentials_when_stored_for_a_host_are_found_for_that_alone() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"},
            "localhost:5000": {"username": "a", "password": "b:c"},
            "https://quay.io": {"identitytoken": "tok"},
            "empty.io": {}, "odd.io": {"auth": "!!"}}, "HttpHeaders": {"x": "y"}}"#;
        let find = |host| lookup(config, host).expect(host);
        assert_eq!(find("docker.io"), password("me", "secret"));
        assert_eq!(find("localhost:5000"), password("a", "b:c"));
        assert_eq!(
            find("quay.io"),
            Some(Credentials::IdentityToken("tok".into()))
        );
        assert_eq!(find("localhost"), None);
        assert_eq!(find("quay.io.evil.io"), None);
        assert_eq!(find("empty.io"), None);
        let error = lookup(config, "odd.io").expect_err("odd").to_string();
        assert!(
            error.contains("odd.io") && error.contains("log in"),
            "{error}"
        );
    }

    #[test]
    fn credentials_when_printed_stay_secret() {
        assert_eq!(
            format!("{:?}", password("me", "secret")),
            "Some(Credentials)"
        );
    }

    #[test]
    fn helper_when_its_name_is_a_path_is_not_run() {
        let error = lookup(r#"{"credsStore": "../../bin/sh"}"#, "a.io").expect_err("path");
        assert!(error.to_string().contains("no name"), "{error}");
    }
}
