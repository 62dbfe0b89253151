//! Containers: from requests to what happens to them.

use bulkhead_container::spec::Spec;
use bulkhead_protocol::{
    ContainerList, CreateContainer, EventKind, Kill, SpareProcess, TerminalSize,
};

use super::{Destination, Outcome, done, json, read};
use crate::connection::Answer;
use crate::containers::{Entry, Phase, lifecycle};
use crate::guest::Guest;
use crate::http::{Query, Response};
use crate::server::slab::Key;
use crate::streams::client::Wants;

impl Guest {
    pub(super) fn create_container(&mut self, body: &[u8]) -> Outcome {
        let wanted: CreateContainer<Spec> = read(body, "a CreateContainer")?;
        let key = self.create(&wanted)?;
        json(201, &self.entry(key)?.state())
    }

    pub(super) fn put_spare(&mut self, body: &[u8]) -> Outcome {
        let wanted: SpareProcess<Spec> = read(body, "a SpareProcess")?;
        self.make_spare(&wanted.spec)?;
        done()
    }

    pub(super) fn list_containers(&self) -> Outcome {
        let containers = self.containers.states();
        json(200, &ContainerList { containers })
    }

    pub(super) fn container_state(&self, id: &str) -> Outcome {
        json(200, &self.entry(self.named(id)?)?.state())
    }

    pub(super) fn start_container(&mut self, id: &str) -> Outcome {
        let key = self.named(id)?;
        self.start(key)?;
        json(200, &self.entry(key)?.state())
    }

    pub(super) fn pause_container(&mut self, id: &str) -> Outcome {
        let (key, entry) = self.running(id)?;
        if entry.paused {
            let message = format!("Container {id} is paused already.");
            return Err(Response::conflict(&message));
        }
        entry
            .container
            .pause()
            .map_err(|e| lifecycle::refusal(&e))?;
        entry.paused = true;
        self.tell_of(key, EventKind::Paused);
        done()
    }

    pub(super) fn resume_container(&mut self, id: &str) -> Outcome {
        let (key, entry) = self.running(id)?;
        if !entry.paused {
            let message = format!("Container {id} is not paused.");
            return Err(Response::conflict(&message));
        }
        entry
            .container
            .resume()
            .map_err(|e| lifecycle::refusal(&e))?;
        entry.paused = false;
        self.tell_of(key, EventKind::Resumed);
        done()
    }

    pub(super) fn kill_container(&mut self, id: &str, body: &[u8]) -> Outcome {
        let kill = read_kill(body)?;
        let key = self.named(id)?;
        let entry = self.entry_mut(key)?;
        if entry.pid.is_none() {
            return Err(not_running(id));
        }
        let result = if kill.all {
            entry.container.kill_all(kill.signal.into())
        } else {
            entry.container.kill(kill.signal.into())
        };
        result.map_err(|e| lifecycle::refusal(&e))?;
        done()
    }

    pub(super) fn wait_container(&mut self, id: &str, client: Key) -> Outcome {
        let key = self.named(id)?;
        let entry = self.entry_mut(key)?;
        if let Phase::Stopped(exit) = &entry.phase {
            return json(200, exit);
        }
        entry.waiting.push(client);
        Ok(Answer::Later)
    }

    pub(super) fn resize_container(&mut self, id: &str, body: &[u8]) -> Outcome {
        let size: TerminalSize = read(body, "a TerminalSize")?;
        let program = self.entry(self.named(id)?)?.program;
        self.resize_program(program, size)
    }

    /// Sets the size of a program's terminal.
    pub(super) fn resize_program(&self, program: Key, size: TerminalSize) -> Outcome {
        if self.programs.get(program).is_some_and(|p| p.resize(size)) {
            return done();
        }
        Err(Response::conflict("The program has no terminal."))
    }

    pub(super) fn container_stats(&self, id: &str) -> Outcome {
        let entry = self.entry(self.named(id)?)?;
        let stats = entry
            .container
            .stats()
            .map_err(|e| lifecycle::refusal(&e))?;
        json(200, &super::stats::of(&stats))
    }

    pub(super) fn container_processes(&mut self, id: &str) -> Outcome {
        let (_, entry) = self.running(id)?;
        let processes = entry
            .container
            .processes()
            .map_err(|e| lifecycle::refusal(&e))?;
        json(200, &super::stats::processes(&processes))
    }

    pub(super) fn delete_container(&mut self, id: &str, query: Query<'_>, client: Key) -> Outcome {
        let key = self.named(id)?;
        let force = query.flag("force", false);
        let force = force.map_err(|message| Response::bad_request(&message))?;
        let entry = self.entry_mut(key)?;
        if entry.phase == Phase::Running && !force {
            let message = format!("Container {id} is running; stop it first, or use force=true.");
            return Err(Response::conflict(&message));
        }
        entry.deleting.push(client);
        if entry.pid.is_none() {
            self.delete(key);
        } else if let Err(e) = entry.container.kill(libc::SIGKILL) {
            entry.deleting.retain(|&other| other != client);
            return Err(lifecycle::refusal(&e));
        }
        Ok(Answer::Later)
    }

    pub(super) fn attach_container(
        &mut self,
        id: &str,
        query: Query<'_>,
        wants_upgrade: bool,
    ) -> Outcome {
        let program = self.entry(self.named(id)?)?.program;
        let flag = |name, default| {
            let flag = query.flag(name, default);
            flag.map_err(|message| Response::bad_request(&message))
        };
        let wants = Wants {
            stdin: flag("stdin", false)?,
            stdout: flag("stdout", true)?,
            stderr: flag("stderr", true)?,
            keeps: flag("keeps", false)?,
        };
        if !wants_upgrade {
            let message =
                "Attaching takes the headers Connection: Upgrade and Upgrade: bulkhead-stream.";
            return Err(Response::bad_request(message));
        }
        self.need_room_for_a_stream()?;
        Ok(Answer::Leave(Destination::Program {
            program,
            wants,
            exec_id: None,
        }))
    }

    /// The container with this name.
    pub fn named(&self, id: &str) -> Result<Key, Response> {
        self.containers.find(id).ok_or_else(|| no_container(id))
    }

    /// The container with this key.
    pub fn entry(&self, key: Key) -> Result<&Entry, Response> {
        self.containers
            .get(key)
            .ok_or_else(|| no_container("any more"))
    }

    fn entry_mut(&mut self, key: Key) -> Result<&mut Entry, Response> {
        let entry = self.containers.get_mut(key);
        entry.ok_or_else(|| no_container("any more"))
    }

    fn running(&mut self, id: &str) -> Result<(Key, &mut Entry), Response> {
        let key = self.named(id)?;
        let entry = self.entry_mut(key)?;
        if entry.phase != Phase::Running || entry.pid.is_none() {
            return Err(not_running(id));
        }
        Ok((key, entry))
    }
}

/// Reads the body of a `kill`.
pub fn read_kill(body: &[u8]) -> Result<Kill, Response> {
    let kill: Kill = read(body, "a Kill")?;
    if (1..=64).contains(&kill.signal) {
        return Ok(kill);
    }
    Err(Response::unprocessable("signal: a number from 1 to 64."))
}

fn no_container(id: &str) -> Response {
    Response::not_found(&format!("There is no container {id}."))
}

fn not_running(id: &str) -> Response {
    Response::conflict(&format!("Container {id} is not running."))
}
