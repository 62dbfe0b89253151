//! What the container is in: a virtual machine, or nothing but an agent here on the host.

use std::fs;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ExitStatus};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bulkhead_agent::containers::Containers;
use bulkhead_agent::containers::rootfs::LastResort;
use bulkhead_agent::host::Host;
use bulkhead_container::cgroup::Location;
use bulkhead_container::spec::Spec;
use bulkhead_protocol::CreateContainer;
use bulkhead_vmm::exit::{CANNOT_START, DEVICE_LOST};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::agent::refused;
use crate::error::{Error, cannot};
use crate::process::{ticks_of, wait_end};
use crate::record::Files;
use crate::volumes::staging;
use crate::wake::Origin;

/// How long a machine gets to end in order before it is killed.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How long a machine whose streams have ended gets to end by itself.
const LAST_MOMENT: Duration = Duration::from_secs(5);
/// The stack of the agent's thread, in bytes. What is not touched takes no memory.
const AGENT_STACK: usize = 2 << 20;

/// What the container is in.
pub enum Machine {
    /// A virtual machine.
    Vm(Vmm),
    /// The host.
    Host(HostAgent),
}

impl Machine {
    /// Ends it, in order if it can be.
    pub fn end(&mut self) {
        match self {
            Machine::Vm(vmm) => vmm.end(),
            // Its container is deleted, and it ends with this process.
            Machine::Host(_) => {}
        }
    }

    /// Why it ended: its own last words if it had any, or `otherwise`, if it has not.
    pub fn error(&mut self, files: &Files, otherwise: &str) -> String {
        let error = match self {
            Machine::Vm(vmm) => vmm.error(files, otherwise),
            Machine::Host(agent) => agent.error(),
        };
        error.unwrap_or_else(|| otherwise.to_owned())
    }

    /// Whether what became of it speaks against the snapshot that it was restored from: the VMM has refused that, or the
    /// guest did not go on well. That it was ended or lacked something says nothing.
    pub fn blames_snapshot(&mut self) -> bool {
        let Machine::Vm(vmm) = self else {
            return false;
        };
        match vmm.ended().map(|status| status.code()) {
            // It is there and its guest does not answer.
            None => true,
            Some(None | Some(0)) => false,
            Some(Some(code)) => ![CANNOT_START, DEVICE_LOST].map(i32::from).contains(&code),
        }
    }

    /// Whether it has ended by itself.
    pub fn has_refused(&mut self) -> bool {
        match self {
            Machine::Vm(vmm) => vmm.ended().is_some_and(|status| status.code().is_some()),
            Machine::Host(_) => false,
        }
    }

    /// The time of processors that it has used, in the kernel's ticks.
    pub fn ticks(&self) -> Option<u64> {
        match self {
            Machine::Vm(vmm) => ticks_of(vmm.child.id()),
            Machine::Host(_) => None,
        }
    }

    /// Notes where it comes from.
    pub fn comes_from(&mut self, origin: Origin) {
        if let Machine::Vm(vmm) = self {
            vmm.origin = Some(origin);
        }
    }

    /// Whether any time has passed since the moment that it goes on from, by the host's clock.
    pub fn has_slept(&self) -> bool {
        match self {
            Machine::Vm(vmm) => vmm.origin.as_ref().is_some_and(|it| it.asleep_ns > 0),
            Machine::Host(_) => false,
        }
    }

    /// Has it written down what it has needed until now, if it is the first that comes from there.
    pub fn keep_working_set(&self, files: &Files) {
        if let Machine::Vm(Vmm {
            origin: Some(origin),
            ..
        }) = self
        {
            origin.keep_working_set(&files.control());
        }
    }

    /// Waits for a moment whether it ends: its streams end before it.
    pub fn wait_last_moment(&self) {
        wait_end(self.as_fd(), LAST_MOMENT);
    }
}

/// Readable once it has ended.
impl AsFd for Machine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Machine::Vm(vmm) => vmm.pidfd.as_fd(),
            Machine::Host(agent) => agent.alive.as_fd(),
        }
    }
}

/// The virtual machine's process. Dropped, it is killed.
pub struct Vmm {
    child: Child,
    pidfd: OwnedFd,
    /// Where it comes from, if it was restored.
    origin: Option<Origin>,
}

impl Vmm {
    /// Watches the process.
    pub fn watch(mut child: Child) -> Result<Self, Error> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Vmm {
                child,
                pidfd,
                origin: None,
            }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(cannot("watch the VMM")(e))
            }
        }
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.pidfd, rustix::process::Signal::TERM);
        if !wait_end(self.pidfd.as_fd(), END_LIMIT) && self.child.kill().is_err() {
            return;
        }
        let _ = self.child.wait();
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn error(&mut self, files: &Files, otherwise: &str) -> Option<String> {
        let status = self.ended()?;
        let said = fs::read_to_string(files.complaints()).unwrap_or_default();
        let last = |prefix| {
            said.lines()
                .rev()
                .find_map(|line| line.strip_prefix(prefix))
        };
        // A file server that could not start is why the machine could not.
        let words = last(staging::COMPLAINT).or_else(|| last("bulkhead-vmm: "));
        Some(match words {
            Some(words) if !status.success() => words.to_owned(),
            _ => format!("{otherwise} ({status})"),
        })
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// An agent in a thread of this process. All children of the process are its own from then on.
pub struct HostAgent {
    thread: Option<JoinHandle<io::Result<()>>>,
    /// Its other end is the thread's, and closed when that ends.
    alive: PipeReader,
}

impl HostAgent {
    /// Makes a container and then starts the agent. SIGCHLD is blocked in this thread, and all others that
    /// there are, and this one lives as long as the container. Also returns the number of the container's
    /// first process, and its streams.
    pub fn start(
        files: &Files,
        wanted: &CreateContainer<Spec>,
        group: Option<Location>,
        last_resort: LastResort,
    ) -> Result<(Self, u32, UnixStream), Error> {
        let containers = match group {
            Some(group) => Containers::of_a_host(group),
            None => Containers::without_limits(),
        };
        let api = files.api();
        let listener =
            UnixListener::bind(&api).map_err(cannot(format!("listen on {}", api.display())))?;
        let starting = || cannot("start the sandbox's agent");
        let mut host = Host::new(listener, containers).map_err(starting())?;
        host.set_last_resort(last_resort);
        let (ours, theirs) = UnixStream::pair().map_err(starting())?;
        let pid = host
            .create(wanted, theirs)
            .map_err(|refusal| refused(refusal.status, refusal.body))?;
        let (alive, theirs) = io::pipe().map_err(starting())?;
        let thread = thread::Builder::new()
            .name("agent".to_owned())
            .stack_size(AGENT_STACK)
            .spawn(move || {
                let _until_the_end = theirs;
                host.serve()
            })
            .map_err(starting())?;
        let agent = HostAgent {
            thread: Some(thread),
            alive,
        };
        Ok((agent, pid, ours))
    }

    fn error(&mut self) -> Option<String> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        match thread.join() {
            Ok(Err(e)) => Some(format!("its agent failed: {e}")),
            _ => None,
        }
    }
}
