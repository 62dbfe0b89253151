//! Why a VM could not start or go on.

use std::io;

use bulkhead_engine::artifacts::Missing;

/// Why a session could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A part of Bulkhead is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The snapshot.
    #[error(transparent)]
    Engine(#[from] bulkhead_engine::Error),
    /// Something that the host did not let us do.
    #[error("cannot {what}: {source}")]
    Host {
        /// What it was, with its object.
        what: String,
        /// What the host said.
        source: io::Error,
    },
}

/// Adds what was being done to an error of the host.
pub fn cannot<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> SessionError {
    let what = what.into();
    |source| SessionError::Host {
        what,
        source: source.into(),
    }
}
