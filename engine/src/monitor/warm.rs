//! Restoring a sandbox's machine: a clone of a template that has booted already.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_protocol::path;

use super::machine::Machine;
use super::starting::{Obstacle, Starting, Waited, boot_limit, remove_sockets};
use crate::agent::{self, Agent};
use crate::error::{Error, cannot};
use crate::http::{self, Conversation};
use crate::names;
use crate::templates::{Busy, Ingredients, Template, Templates, Unmade, clock, make};
use crate::vm::{self, Launch, SPARE_SLOTS, Sockets};
use crate::volumes::Attached;
use crate::wake::{self, Origin};

/// Between two looks at what is about to be there, where nothing tells that it is.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// The same, where it takes as long as a boot.
const LOOK_FOR_TEMPLATE: Duration = Duration::from_millis(20);
/// What part of the time for a boot a restored guest gets to answer. It takes much less.
const PART_OF_BOOT: u32 = 5;
/// How long an answer of the VMM may take, which has nothing to wait for.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

impl Starting<'_> {
    /// Restores the container's machine from a template, up to an agent that knows that it is in a clone, with which a
    /// conversation has begun. When it fails nothing of it is left but what file servers may have noticed.
    pub fn restore(
        &self,
        volumes: &Attached,
        template: Template,
    ) -> Result<(Machine, Conversation), Obstacle> {
        let (mut machine, windows) = self.clone_of(volumes, &template.snapshot())?;
        let woken = self.wake(&mut machine, windows, boot_limit() / PART_OF_BOOT);
        let woken = woken.and_then(|talk| {
            // The host's clock was set back since the template was made: how late the guest is cannot be told from that.
            if !machine.has_slept() {
                clock::set(&Agent::at(&Sockets::of(self.files).api))?;
            }
            Ok(talk)
        });
        match woken {
            Ok(talk) => Ok((machine, talk)),
            Err(obstacle) => {
                let is_bad = machine.blames_snapshot();
                drop(machine);
                remove_sockets(&Sockets::of(self.files));
                if let Obstacle::Failed(_) = obstacle
                    && is_bad
                {
                    Templates::of(self.layout).remove_bad(template)?;
                }
                Err(obstacle)
            }
        }
    }

    /// Begins to restore the container's machine from a template's snapshot. What it has that the template has not is
    /// in the windows that are returned.
    pub(super) fn clone_of(
        &self,
        volumes: &Attached,
        snapshot: &Path,
    ) -> Result<(Machine, Vec<u32>), Obstacle> {
        let cid = random_cid()?;
        let clone = vm::describe_clone(self.config, self.files, volumes, cid);
        let (document, windows) = clone.map_err(Error::from)?;
        let launch = Launch {
            restore: Some(snapshot),
            console: &self.files.console(),
            complaints: &self.files.complaints(),
        };
        Ok((self.watch_vmm(launch.start(&document)?)?, windows))
    }

    /// Fails if the container has more than a clone has room for.
    pub(super) fn check_devices(&self, volumes: &Attached) -> Result<(), Obstacle> {
        let devices = vm::devices(self.config, self.files, volumes);
        if devices > SPARE_SLOTS {
            return Err(Obstacle::Failed(format!(
                "it has {devices} devices of its own, and a clone has room for {SPARE_SLOTS}"
            )));
        }
        Ok(())
    }

    /// The template of this container's machine, made if it is not there.
    pub fn template(&self, volumes: &Attached) -> Result<Template, Obstacle> {
        self.check_devices(volumes)?;
        let templates = Templates::of(self.layout);
        let key = Ingredients::of(self.config.machine)?.key()?;
        let until = Instant::now() + 2 * boot_limit();
        let mut is_told = false;
        loop {
            if let Some(why) = templates.recent_failure(&key) {
                let why = format!("its template could not be made a while ago: {why}");
                return Err(Obstacle::Failed(why));
            }
            let made = |folder: &Path| {
                self.progress("Making a template of the virtual machine (once for this shape)...");
                make(self, folder).map_err(|obstacle| match obstacle {
                    Unmade::For(why) => {
                        templates.note_failure(&key, &why);
                        Obstacle::Failed(format!("cannot make a template: {why}"))
                    }
                    Unmade::Now(obstacle) => obstacle,
                })
            };
            match templates.obtain(&key, made)? {
                Ok(template) => return Ok(template),
                Err(Busy) if Instant::now() >= until => {
                    let why = "another command does not get its template made";
                    return Err(Obstacle::Failed(why.to_owned()));
                }
                Err(Busy) => {}
            }
            if !is_told {
                is_told = true;
                self.progress("Waiting for the template of the virtual machine...");
            }
            self.wait(None, None, Instant::now() + LOOK_FOR_TEMPLATE)?;
        }
    }

    /// Has the agent of a machine that is being restored learn what it cannot know, within `limit`.
    pub(super) fn wake(
        &self,
        machine: &mut Machine,
        windows: Vec<u32>,
        limit: Duration,
    ) -> Result<Conversation, Obstacle> {
        let until = Instant::now() + limit;
        let sockets = Sockets::of(self.files);
        let origin = loop {
            let answer = http::ask(&sockets.control, "GET", "/v1/vm", "", CONTROL_LIMIT);
            match answer {
                Ok(answer) => break Origin::of(&answer)?,
                // Not there yet.
                Err(_) => self.look_again(machine, until)?,
            }
        };
        let body = wake::message(origin.asleep_ns, windows)?;
        machine.comes_from(origin);
        let agent = Agent::at(&sockets.api);
        loop {
            let talk = agent.connect().and_then(|stream| {
                let mut talk = Conversation::new(stream);
                let sent = talk.send("PUT", path::RESTORED, &body);
                sent.map_err(cannot("talk to the guest's agent"))?;
                Ok(talk)
            });
            if let Ok(mut talk) = talk {
                match self.wait(Some(machine), Some(talk.as_fd()), until)? {
                    Waited::Readable => {
                        // A connection that comes before the guest has noticed that it is somebody else now is cut
                        // off. It can be told again: the same a second time is nothing to it.
                        if let Ok(answer) = talk.answer() {
                            agent::check(answer)?;
                            return Ok(talk);
                        }
                    }
                    Waited::MachineEnded => return Err(self.ended(machine)),
                    Waited::Nothing => {}
                }
            }
            self.look_again(machine, until)?;
        }
    }

    /// Waits for a moment, if there is one left.
    fn look_again(&self, machine: &mut Machine, until: Instant) -> Result<(), Obstacle> {
        if Instant::now() >= until {
            let why = "the restored guest does not answer";
            return Err(Obstacle::Failed(why.to_owned()));
        }
        match self.wait(Some(machine), None, Instant::now() + LOOK_AGAIN)? {
            Waited::MachineEnded => Err(self.ended(machine)),
            _ => Ok(()),
        }
    }

    fn ended(&self, machine: &mut Machine) -> Obstacle {
        Obstacle::Failed(machine.error(self.files, "its restored machine ended"))
    }
}

/// An address on the vsock that no other clone has, as far as chance goes. 0 to 2 and the last one are taken.
pub(super) fn random_cid() -> Result<u32, Error> {
    loop {
        let mut bytes = [0; 4];
        names::random(&mut bytes).map_err(cannot("get random numbers"))?;
        let cid = u32::from_le_bytes(bytes);
        if (3..u32::MAX).contains(&cid) {
            return Ok(cid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_when_random_is_one_that_a_guest_can_have() {
        let cids: Vec<u32> = (0..100).filter_map(|_| random_cid().ok()).collect();
        assert_eq!(cids.len(), 100);
        assert!(cids.iter().all(|cid| (3..u32::MAX).contains(cid)));
        assert!(cids.iter().any(|cid| *cid != cids[0]));
    }
}
