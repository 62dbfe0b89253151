//! A restored guest on its way to know that it is one. That is done beside the session, as the terminal is the
//! guest's meanwhile.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use bulkhead_engine::Error;
use bulkhead_engine::snapshots::{Snapshot, wake};
use bulkhead_vmm::timing;

use super::error::{SessionError, cannot};

/// Somebody who tells the guest. The descriptor is readable when that is done.
pub struct Waking {
    done: PipeReader,
    thread: JoinHandle<Result<Option<u64>, Error>>,
}

impl Waking {
    /// Begins to tell the agent of the VM whose sockets are in `directory`, if it can have one at `agent`.
    pub fn begin(
        snapshot: Snapshot,
        directory: PathBuf,
        agent: Option<PathBuf>,
    ) -> Result<Self, SessionError> {
        let (done, end) = io::pipe().map_err(cannot("make a pipe"))?;
        let thread = thread::Builder::new()
            .name("waking".to_owned())
            .spawn(move || {
                let woken = wake(snapshot, &directory, agent.as_deref());
                let now = timing::now();
                drop(end);
                woken.map(|is_told| is_told.then_some(now))
            })
            .map_err(cannot("start a thread"))?;
        Ok(Waking { done, thread })
    }

    /// When the guest's agent knew, in nanoseconds of `CLOCK_MONOTONIC`; `None` if the guest has none.
    pub fn finish(self) -> Result<Option<u64>, Error> {
        match self.thread.join() {
            Ok(woken) => woken,
            Err(_) => Err(Error::Invalid(
                "the guest was not told that it was restored".to_owned(),
            )),
        }
    }
}

impl AsFd for Waking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}
