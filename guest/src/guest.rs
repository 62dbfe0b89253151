//! The guest: all the agent knows between two events.

use std::io;

use bulkhead_container::Spare;
use bulkhead_protocol::{BootTimings, Restored, Shutdown};

use crate::containers::Containers;
use crate::containers::rootfs::LastResort;
use crate::files::Copies;
use crate::http::Response;
use crate::server::poll::Poll;
use crate::server::slab::{Key, Slab};
use crate::streams::client::Stream;
use crate::streams::program::Program;
use crate::streams::subscriber::Subscriber;

/// See the module. Its methods are where their subjects are: [`crate::api`], [`crate::containers`],
/// [`crate::streams`].
pub struct Guest {
    /// What is waited for.
    pub poll: Poll,
    /// How the guest booted.
    pub timings: BootTimings,
    shutdown: Option<Shutdown>,
    /// Whether the machine is the containers' own: its clock, its network and its random numbers are for
    /// clients to set.
    pub owns_machine: bool,
    /// What it was told when it last went on from a snapshot.
    pub restored: Option<Restored<'static>>,
    /// What there is for images that cannot be mounted here.
    pub last_resort: Option<LastResort>,
    /// The containers and what was executed in them.
    pub containers: Containers,
    /// The next container's first process, if it was asked for.
    pub spare: Option<Spare>,
    /// The streams' ends of what runs in containers.
    pub programs: Slab<Program>,
    /// Connections to programs.
    pub streams: Slab<Stream>,
    /// Connections that are told of events.
    pub subscribers: Slab<Subscriber>,
    /// Copies of files under way.
    pub copies: Copies,
    /// Answers that clients were promised and can now be given.
    pub answers: Vec<(Key, Response)>,
    /// What is read goes through here; empty until something is.
    pub scratch: Vec<u8>,
}

impl Guest {
    /// A guest that booted like this and has nothing in it.
    pub fn new(timings: BootTimings, containers: Containers) -> io::Result<Self> {
        Ok(Guest {
            poll: Poll::new()?,
            timings,
            shutdown: None,
            owns_machine: true,
            restored: None,
            last_resort: None,
            containers,
            spare: None,
            programs: Slab::new(),
            streams: Slab::new(),
            subscribers: Slab::new(),
            copies: Copies::default(),
            answers: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// The shutdown that was asked for, if one was.
    pub fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown
    }

    /// From now on the guest is on its way down, whoever asked for it.
    pub fn begin_shutdown(&mut self, shutdown: Shutdown) {
        self.shutdown.get_or_insert(shutdown);
    }
}
