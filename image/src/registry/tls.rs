//! Whom to believe: the certificate authorities of a registry, and our own certificate.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::Access;
use crate::error::{Result, io_error};

/// Where systems keep the authorities they believe, all in one file.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The longest file of certificates that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The TLS of connections to the registry `host` (with its port, if it has one in its name).
pub(super) fn config(host: &str, access: &Access) -> Result<TlsConfig> {
    let mut roots = Vec::new();
    // OpenSSL's variable, which programs in Go heed too, in place of the system's file.
    let bundle = match env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        Some(path) => Some(PathBuf::from(path)),
        None => BUNDLES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file()),
    };
    for path in bundle.iter().chain(&access.ca) {
        certificates(path, &mut roots)?;
    }
    let mut client = None;
    for folder in folders(host) {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            match path.extension().and_then(OsStr::to_str) {
                Some("crt") => certificates(&path, &mut roots)?,
                Some("cert") => client = Some(client_certificate(&path)?),
                _ => (),
            }
        }
    }
    let roots = if roots.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::Specific(Arc::new(roots))
    };
    Ok(TlsConfig::builder()
        .root_certs(roots)
        .client_cert(client)
        .disable_verification(access.insecure)
        .build())
}

/// Docker's and Podman's folders for one registry.
fn folders(host: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["/etc/docker/certs.d", "/etc/containers/certs.d"]
        .map(PathBuf::from)
        .into();
    if let Some(home) = env::var_os("HOME") {
        roots.push(Path::new(&home).join(".docker/certs.d"));
        roots.push(Path::new(&home).join(".config/containers/certs.d"));
    }
    roots.into_iter().map(|root| root.join(host)).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(io_error("read", path))?;
    Ok(bytes)
}

fn certificates(path: &Path, into: &mut Vec<Certificate<'static>>) -> Result<()> {
    let before = into.len();
    for item in parse_pem(&read(path)?) {
        match item {
            Ok(PemItem::Certificate(certificate)) => into.push(certificate),
            Ok(_) => (),
            Err(e) => return Err(bad(path, &e.to_string())),
        }
    }
    if into.len() == before {
        return Err(bad(path, "there is no PEM certificate in it"));
    }
    Ok(())
}

/// `client.cert`, whose key is in `client.key`.
fn client_certificate(path: &Path) -> Result<ClientCert> {
    let mut chain = Vec::new();
    certificates(path, &mut chain)?;
    let key = path.with_extension("key");
    let key = PrivateKey::from_pem(&read(&key)?).map_err(|e| bad(&key, &e.to_string()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn bad(path: &Path, why: &str) -> crate::Error {
    io_error("use", path)(io::Error::new(io::ErrorKind::InvalidData, why))
}
