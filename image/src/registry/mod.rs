//! Registries: pulling and pushing by the OCI distribution-spec, which Docker's registries follow too.

mod challenge;
mod client;
mod credentials;
mod pull;
mod push;
mod retry;
mod tls;

use std::path::PathBuf;

pub use credentials::Credentials;
pub use pull::{PullOptions, pull};
pub use push::{PushOptions, push};

/// How to get to a registry, and into it.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Who we are. If not given, what Docker or Podman stored for the registry.
    pub credentials: Option<Credentials>,
    /// Believe any certificate, and speak plain HTTP where nothing else is spoken. Plain HTTP with this
    /// machine itself is always allowed.
    pub insecure: bool,
    /// Files with further certificate authorities (PEM), besides the system's (or `SSL_CERT_FILE`'s)
    /// and those in Docker's `certs.d`.
    pub ca: Vec<PathBuf>,
    /// Docker's `config.json`, if it lies elsewhere.
    pub config: Option<PathBuf>,
}
