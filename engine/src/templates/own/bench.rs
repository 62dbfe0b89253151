//! Where the machine of a template is while it is made: a sandbox without a container. Whoever finds one whose
//! process was killed ends and removes it, as any other.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_protocol::path;
use bulkhead_vmm::config::{RestoreConfig, VmConfig};
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;

use super::Attendant;
use crate::agent::{self, Agent};
use crate::engine::{Engine, make_folder};
use crate::error::{Error, cannot};
use crate::http::{self, Answer};
use crate::lock;
use crate::monitor::machine::{Machine, Vmm};
use crate::monitor::starting::{
    Obstacle, Waited, boot_limit, listen_for_guest, read_ready, record_processes, remove_sockets,
};
use crate::poll::poll_until;
use crate::process::Process;
use crate::record::{Files, Processes};
use crate::vm::{Launch, Sockets};
use crate::wake::{self, Origin};

/// Between two looks whether somebody has asked for it to be given up.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Between two questions to a machine that is being restored.
const ASK_AGAIN: Duration = Duration::from_millis(2);
/// What part of the time for a boot a restored guest gets to answer. It takes much less.
const PART_OF_BOOT: u32 = 5;
/// How long an answer of the VMM or the agent may take that has nothing to wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to write all of a guest's memory to a slow disk.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(3600);

/// A sandbox for a machine. It goes when this is dropped; its machine must have gone before.
pub struct Bench<'a> {
    files: Files,
    attendant: &'a dyn Attendant,
}

impl<'a> Bench<'a> {
    /// Makes the sandbox.
    pub fn set_up(engine: &Engine, attendant: &'a dyn Attendant) -> Result<Self, Error> {
        let layout = engine.layout();
        layout.check_room_for_sockets()?;
        make_folder(layout.root())?;
        let sandbox = layout.sandbox(&engine.new_id()?);
        let files = Files {
            folder: sandbox.clone(),
            sandbox,
        };
        // Who looks for sandboxes that nobody has any more has this lock.
        let _lock = lock::wait(&layout.lock()).map_err(cannot("lock the containers"))?;
        make_folder(&files.sandbox)?;
        let bench = Bench { files, attendant };
        let written = Process::this().and_then(|this| {
            // There is no machine yet.
            bench.files.write_processes(&Processes {
                monitor: this,
                vmm: this,
            })
        });
        written.map_err(cannot("record who makes the template"))?;
        Ok(bench)
    }

    /// The machine's sockets.
    pub fn sockets(&self) -> Sockets {
        Sockets::of(&self.files)
    }

    /// The folder with them.
    pub fn sandbox(&self) -> &Path {
        &self.files.sandbox
    }

    /// The machine's agent.
    pub fn agent(&self) -> Agent {
        Agent::at(&self.files.api())
    }

    /// Boots a machine, up to the agent's word.
    pub fn boot(&self, document: &VmConfig) -> Result<Machine, Error> {
        let ready = listen_for_guest(&self.sockets())?;
        let mut machine = self.start(None, document)?;
        let limit = boot_limit();
        let until = Instant::now() + limit;
        match self.wait(&machine, Some(ready.as_fd()), until)? {
            Waited::Readable => match read_ready(&ready, limit) {
                Ok(()) => Ok(machine),
                Err(Obstacle::Over(error)) => Err(error),
                Err(Obstacle::Failed(why)) => Err(Error::Invalid(why)),
            },
            Waited::MachineEnded => Err(self.ended(&mut machine, "it ended while it booted")),
            Waited::Nothing => Err(Error::Invalid(format!(
                "its guest has not booted in {} seconds: set BULKHEAD_BOOT_TIMEOUT to allow more",
                limit.as_secs()
            ))),
        }
    }

    /// Has another machine go on from where this one is, by way of the folder `snapshot`, which must not be there yet.
    pub fn exchange(
        &self,
        machine: Machine,
        document: &RestoreConfig,
        snapshot: &Path,
    ) -> Result<Machine, Error> {
        let sockets = self.sockets();
        let body = serde_json::json!({ "path": snapshot }).to_string();
        let answer = http::ask(
            &sockets.control,
            "PUT",
            "/v1/snapshot",
            &body,
            SNAPSHOT_LIMIT,
        );
        agent::check(answer.map_err(cannot("have the VMM write a snapshot"))?)?;
        // It has no disk that it writes to.
        drop(machine);
        remove_sockets(&sockets);
        let mut machine = self.start(Some(snapshot), document)?;
        self.wake(&mut machine)?;
        Ok(machine)
    }

    /// Waits until `fd` can be read, or the machine has ended. Fails if the template is given up.
    pub fn wait(
        &self,
        machine: &Machine,
        fd: Option<BorrowedFd<'_>>,
        until: Instant,
    ) -> Result<Waited, Error> {
        loop {
            if self.attendant.is_interrupted() {
                return Err(Error::Invalid("it was interrupted".to_owned()));
            }
            let machine = machine.as_fd();
            // Stands in for what there is none of.
            let all = [fd.unwrap_or(machine), machine];
            let mut fds = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let look_again = until.min(Instant::now() + LOOK_AGAIN);
            poll_until(&mut fds, Some(look_again)).map_err(cannot("wait for the machine"))?;
            let [readable, ended] = fds.map(|fd| !fd.revents().is_empty());
            if readable && fd.is_some() {
                return Ok(Waited::Readable);
            }
            if ended {
                return Ok(Waited::MachineEnded);
            }
            if Instant::now() >= until {
                return Ok(Waited::Nothing);
            }
        }
    }

    /// Why the machine has ended.
    fn ended(&self, machine: &mut Machine, otherwise: &str) -> Error {
        Error::Invalid(machine.error(&self.files, otherwise))
    }

    /// Starts a machine, and writes down that it is this sandbox's.
    fn start(&self, restore: Option<&Path>, document: &impl Serialize) -> Result<Machine, Error> {
        let launch = Launch {
            restore,
            console: &self.files.console(),
            complaints: &self.files.complaints(),
        };
        let child = launch.start(document)?;
        let pid = child.id();
        let machine = Machine::Vm(Vmm::watch(child)?);
        record_processes(&self.files, pid)?;
        Ok(machine)
    }

    /// Has the agent of a machine that is being restored learn what it cannot know.
    fn wake(&self, machine: &mut Machine) -> Result<(), Error> {
        let sockets = self.sockets();
        let until = Instant::now() + boot_limit() / PART_OF_BOOT;
        let ask = |socket: &Path, method: &str, target: &str, body: &str| {
            http::ask(socket, method, target, body, ANSWER_LIMIT)
        };
        let vm = self.ask_until(machine, until, || {
            ask(&sockets.control, "GET", "/v1/vm", "")
        })?;
        let body = wake::message(Origin::of(&vm)?.asleep_ns, Vec::new())?;
        // A connection that comes before the guest has noticed that it was restored is cut off.
        let told = self.ask_until(machine, until, || {
            ask(&sockets.api, "PUT", path::RESTORED, &body)
        })?;
        agent::check(told).map(drop)
    }

    /// Asks until there is an answer.
    fn ask_until(
        &self,
        machine: &mut Machine,
        until: Instant,
        mut ask: impl FnMut() -> io::Result<Answer>,
    ) -> Result<Answer, Error> {
        loop {
            if let Ok(answer) = ask() {
                return Ok(answer);
            }
            if Instant::now() >= until {
                return Err(Error::Invalid(
                    "the restored guest does not answer".to_owned(),
                ));
            }
            let again = Instant::now() + ASK_AGAIN;
            if self.wait(machine, None, again)? == Waited::MachineEnded {
                return Err(self.ended(machine, "it ended while it was restored"));
            }
        }
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        // Else it is swept.
        let _ = fs::remove_dir_all(&self.files.sandbox);
    }
}
