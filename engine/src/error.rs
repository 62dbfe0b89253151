//! Why something could not be done.

use std::io;

use serde::{Deserialize, Serialize};

use crate::artifacts::Missing;

/// Why something could not be done: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of Bulkhead is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Something about images.
    #[error(transparent)]
    Image(#[from] bulkhead_image::Error),
    /// Something about a container on the host.
    #[error(transparent)]
    Container(#[from] bulkhead_container::Error),
    /// Something about a virtual machine's snapshot.
    #[error(transparent)]
    Snapshot(#[from] bulkhead_vmm::snapshot::SnapshotError),
    /// Something that the host did not let us do.
    #[error("cannot {what}: {source}")]
    Host {
        /// What it was, with its object.
        what: String,
        /// What the host said.
        source: io::Error,
    },
    /// A name or ID that is none.
    #[error("no such container: {0} (`bulkhead ps -a` lists them)")]
    NoSuchContainer(String),
    /// The start of more than one ID.
    #[error("`{0}` is the start of more than one container's ID: give more of it")]
    Ambiguous(String),
    /// A name that another container has.
    #[error("the name `{name}` is in use by container {id}: remove or rename that one first")]
    NameInUse {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// The container is not in the state that this needs.
    #[error("container {id} is {is}: {needs}")]
    WrongState {
        /// Its short ID.
        id: String,
        /// What it is.
        is: &'static str,
        /// What to do about it.
        needs: &'static str,
    },
    /// What was asked for is not possible.
    #[error("{0}")]
    Invalid(String),
    /// The container could not be started.
    #[error("{}", .0.message)]
    Start(Failure),
    /// The agent in the guest refused.
    #[error("{message}")]
    Agent {
        /// The HTTP status.
        status: u16,
        /// What the agent says.
        message: String,
    },
}

impl Error {
    /// The exit code for it, as Docker's: 126 for a program that cannot be executed, 127 for one that is
    /// not there, 125 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Start(failure) => failure.exit_code,
            _ => 125,
        }
    }
}

/// Why a container did not start, as a monitor tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For the command's end: 125, 126 or 127.
    pub exit_code: u8,
    /// One sentence.
    pub message: String,
}

/// Adds what was being done to an error of the host.
pub(crate) fn cannot<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    |source| Error::Host {
        what,
        source: source.into(),
    }
}
