//! The test guest: a PID 1 that does what it is told, one JSON line at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::vm::{Setup, Vm};

/// The guest's port for requests.
const PORT: u32 = 7000;

/// A booted test guest. Dropping it kills the VM.
#[derive(Debug)]
pub struct Guest {
    /// The VM it runs in.
    pub vm: Vm,
    stream: BufReader<UnixStream>,
}

impl Guest {
    /// Boots the VM and waits for its PID 1.
    pub fn boot(setup: Setup) -> Self {
        let mut vm = setup.start();
        vm.wait_ready();
        let stream = BufReader::new(vm.connect(PORT));
        Guest { vm, stream }
    }

    /// Has the guest do something; fails the test if it could not.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.tell(command, arguments);
        self.answer(command)
    }

    /// Asks without waiting for the answer: there may be none.
    pub fn tell(&mut self, command: &str, arguments: Value) {
        let mut request = json!({"command": command});
        if let (Some(request), Some(arguments)) = (request.as_object_mut(), arguments.as_object()) {
            request.extend(arguments.clone());
        }
        let sent = self
            .stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes());
        sent.unwrap_or_else(|e| {
            self.vm
                .fail(&format!("asking the guest for {command}: {e}"))
        });
    }

    /// The answer to what was told before.
    pub fn answer(&mut self, command: &str) -> Value {
        let mut line = String::new();
        if let Err(e) = self.stream.read_line(&mut line) {
            self.vm
                .fail(&format!("the guest does not answer to {command}: {e}"));
        }
        match serde_json::from_str::<Value>(&line) {
            Ok(answer) if answer.get("error").is_none() => answer,
            _ => self.vm.fail(&format!("{command}: {line:?}")),
        }
    }
}
