//! The agent on a host: a sandbox that has no machine of its own has it in a thread of its monitor.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use bulkhead_container::spec::Spec;
use bulkhead_protocol::{BootTimings, CreateContainer};
use rustix::event::epoll::EventFlags;

use crate::agent::serve;
use crate::clock;
use crate::containers::Containers;
use crate::containers::rootfs::LastResort;
use crate::guest::Guest;
use crate::http::Response;
use crate::server::Server;
use crate::server::poll::Token;
use crate::server::slab::Key;
use crate::server::socket::Socket;
use crate::signals::Signals;
use crate::streams::client::Wants;

/// An agent that is about to serve. The thread that makes it must outlive its containers, which are
/// killed when that ends.
pub struct Host {
    server: Server,
    signals: Signals,
}

/// What the API would have answered.
#[derive(Debug)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl From<Response> for Refusal {
    fn from(response: Response) -> Self {
        Refusal {
            status: response.status,
            body: response.body,
        }
    }
}

impl Host {
    /// Will serve the API on `listener`. All children of this process are the agent's from here on, and all
    /// its threads have SIGCHLD blocked.
    pub fn new(listener: UnixListener, containers: Containers) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let signals = Signals::of_children()?;
        let now = clock::boot_ns();
        let timings = BootTimings {
            init_start_ns: now,
            ready_ns: now,
        };
        let mut guest = Guest::new(timings, containers)?;
        guest.owns_machine = false;
        Ok(Host {
            server: Server::new(Some(listener.into()), guest)?,
            signals,
        })
    }

    /// What there is for images that cannot be mounted here.
    pub fn set_last_resort(&mut self, last_resort: LastResort) {
        self.server.guest.last_resort = Some(last_resort);
    }

    /// Makes a container, as the API does, and sends its output to `stream`. Its first process's number.
    pub fn create(
        &mut self,
        wanted: &CreateContainer<Spec>,
        stream: UnixStream,
    ) -> Result<u32, Refusal> {
        let guest = &mut self.server.guest;
        let key = guest.create(wanted)?;
        let (program, pid) = {
            let entry = guest.entry(key)?;
            (entry.program, entry.state().pid)
        };
        let attached = stream.set_nonblocking(true).and_then(|()| {
            let socket = Socket::new(stream.into());
            // Under which key it is waited for is decided when it is attached.
            let nobody = Key {
                slot: 0,
                generation: 0,
            };
            guest
                .poll
                .add(&socket, Token::Stream(nobody), EventFlags::IN)?;
            let wants = Wants {
                stdin: false,
                stdout: true,
                stderr: true,
                keeps: true,
            };
            guest.attach((socket, Vec::new()), program, wants, &[]);
            Ok(())
        });
        attached.map_err(|e| Response::internal(&format!("Cannot attach: {e}.")))?;
        Ok(pid)
    }

    /// Serves until a shutdown is asked for and the containers have ended.
    pub fn serve(mut self) -> io::Result<()> {
        serve(&mut self.server, &self.signals)
    }
}
