//! Who decides about system calls in a program's stead (`SCMP_ACT_NOTIFY`), and how it gets the descriptor by which it does
//! (runtime-spec config-linux.md#seccomp, "The Container Process State").

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Pid;
use serde::Serialize;

use crate::create::Bundle;
use crate::error::Error;
use crate::spec::{self, Spec};
use crate::state::{State, Status};

/// Who is told of each process that is put under the filter.
#[derive(Debug)]
pub(crate) struct Listener {
    path: PathBuf,
    metadata: String,
    id: String,
    bundle: PathBuf,
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: State,
}

impl Listener {
    /// Who listens to a container's filter; none if nobody needs to.
    pub fn read(id: &str, spec: &Spec, bundle: Option<&Bundle>) -> Result<Option<Self>, Error> {
        let filter = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
        let Some(filter) = filter.filter(|filter| {
            let asks = |rule: &spec::SeccompRule| rule.action == spec::SeccompAction::Notify;
            filter.syscalls.iter().any(asks)
        }) else {
            return Ok(None);
        };
        let field = "linux.seccomp.listenerPath";
        let path = PathBuf::from(filter.listener_path.as_deref().unwrap_or_default());
        if !path.is_absolute() {
            return Err(Error::invalid(field, "it is no absolute path"));
        }
        let Some(bundle) = bundle else {
            let problem = "who listens is told of the bundle, and there is none here";
            return Err(Error::invalid(field, problem));
        };
        Ok(Some(Listener {
            path,
            metadata: filter.listener_metadata.clone().unwrap_or_default(),
            id: id.to_owned(),
            bundle: bundle.path.clone(),
            annotations: spec.annotations.clone(),
        }))
    }

    /// Gives it the descriptor of a process, of a container with this first process.
    pub fn tell(&self, descriptor: &OwnedFd, pid: Pid, first: Pid) -> Result<(), Error> {
        let is_first = pid == first;
        let state = ProcessState {
            oci_version: spec::VERSION,
            fds: ["seccompFd"],
            pid: pid.as_raw_pid(),
            metadata: &self.metadata,
            state: State {
                oci_version: spec::VERSION.into(),
                id: self.id.clone(),
                status: if is_first {
                    Status::Creating
                } else {
                    Status::Running
                },
                pid: Some(first.as_raw_pid()),
                bundle: self.bundle.clone(),
                annotations: self.annotations.clone(),
            },
        };
        let told = UnixStream::connect(&self.path).and_then(|socket| {
            let text = serde_json::to_vec(&state)?;
            let mut rest = &text[..];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let descriptors = [descriptor.as_fd()];
            while !rest.is_empty() {
                // The descriptor goes with the first part.
                let mut control = SendAncillaryBuffer::new(&mut space);
                if rest.len() == text.len() {
                    control.push(SendAncillaryMessage::ScmRights(&descriptors));
                }
                let parts = [IoSlice::new(rest)];
                match sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL) {
                    Err(Errno::INTR) => {}
                    sent => rest = rest.get(sent?..).unwrap_or_default(),
                }
            }
            Ok(())
        });
        told.map_err(|e| {
            Error::step(
                "tell the seccomp listener at",
                self.path.display().to_string(),
                e,
            )
        })
    }
}
