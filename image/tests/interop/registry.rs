//! A docker-registry of our own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tempfile::TempDir;

use crate::tools::{openssl, program, run};

/// What stands in `htpasswd`: `user` with the password `secret`.
const HTPASSWD: &str = "user:$2b$04$LOHF00oGVr9jtOhhx0o.v.TEp2aw8qS4hLk9Ci9zwzc3nq4TSjV7S\n";

/// A certificate authority, and a certificate of it for localhost.
pub struct Certificates {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    pub fn new(folder: &Path) -> Self {
        let path = |name: &str| folder.join(name);
        let (ca, ca_key) = (path("ca.pem"), path("ca-key.pem"));
        let (certificate, key, request) = (path("cert.pem"), path("key.pem"), path("request.pem"));
        let new_key = ["-newkey", "rsa:2048", "-nodes", "-sha256"];
        run(openssl()
            .args(["req", "-x509", "-days", "2", "-subj", "/CN=test CA"])
            .args(new_key)
            .args(["-addext", "keyUsage=critical,keyCertSign"])
            .arg("-keyout")
            .arg(&ca_key)
            .arg("-out")
            .arg(&ca));
        run(openssl()
            .args(["req", "-subj", "/CN=localhost"])
            .args(new_key)
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&request));
        let extensions = path("extensions");
        fs::write(&extensions, "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("written");
        run(openssl()
            .args(["x509", "-req", "-days", "2", "-sha256", "-CAcreateserial"])
            .arg("-in")
            .arg(&request)
            .arg("-CA")
            .arg(&ca)
            .arg("-CAkey")
            .arg(&ca_key)
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(&certificate));
        Certificates {
            ca,
            certificate,
            key,
        }
    }
}

/// How it lets people in.
pub enum Auth<'a> {
    None,
    Htpasswd,
    Token {
        realm: String,
        certificate: &'a Path,
    },
}

/// A running registry, which ends with this.
pub struct Registry {
    child: Child,
    pub port: u16,
    _folder: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::with(&Auth::None, None)
    }

    pub fn with(auth: &Auth<'_>, tls: Option<&Certificates>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let file = |name: &str| folder.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
            file("data").display()
        );
        if let Some(tls) = tls {
            config += &format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                tls.certificate.display(),
                tls.key.display()
            );
        }
        match auth {
            Auth::None => (),
            Auth::Htpasswd => {
                fs::write(file("htpasswd"), HTPASSWD).expect("written");
                config += &format!(
                    "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                    file("htpasswd").display()
                );
            }
            Auth::Token { realm, certificate } => {
                config += &format!(
                    "auth:\n  token:\n    realm: {realm}\n    service: test\n    issuer: test\n    \
                     rootcertbundle: {}\n",
                    certificate.display()
                );
            }
        }
        fs::write(file("config.yml"), config).expect("written");
        let mut child = program("docker-registry", "docker-registry")
            .arg("serve")
            .arg(file("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let port = loop {
            let mut line = String::new();
            let n = log.read_line(&mut line).expect("log");
            assert!(n > 0, "docker-registry ended");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().expect("port");
            }
        };
        // It must not wait for anybody to read its log.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Registry {
            child,
            port,
            _folder: folder,
        }
    }

    /// `localhost:PORT/name`.
    pub fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
