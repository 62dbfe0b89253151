//! What the engine asks of the agent in a guest: the vsock API's client.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_container::spec::{self, Spec};
use bulkhead_protocol::frame::UPGRADE;
use bulkhead_protocol::{
    ApiError, ContainerState, CreateContainer, Exec, ExecState, Exit, Kill, Processes, Shutdown,
    SpareProcess, Stats, TerminalSize, path,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, cannot};
use crate::http::{self, Answer, Body, Conversation, Upgraded};

/// How long a question may take. A guest on a slow host is slow to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How long it gets to have sent what it has begun to send.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// The agent of a sandbox.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
}

/// Which of a container's streams a client is attached to. Standard output and error always are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attach {
    /// Whether what the client sends is the program's standard input.
    pub stdin: bool,
    /// Whether the output waits for it for as long as it takes, even if others want it.
    pub keeps: bool,
}

impl Attach {
    /// As who keeps all that the program writes.
    pub const KEEPER: Attach = Attach {
        stdin: false,
        keeps: true,
    };
}

impl Agent {
    /// The agent whose API is at the Unix socket `path`.
    pub fn at(path: &Path) -> Self {
        Agent {
            socket: path.to_owned(),
        }
    }

    /// Makes a container, up to the execution of its program.
    pub fn create(&self, container: &CreateContainer<Spec>) -> Result<ContainerState, Error> {
        self.post(path::CONTAINERS, container)
    }

    /// Makes a container and attaches to its streams, both at once in a conversation with the agent.
    pub fn create_in(
        &self,
        mut talk: Conversation,
        container: &CreateContainer<Spec>,
    ) -> Result<Upgraded, Error> {
        let body = serde_json::to_string(container).map_err(cannot("describe the container"))?;
        let attach = attach_target(&container.id, Attach::KEEPER);
        let asked = talk
            .send_with_upgrade(("POST", path::CONTAINERS, &body), (&attach, UPGRADE))
            .and_then(|()| talk.answer());
        match asked {
            Ok(answer) => check(answer)?,
            // It was cut off, before or behind the creation: nobody else creates anything here.
            Err(_) => match self.create(container) {
                Ok(_) | Err(Error::Agent { status: 409, .. }) => {
                    return self.attach(&container.id, Attach::KEEPER);
                }
                Err(e) => return Err(e),
            },
        };
        streaming(talk.upgraded().map_err(unreachable)?)
    }

    /// Has the first process of the next container made, which will probably be like this.
    pub fn make_spare(&self, spec: &Spec) -> Result<(), Error> {
        let body = SpareProcess { spec };
        self.send("PUT", path::SPARE, &body).map(drop)
    }

    /// Has its program executed.
    pub fn start(&self, id: &str) -> Result<ContainerState, Error> {
        self.post(&path::of_container(id, "start"), &())
    }

    /// Holds all its processes.
    pub fn pause(&self, id: &str) -> Result<(), Error> {
        self.tell(&path::of_container(id, "pause"), &())
    }

    /// Lets them go on.
    pub fn resume(&self, id: &str) -> Result<(), Error> {
        self.tell(&path::of_container(id, "resume"), &())
    }

    /// Sends a signal to its first process.
    pub fn kill(&self, id: &str, signal: u8) -> Result<(), Error> {
        let all = false;
        self.tell(&path::of_container(id, "kill"), &Kill { signal, all })
    }

    /// Sends a signal to a program that was executed in it.
    pub fn kill_exec(&self, id: &str, exec: &str, signal: u8) -> Result<(), Error> {
        let all = false;
        self.tell(&path::of_exec(id, exec, "kill"), &Kill { signal, all })
    }

    /// Changes its terminal's size.
    pub fn resize(&self, id: &str, size: TerminalSize) -> Result<(), Error> {
        self.tell(&path::of_container(id, "resize"), &size)
    }

    /// Changes the size of the terminal of a program that was executed in it.
    pub fn resize_exec(&self, id: &str, exec: &str, size: TerminalSize) -> Result<(), Error> {
        self.tell(&path::of_exec(id, exec, "resize"), &size)
    }

    /// Ends what is left of it.
    pub fn delete(&self, id: &str) -> Result<(), Error> {
        let target = path::container(id) + "?force=true";
        self.checked("DELETE", &target, "").map(drop)
    }

    /// Waits for the end of its program, however long that takes.
    pub fn wait(&self, id: &str) -> Result<Exit, Error> {
        let stream = http::connect(&self.socket, None).map_err(unreachable)?;
        let target = path::of_container(id, "wait");
        let answer = http::ask_on(stream, "GET", &target, "").map_err(unreachable)?;
        read(&check(answer)?)
    }

    /// What it uses.
    pub fn stats(&self, id: &str) -> Result<Stats, Error> {
        read(&self.checked("GET", &path::of_container(id, "stats"), "")?)
    }

    /// What runs in it.
    pub fn processes(&self, id: &str) -> Result<Processes, Error> {
        read(&self.checked("GET", &path::of_container(id, "processes"), "")?)
    }

    /// Attaches to its streams.
    pub fn attach(&self, id: &str, attach: Attach) -> Result<Upgraded, Error> {
        self.upgrade(&attach_target(id, attach), b"")
    }

    /// Executes a program in it and attaches to its streams.
    pub fn exec(&self, id: &str, exec: &Exec<&spec::Process>) -> Result<Upgraded, Error> {
        let body = serde_json::to_vec(exec).map_err(cannot("describe the program"))?;
        self.upgrade(&path::of_container(id, "exec"), &body)
    }

    /// Executes a program in it that nobody is attached to.
    pub fn exec_detached(&self, id: &str, exec: &Exec<&spec::Process>) -> Result<ExecState, Error> {
        self.post(&path::of_container(id, "exec"), exec)
    }

    /// A tar archive of what is at `path` in it.
    pub fn files(&self, id: &str, path: &str) -> Result<Body, Error> {
        let stream = self.connect()?;
        let target = path::files(id, path);
        let (status, mut body) = http::open(stream, "GET", &target, b"").map_err(unreachable)?;
        if status < 300 {
            return Ok(body);
        }
        let mut text = Vec::new();
        body.by_ref()
            .take(64 << 10)
            .read_to_end(&mut text)
            .map_err(unreachable)?;
        check(Answer { status, body: text })?;
        Err(unreachable(io::ErrorKind::InvalidData.into()))
    }

    /// Puts what is in a tar archive into the folder `path` in it.
    pub fn put_files(&self, id: &str, path: &str, tar: &mut dyn Read) -> Result<(), Error> {
        let target = path::files(id, path);
        let answer = http::send_stream(self.connect()?, "PUT", &target, tar);
        check(answer.map_err(unreachable)?).map(drop)
    }

    /// Waits until what the agent has sent to others has left the guest, as far as they take it: its answer
    /// comes behind.
    pub fn flush(&self) {
        // One that does not answer has nothing to say to others either.
        let _ = http::ask(&self.socket, "GET", path::HEALTH, "", FLUSH_LIMIT);
    }

    /// Ends every process and powers the guest off.
    pub fn shutdown(&self, shutdown: Shutdown) -> Result<(), Error> {
        self.tell(path::SHUTDOWN, &shutdown)
    }

    /// Connects to it.
    pub(crate) fn connect(&self) -> Result<std::os::unix::net::UnixStream, Error> {
        http::connect(&self.socket, Some(ANSWER_LIMIT)).map_err(unreachable)
    }

    fn upgrade(&self, target: &str, body: &[u8]) -> Result<Upgraded, Error> {
        streaming(http::upgrade(self.connect()?, target, UPGRADE, body).map_err(unreachable)?)
    }

    fn post<T: DeserializeOwned>(&self, target: &str, body: &impl Serialize) -> Result<T, Error> {
        read(&self.send("POST", target, body)?)
    }

    fn tell(&self, target: &str, body: &impl Serialize) -> Result<(), Error> {
        self.send("POST", target, body).map(drop)
    }

    fn send(&self, method: &str, target: &str, body: &impl Serialize) -> Result<Vec<u8>, Error> {
        let mut text = serde_json::to_string(body).map_err(cannot("ask the agent"))?;
        if text == "null" {
            text.clear();
        }
        self.checked(method, target, &text)
    }

    fn checked(&self, method: &str, target: &str, body: &str) -> Result<Vec<u8>, Error> {
        let answer = http::ask_on(self.connect()?, method, target, body);
        check(answer.map_err(unreachable)?)
    }
}

fn attach_target(id: &str, attach: Attach) -> String {
    format!(
        "{}?stdin={}&stdout=true&stderr=true&keeps={}",
        path::of_container(id, "attach"),
        attach.stdin,
        attach.keeps
    )
}

/// The stream that was asked for, unless the answer is no.
fn streaming(answer: Result<Upgraded, Answer>) -> Result<Upgraded, Error> {
    answer.map_err(|answer| match check(answer) {
        Err(e) => e,
        Ok(_) => unreachable(io::Error::other("it would not stream")),
    })
}

/// The answer's body, unless the answer is no.
pub(crate) fn check(answer: Answer) -> Result<Vec<u8>, Error> {
    if answer.status < 400 {
        return Ok(answer.body);
    }
    let message = match serde_json::from_slice::<ApiError<'_>>(&answer.body) {
        Ok(error) => clause(&printable(error.message.trim_end_matches('.'))),
        Err(_) => format!("the agent answers with status {}", answer.status),
    };
    Err(Error::Agent {
        status: answer.status,
        message,
    })
}

/// What an agent in this process has refused, by the answer that it would have given.
pub fn refused(status: u16, body: Vec<u8>) -> Error {
    match check(Answer { status, body }) {
        Err(e) => e,
        Ok(_) => Error::Invalid(format!("the agent refuses with status {status}")),
    }
}

/// A sentence as what follows a colon: the agent's begin with a capital letter.
pub(crate) fn clause(sentence: &str) -> String {
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(cannot("understand the guest's agent"))
}

fn unreachable(source: io::Error) -> Error {
    cannot("talk to the guest's agent")(source)
}

/// What a guest says, without what could move a terminal's cursor or change its title.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_when_it_is_an_error_is_the_agents_sentence_and_nothing_for_the_terminal() {
        let answer = |status, body: &str| Answer {
            status,
            body: body.into(),
        };
        let body = "{\"code\":\"conflict\",\"message\":\"It \\u001b[31mruns.\"}";
        let error = check(answer(409, body)).expect_err("409");
        assert_eq!(error.to_string(), "it \u{fffd}[31mruns");
        let error = check(answer(500, "\u{1b}]0;x")).expect_err("500");
        assert_eq!(error.to_string(), "the agent answers with status 500");
        assert_eq!(check(answer(200, "{}")).expect("200"), b"{}");
    }
}
