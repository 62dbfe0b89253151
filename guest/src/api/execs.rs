//! Programs that are executed in containers.

use bulkhead_container::spec::Process;
use bulkhead_protocol::{Exec, TerminalSize};

use super::containers::read_kill;
use super::{Destination, Outcome, done, json, read};
use crate::connection::Answer;
use crate::containers::{ExecEntry, lifecycle};
use crate::guest::Guest;
use crate::http::Response;
use crate::server::slab::Key;
use crate::streams::client::Wants;

impl Guest {
    pub(super) fn exec(&mut self, id: &str, body: &[u8], with_streams: bool) -> Outcome {
        let wanted: Exec<Process> = read(body, "an Exec")?;
        let key = self.named(id)?;
        if with_streams {
            self.need_room_for_a_stream()?;
        }
        let executed = self.execute(key, &wanted, with_streams)?;
        if !with_streams {
            let (_, entry) = self.named_exec(id, &executed.number.to_string())?;
            return json(201, &entry.state(executed.number));
        }
        Ok(Answer::Leave(Destination::Program {
            program: executed.program,
            wants: Wants {
                stdin: wanted.stdin || wanted.process.terminal,
                stdout: true,
                stderr: true,
                keeps: false,
            },
            exec_id: Some(executed.number),
        }))
    }

    pub(super) fn exec_state(&self, id: &str, exec: &str) -> Outcome {
        let (number, entry) = self.named_exec(id, exec)?;
        json(200, &entry.state(number))
    }

    pub(super) fn wait_exec(&mut self, id: &str, exec: &str, client: Key) -> Outcome {
        let (number, entry) = self.named_exec(id, exec)?;
        if let Some(exit) = &entry.exit {
            return json(200, exit);
        }
        if let Some(entry) = self.containers.exec_mut(number) {
            entry.waiting.push(client);
        }
        Ok(Answer::Later)
    }

    pub(super) fn kill_exec(&mut self, id: &str, exec: &str, body: &[u8]) -> Outcome {
        let kill = read_kill(body)?;
        let (_, entry) = self.named_exec(id, exec)?;
        let Some(pid) = entry.pid else {
            let message = format!("Program {exec} in container {id} is not running.");
            return Err(Response::conflict(&message));
        };
        lifecycle::signal(pid, kill.signal).map_err(|e| {
            let message = format!("Cannot send signal {} to program {exec}: {e}.", kill.signal);
            Response::internal(&message)
        })?;
        done()
    }

    pub(super) fn resize_exec(&mut self, id: &str, exec: &str, body: &[u8]) -> Outcome {
        let size: TerminalSize = read(body, "a TerminalSize")?;
        let program = self.named_exec(id, exec)?.1.program;
        self.resize_program(program, size)
    }

    fn named_exec(&self, id: &str, exec: &str) -> Result<(u64, &ExecEntry), Response> {
        self.named(id)?;
        self.containers.exec(id, exec).ok_or_else(|| {
            let message = format!("There is no program {exec} in container {id}.");
            Response::not_found(&message)
        })
    }
}
