//! Containers across processes: what of a container is written down by who made it, for others to go on with it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Location};
use crate::container::Container;
use crate::create::Bundle;
use crate::error::Error;
use crate::hooks::{self, Hooks, Point};
use crate::plan::Remaining;
use crate::seccomp::Listener;
use crate::spec::Spec;
use crate::sys;

/// What has to be remembered of a container besides its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The number of its first process, as its maker saw it.
    pub pid: i32,
    /// When that began, in the kernel's ticks since the boot: another process may get the number later.
    pub began: u64,
    /// Its control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Location>,
    /// Where it waits to be started, if it does not wait for its maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<PathBuf>,
    /// What is left to do when it is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remaining: Option<Remaining>,
}

/// What its maker knew of a container, and whoever opens it says again.
pub struct Known<'a> {
    /// Its name, for errors.
    pub id: &'a str,
    /// Its configuration, as it was when it was made.
    pub spec: &'a Spec,
    /// Where that came from.
    pub bundle: Option<Bundle>,
}

/// A container that somebody else has made.
#[derive(Debug)]
pub enum Opened {
    /// Its first process waits or runs.
    Alive(Box<Container>),
    /// Its first process has ended.
    Ended(Box<Remains>),
}

/// What is left of a container whose first process has ended.
#[derive(Debug)]
pub struct Remains {
    cgroup: Option<Cgroup>,
    hooks: Option<Hooks>,
}

impl Record {
    /// Whether its first process has ended, though perhaps nobody has waited for it yet.
    pub fn has_ended(&self) -> bool {
        !matches!(look(self.pid), Some((began, is_alive)) if is_alive && began == self.began)
    }

    /// A descriptor of the first process; none if that has ended.
    fn process(&self) -> Result<Option<(Pid, OwnedFd)>, Errno> {
        let pid = Pid::from_raw(self.pid).ok_or(Errno::INVAL)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error),
            // Whose descriptor it is can be told only now that the number cannot be given to another.
            Ok(pidfd) => Ok((!self.has_ended()).then_some((pid, pidfd))),
        }
    }
}

impl Container {
    /// What others have to know.
    pub fn record(&self) -> Result<Record, Error> {
        let pid = self.pid().as_raw_pid();
        let ended = || Error::Ended {
            id: self.id().to_owned(),
        };
        let (began, _) = look(pid).ok_or_else(ended)?;
        let (gate, remaining) = self.gate();
        Ok(Record {
            pid,
            began,
            cgroup: self.cgroup.as_ref().map(Cgroup::location),
            gate,
            remaining,
        })
    }

    /// Goes on with a container that another process has made. This one is not the parent of its processes.
    pub fn open(record: &Record, known: Known<'_>) -> Result<Opened, Error> {
        let Known { id, spec, bundle } = known;
        let hooks = hooks::read(id, spec, bundle.as_ref())?;
        // One that is gone has nothing left to be removed.
        let exists = |location: &&Location| location.directories().iter().any(|path| path.is_dir());
        let cgroup = record.cgroup.as_ref().filter(exists);
        let cgroup = cgroup.map(Cgroup::open).transpose()?;
        let process = record
            .process()
            .map_err(|e| Error::step("open the first process of container", id, e))?;
        Ok(match process {
            None => Opened::Ended(Box::new(Remains { cgroup, hooks })),
            Some(process) => {
                let listener = Listener::read(id, spec, bundle.as_ref())?;
                let known = (cgroup, hooks, listener);
                let container = Container::opened(record, (id, spec), process, known)?;
                Opened::Alive(Box::new(container))
            }
        })
    }
}

impl Remains {
    /// Ends all that is left of it and removes its control group. The hooks for this are run.
    pub fn delete(&mut self) -> Result<(), Error> {
        self.cgroup.take().map_or(Ok(()), |group| group.remove())?;
        if let Some(hooks) = self.hooks.take() {
            hooks.run_all(Point::Poststop, None);
        }
        Ok(())
    }

    /// Sends a signal to every process that has outlived the first.
    pub fn kill_all(&self, signal: i32) -> Result<(), Error> {
        self.cgroup
            .as_ref()
            .map_or(Ok(()), |group| signal_all(group, signal))
    }
}

/// Sends a signal to every process of a group. SIGKILL reaches those too that are being forked.
pub(crate) fn signal_all(group: &Cgroup, signal: i32) -> Result<(), Error> {
    if signal == libc::SIGKILL {
        return group.kill();
    }
    for pid in group.processes()? {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            match sys::kill(pid, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => {
                    return Err(Error::step("send a signal to", pid.to_string(), error));
                }
            }
        }
    }
    Ok(())
}

/// When a process began, and whether it has not ended. None: there is none.
fn look(pid: i32) -> Option<(u64, bool)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, and ends with the last parenthesis.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let text = String::from_utf8_lossy(text.get(end + 1..)?);
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    // The state is field 3, the beginning is field 22 (proc(5)).
    let began = fields.nth(18)?.parse().ok()?;
    Some((began, !matches!(state, "Z" | "X" | "x")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Record {
        let pid = rustix::process::getpid().as_raw_pid();
        let (began, _) = look(pid).expect("this process");
        Record {
            pid,
            began,
            cgroup: None,
            gate: None,
            remaining: None,
        }
    }

    #[test]
    fn process_when_it_is_the_one_then_opened() {
        assert!(own().process().expect("open").is_some());
    }

    #[test]
    fn process_when_another_has_its_number_then_it_has_ended() {
        let mut record = own();
        record.began += 1;
        assert!(record.process().expect("open").is_none());
    }

    #[test]
    fn record_when_written_then_read_again() {
        let record = own();
        let text = serde_json::to_string(&record).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Record>(&text).expect("record"),
            record
        );
    }
}
