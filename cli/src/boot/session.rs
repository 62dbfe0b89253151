//! One VM from start to end: the VMM's process, the terminal, the sockets' directory.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bulkhead_protocol::{API_PORT, Info, Ready, Shutdown, path};
use bulkhead_vmm::timing::{self, StartTimes};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use super::directory::{Directory, listen, ready_socket};
use super::error::{SessionError, cannot};
use super::typing::Typing;
use super::waking::Waking;
use crate::terminal::{RawTerminal, is_in_background, window_size};
use bulkhead_engine::artifacts::Artifact;
use bulkhead_engine::http;
use bulkhead_engine::snapshots::Snapshot;

/// How long one question to the VMM or the agent may take. A guest on a slow host is slow to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a VM that was asked to stop gets, before the next, ruder way.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How it went.
pub struct End {
    /// The exit code for the shell.
    pub code: u8,
    /// When this process started, in nanoseconds of `CLOCK_MONOTONIC`.
    pub started: u64,
    /// Whether it was a restore and no boot.
    pub is_restored: bool,
    /// The VMM's own times, if it came so far as to tell.
    pub vmm: Option<StartTimes>,
    /// What the agent reported, and when that arrived.
    pub ready: Option<(Ready<'static>, u64)>,
    /// When the agent of a restored guest knew that it is one.
    pub woken: Option<u64>,
    /// What the agent says of its kernel.
    pub info: Option<Info<'static>>,
}

/// A VM that runs.
pub struct Session {
    directory: Directory,
    vmm: Child,
    pidfd: OwnedFd,
    signals: SignalFd,
    awaited: Option<Awaited>,
    terminal: Option<RawTerminal>,
    typing: Option<Typing>,
    stopping: Option<Stopping>,
    /// Stop as soon as the guest is ready and its times are known.
    measure_only: bool,
    end: End,
}

/// How far the end of the VM has been asked for.
#[derive(Clone, Copy)]
struct Stopping {
    way: Way,
    until: Instant,
}

/// The ways to end a VM, from polite to rude.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Agent,
    Terminate,
    Kill,
}

/// A VM that is to be started.
pub struct Plan {
    /// Where its sockets are.
    pub directory: Directory,
    /// The VMM's document: a `VmConfig`, or a `RestoreConfig`.
    pub document: String,
    /// How it comes to life.
    pub origin: Origin,
    /// What ends it, blocked already.
    pub signals: SignalFd,
    /// Stop as soon as the guest is ready and its times are known.
    pub measure_only: bool,
    /// When this process started, in nanoseconds of `CLOCK_MONOTONIC`.
    pub started: u64,
}

/// How a VM comes to life.
pub enum Origin {
    /// It boots.
    Boot {
        /// Whether an agent reports when it is up.
        reports: bool,
    },
    /// It goes on from a snapshot.
    Restore {
        /// Which.
        snapshot: Snapshot,
        /// Where its agent answers, if it can have one.
        agent: Option<PathBuf>,
    },
}

/// What tells that the guest is up.
enum Awaited {
    /// Its agent connects and reports.
    Report(UnixListener),
    /// It was told that it was restored.
    Waking(Waking),
}

impl AsFd for Awaited {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Awaited::Report(listener) => listener.as_fd(),
            Awaited::Waking(waking) => waking.as_fd(),
        }
    }
}

impl Session {
    /// Starts the VMM.
    pub fn start(plan: Plan) -> Result<Self, SessionError> {
        let Plan {
            directory,
            document: text,
            origin,
            signals,
            measure_only,
            started,
        } = plan;
        let document = directory.path().join("config.json");
        fs::write(&document, text).map_err(cannot(format!("write {}", document.display())))?;
        let listener = match origin {
            Origin::Boot { reports: true } => Some(listen(&directory.path().join(ready_socket()))?),
            _ => None,
        };

        let in_background = is_in_background();
        let terminal = match in_background {
            true => None,
            false => RawTerminal::enter().map_err(cannot("set up the terminal"))?,
        };
        let program = Artifact::Vmm.find()?;
        let mut command = Command::new(&program);
        command
            .arg("--config")
            .arg(&document)
            .arg("--die-with-parent");
        if let Origin::Restore { snapshot, .. } = &origin {
            command.arg("--restore").arg(snapshot.folder());
        }
        for file in directory.leftovers() {
            command.arg("--cleanup").arg(file);
        }
        if terminal.is_some() {
            command.stdin(Stdio::piped());
        } else if in_background {
            command.stdin(Stdio::null());
        }
        let mut vmm = command
            .spawn()
            .map_err(cannot(format!("start {}", program.display())))?;
        let typing = vmm.stdin.take().map(Typing::new).transpose()?;
        let pid = Pid::from_child(&vmm);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(cannot("watch the VMM"))?;
        let is_restored = matches!(origin, Origin::Restore { .. });
        let awaited = match origin {
            Origin::Boot { .. } => listener.map(Awaited::Report),
            Origin::Restore { snapshot, agent } => {
                let directory = directory.path().to_owned();
                Some(Awaited::Waking(Waking::begin(snapshot, directory, agent)?))
            }
        };
        Ok(Session {
            directory,
            vmm,
            pidfd,
            signals,
            awaited,
            terminal,
            typing,
            stopping: None,
            measure_only,
            end: End {
                code: 0,
                started,
                is_restored,
                vmm: None,
                ready: None,
                woken: None,
                info: None,
            },
        })
    }

    /// Stays with the VM until it is over.
    pub fn supervise(&mut self) -> Result<&End, SessionError> {
        while !self.turn()? {}
        let status = self.vmm.wait().map_err(cannot("wait for the VMM"))?;
        // Before anything more is printed.
        self.terminal = None;
        self.end.code = exit_code(status);
        Ok(&self.end)
    }

    /// Waits for something to happen and deals with it. `true` when the VMM has ended.
    fn turn(&mut self) -> Result<bool, SessionError> {
        let stdin = io::stdin();
        let reads_stdin = self.typing.as_ref().is_some_and(|t| !t.ended);
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Vmm, self.pidfd.as_fd(), PollFlags::IN),
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
        ];
        if let Some(awaited) = &self.awaited {
            watched.push((Source::Ready, awaited.as_fd(), PollFlags::IN));
        }
        if reads_stdin {
            watched.push((Source::Stdin, stdin.as_fd(), PollFlags::IN));
        }
        if let Some(typing) = &self.typing
            && !typing.unsent.is_empty()
        {
            watched.push((Source::Guest, typing.pipe.as_fd(), PollFlags::OUT));
        }
        let happened = wait(&watched, self.stopping.map(|s| s.until))?;
        if happened.contains(&Source::Vmm) {
            return Ok(true);
        }
        for source in happened {
            match source {
                Source::Vmm => {}
                Source::Signals => self.signal()?,
                Source::Ready => self.guest_ready()?,
                Source::Stdin => self.typed()?,
                Source::Guest => {
                    if let Some(typing) = &mut self.typing {
                        typing.send();
                    }
                }
            }
        }
        if self.stopping.is_some_and(|s| s.until <= Instant::now()) {
            self.stop()?;
        }
        Ok(false)
    }

    fn signal(&mut self) -> Result<(), SessionError> {
        while let Some(info) = self
            .signals
            .read_signal()
            .map_err(cannot("read a signal"))?
        {
            if info.ssi_signo == Signal::SIGWINCH as u32 {
                self.tell_window_size();
            } else {
                self.stop()?;
            }
        }
        Ok(())
    }

    /// The agent has connected and sends one line, or it was told that it goes on from a snapshot: the guest is up.
    fn guest_ready(&mut self) -> Result<(), SessionError> {
        match self.awaited.take() {
            None => return Ok(()),
            Some(Awaited::Report(listener)) => {
                let arrived = timing::now();
                let message = listener
                    .accept()
                    .and_then(|(stream, _)| read_ready(stream))
                    .map_err(cannot("read what the guest's agent reports"))?;
                self.end.ready = Some((message, arrived));
            }
            Some(Awaited::Waking(waking)) => {
                match waking.finish() {
                    Ok(woken) => self.end.woken = woken,
                    // It runs all the same, and whoever uses it should know.
                    Err(e) => eprint!("bulkhead: {}{}", crate::with_causes(&e), self.line_end()),
                }
                // It knows the window that it was saved with.
                self.tell_window_size();
            }
        }
        if self.measure_only {
            self.measure();
            self.stop()?;
        } else if self.terminal.is_some() {
            eprint!(
                "The guest is ready; sockets are in {}. Ctrl-A x stops it.\r\n",
                self.directory.path().display()
            );
        }
        Ok(())
    }

    /// How a line ends on our standard error, which may be a raw terminal.
    fn line_end(&self) -> &'static str {
        match self.terminal {
            Some(_) => "\r\n",
            None => "\n",
        }
    }

    /// Whether the guest's agent has been heard of.
    fn has_agent(&self) -> bool {
        self.end.ready.is_some() || self.end.woken.is_some()
    }

    /// Asks for the times. A VM that does not tell leaves gaps in the table, no more.
    fn measure(&mut self) {
        let control = self.directory.path().join("control.sock");
        if let Ok(answer) = http::ask(&control, "GET", "/v1/timings", "", ANSWER_LIMIT) {
            self.end.vmm = serde_json::from_slice(&answer.body).ok();
        }
        if !self.has_agent() {
            return;
        }
        let question = ("GET", path::INFO, "");
        if let Ok(answer) = http::ask_guest(&self.vsock(), API_PORT, question, ANSWER_LIMIT) {
            self.end.info = serde_json::from_slice(&answer.body).ok();
        }
    }

    fn typed(&mut self) -> Result<(), SessionError> {
        let Some(typing) = &mut self.typing else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        let quit = match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                typing.ended = true;
                false
            }
            Ok(n) => typing.take(&buffer[..n]),
            Err(_) => false,
        };
        if quit { self.stop() } else { Ok(()) }
    }

    /// Asks the VM to end; asked again, or when it takes too long, in a ruder way.
    fn stop(&mut self) -> Result<(), SessionError> {
        let mut way = match self.stopping.map(|s| s.way) {
            None if self.has_agent() => Way::Agent,
            None | Some(Way::Agent) => Way::Terminate,
            Some(Way::Terminate | Way::Kill) => Way::Kill,
        };
        if way == Way::Agent {
            let body = serde_json::to_string(&Shutdown::default()).unwrap_or_default();
            let question = ("POST", path::SHUTDOWN, body.as_str());
            let asked = http::ask_guest(&self.vsock(), API_PORT, question, ANSWER_LIMIT);
            if !asked.is_ok_and(|answer| answer.status < 300) {
                way = Way::Terminate;
            }
        }
        let signal = match way {
            Way::Agent => None,
            Way::Terminate => Some(rustix::process::Signal::TERM),
            Way::Kill => Some(rustix::process::Signal::KILL),
        };
        if let Some(signal) = signal {
            match pidfd_send_signal(&self.pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(cannot("stop the VMM")(e)),
            }
        }
        self.stopping = Some(Stopping {
            way,
            until: Instant::now() + STOP_LIMIT,
        });
        Ok(())
    }

    /// The guest's console should be as large as the terminal. Not worth failing for.
    fn tell_window_size(&self) {
        if self.terminal.is_none() {
            return;
        }
        if let Some((columns, rows)) = window_size() {
            let body = serde_json::json!({ "columns": columns, "rows": rows }).to_string();
            let control = self.directory.path().join("control.sock");
            let _ = http::ask(
                &control,
                "PUT",
                "/v1/console",
                &body,
                Duration::from_secs(1),
            );
        }
    }

    fn vsock(&self) -> PathBuf {
        self.directory.path().join("vsock.sock")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Reached with a living VMM only when something failed on our side.
        if let Ok(None) = self.vmm.try_wait() {
            let _ = self.vmm.kill();
            let _ = self.vmm.wait();
        }
    }
}

/// What a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Vmm,
    Signals,
    Ready,
    Stdin,
    Guest,
}

/// Waits until one of `watched` is ready or `until` has come.
fn wait(
    watched: &[(Source, BorrowedFd<'_>, PollFlags)],
    until: Option<Instant>,
) -> Result<Vec<Source>, SessionError> {
    let mut fds: Vec<PollFd<'_>> = watched
        .iter()
        .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(cannot("wait for the VM")(e)),
    }
    Ok(watched
        .iter()
        .zip(&fds)
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|((source, ..), _)| *source)
        .collect())
}

/// Reads the agent's line, which a hostile guest may never end.
fn read_ready(stream: UnixStream) -> io::Result<Ready<'static>> {
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut line = String::new();
    BufReader::new(stream.take(64 << 10)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The VMM's exit code, or 128 and the signal's number as shells have it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(i32::from(crate::FAILED));
    u8::try_from(code).unwrap_or(crate::FAILED)
}
