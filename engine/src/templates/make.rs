//! Making a template: a machine boots, its agent goes through a container's creation once, and what it is then is
//! written down.

use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_protocol::{CreateContainer, Lower, Rootfs, Upper};
use oci_spec::image::ImageConfiguration;
use serde_json::json;

use super::clock;
use super::store::snapshot_in;
use crate::agent::{Agent, Attach, check};
use crate::error::{Error, cannot};
use crate::http;
use crate::monitor::machine::Machine;
use crate::monitor::starting::{Obstacle, Starting, Waited, boot_limit, listen_for_guest};
use crate::spec::{self, Options};
use crate::vm::{AGENT_SERIAL, Launch, Sockets, describe_template};

/// How long an answer of the VMM may take.
const CONTROL_LIMIT: Duration = Duration::from_secs(120);
/// A guest is idle when its VMM has used hardly any time of a processor for so long.
const IDLE_FOR: Duration = Duration::from_millis(200);
/// The most ticks of the kernel's in that time: its own timers take some.
const IDLE_TICKS: u64 = 2;
/// How long is waited for a guest to be idle. One that never is, is as good a template.
const IDLE_LIMIT: Duration = Duration::from_secs(3);
/// How long the rehearsal's streams may say nothing.
const STREAM_LIMIT: Duration = Duration::from_secs(10);
/// The container of the rehearsal, and its program, which is nowhere.
const REHEARSAL: &str = "rehearsal";

/// Why there is no template.
pub enum Unmade {
    /// This cannot work here, and need not be tried again soon.
    For(String),
    /// Another time it may well work.
    Now(Obstacle),
}

impl<E: Into<Obstacle>> From<E> for Unmade {
    fn from(error: E) -> Self {
        Unmade::Now(error.into())
    }
}

/// Makes a template of this sandbox's kind of machine and puts it into `folder`.
pub fn make(starting: &Starting<'_>, folder: &Path) -> Result<(), Unmade> {
    let place = starting.files.template_sockets();
    let failed = || format!("make the folder {}", place.display());
    DirBuilder::new()
        .mode(0o700)
        .create(&place)
        .map_err(cannot(failed()))?;
    let made = make_with(starting, folder, &Sockets::in_folder(&place));
    // Else it goes with the sandbox.
    let _ = fs::remove_dir_all(&place);
    made
}

fn make_with(starting: &Starting<'_>, folder: &Path, sockets: &Sockets) -> Result<(), Unmade> {
    let document = describe_template(starting.config.machine, sockets).map_err(Error::from)?;
    let ready = listen_for_guest(sockets)?;
    let launch = Launch {
        restore: None,
        console: &folder.join("console.log"),
        complaints: &starting.files.complaints(),
    };
    let mut machine = starting.watch_vmm(launch.start(&document)?)?;
    match starting.wait_ready(&mut machine, &ready) {
        Ok(()) => {}
        // A VMM that ends by itself would do so again.
        Err(Obstacle::Failed(why)) if machine.has_refused() => return Err(Unmade::For(why)),
        Err(obstacle) => return Err(obstacle.into()),
    }
    drop(ready);
    let agent = Agent::at(&sockets.api);
    rehearse(&agent)?;
    clock::set(&agent)?;
    wait_idle(&machine, |until| starting.wait(Some(&machine), None, until))?;
    snapshot(starting, &mut machine, folder, sockets)?;
    let asked = http::ask(&sockets.control, "PUT", "/v1/shutdown", "", CONTROL_LIMIT);
    // It has nothing to lose, and is killed if it does not answer.
    let _ = asked.map(|_| machine.wait_last_moment());
    Ok(())
}

/// Has the agent make a container and delete it, and the first process of the next one, so that clones have in memory what that takes: code is read from
/// the disk when it is first used, and control groups are set up for the first container. Its program is nowhere to
/// be found: nothing has run that could know anything.
pub fn rehearse(agent: &Agent) -> Result<(), Error> {
    let options = Options {
        command: vec![format!("/{REHEARSAL}")],
        ..Options::default()
    };
    let mut spec = spec::build(REHEARSAL, &ImageConfiguration::default(), &options)?;
    spec::sort_mounts(&mut spec.mounts);
    let wanted = CreateContainer {
        id: REHEARSAL.to_owned(),
        rootfs: Rootfs {
            lower: Lower::Serial(AGENT_SERIAL.to_owned()),
            upper: Upper::Tmpfs { size_bytes: None },
            files: spec::files(&spec),
        },
        spec,
        volumes: Vec::new(),
        stdin: false,
        terminal: None,
        init: false,
    };
    match play(agent, &wanted) {
        Ok(()) | Err(Error::Agent { .. }) => {}
        Err(e) => return Err(e),
    }
    match agent.delete(REHEARSAL) {
        // It got as far as it could: clones have to do more by themselves.
        Ok(()) | Err(Error::Agent { status: 404, .. }) => {}
        Err(e) => return Err(e),
    }
    match agent.make_spare(&wanted.spec) {
        // Likewise.
        Ok(()) | Err(Error::Agent { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

fn play(
    agent: &Agent,
    wanted: &CreateContainer<bulkhead_container::spec::Spec>,
) -> Result<(), Error> {
    agent.create(wanted)?;
    let mut stream = agent.attach(&wanted.id, Attach::KEEPER)?;
    match agent.start(&wanted.id) {
        // As it should be.
        Ok(_) | Err(Error::Agent { .. }) => {}
        Err(e) => return Err(e),
    }
    // Up to the end of the program's streams. One that does not come is cut off in the clones.
    let _ = stream.stream.set_read_timeout(Some(STREAM_LIMIT));
    let _ = stream
        .stream
        .take(64 << 10)
        .read_to_end(&mut stream.received);
    Ok(())
}

/// Waits, by `wait`, until the guest has done all that it had begun.
pub fn wait_idle<E>(
    machine: &Machine,
    mut wait: impl FnMut(Instant) -> Result<Waited, E>,
) -> Result<(), E> {
    let limit = Instant::now() + IDLE_LIMIT;
    let mut before = machine.ticks();
    while Instant::now() < limit {
        if wait(Instant::now() + IDLE_FOR)? == Waited::MachineEnded {
            break;
        }
        let now = machine.ticks();
        if now
            .zip(before)
            .is_none_or(|(now, then)| now.saturating_sub(then) <= IDLE_TICKS)
        {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Has the VMM write the snapshot.
fn snapshot(
    starting: &Starting<'_>,
    machine: &mut Machine,
    folder: &Path,
    sockets: &Sockets,
) -> Result<(), Unmade> {
    let failed = || cannot("have the VMM write a snapshot");
    let body = json!({ "path": snapshot_in(folder) }).to_string();
    let stream = http::connect(&sockets.control, Some(CONTROL_LIMIT)).map_err(failed())?;
    let asked = http::begin(stream, "PUT", "/v1/snapshot", &body).map_err(failed())?;
    let until = Instant::now() + boot_limit();
    match starting.wait(Some(machine), Some(asked.as_fd()), until)? {
        Waited::Readable => {}
        Waited::MachineEnded => {
            let otherwise = "the machine ended while its snapshot was written";
            return Err(Obstacle::Failed(machine.error(starting.files, otherwise)).into());
        }
        Waited::Nothing => {
            let why = "the VMM does not get a snapshot written";
            return Err(Obstacle::Failed(why.to_owned()).into());
        }
    }
    match check(asked.answer().map_err(failed())?) {
        Ok(_) => Ok(()),
        // It has said why, and would again.
        Err(e) => Err(Unmade::For(format!("the VMM writes no snapshot: {e}"))),
    }
}
