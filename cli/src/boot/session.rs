//! One boot from start to end: the VMM's process, the terminal, the sockets' directory.

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
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use super::directory::{Directory, listen, ready_socket};
use super::error::{SessionError, cannot};
use super::options::BootArgs;
use super::typing::Typing;
use crate::terminal::{RawTerminal, window_size};
use bulkhead_engine::artifacts::Artifact;
use bulkhead_engine::http;

/// How long one question to the VMM or the agent may take. A guest on a slow host is slow to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a VM that was asked to stop gets, before the next, ruder way.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How a boot went.
pub struct End {
    /// The exit code for the shell.
    pub code: u8,
    /// When this process started, in nanoseconds of `CLOCK_MONOTONIC`.
    pub started: u64,
    /// The VMM's own times, if it came so far as to tell.
    pub vmm: Option<StartTimes>,
    /// What the agent reported, and when that arrived.
    pub ready: Option<(Ready<'static>, u64)>,
    /// What the agent says of its kernel.
    pub info: Option<Info<'static>>,
}

/// A boot under way.
pub struct Session {
    directory: Directory,
    vmm: Child,
    pidfd: OwnedFd,
    signals: SignalFd,
    ready: Option<UnixListener>,
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

impl Session {
    /// Starts the VMM.
    pub fn start(args: &BootArgs, started: u64) -> Result<Self, SessionError> {
        let directory = Directory::open(args.vsock.as_deref())?;
        let config = args.to_config(directory.path())?;
        let document = directory.path().join("config.json");
        let text = serde_json::to_string(&config).map_err(cannot("write the configuration"))?;
        fs::write(&document, text).map_err(cannot(format!("write {}", document.display())))?;

        let ready = if args.has_agent() {
            Some(listen(&directory.path().join(ready_socket()))?)
        } else {
            None
        };
        // Blocked and read from a descriptor, so that they end the VM and not only this process.
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGWINCH,
        ] {
            set.add(signal);
        }
        set.thread_block().map_err(cannot("block signals"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&set, flags).map_err(cannot("watch signals"))?;

        let terminal = RawTerminal::enter().map_err(cannot("set up the terminal"))?;
        let program = Artifact::Vmm.find()?;
        let mut command = Command::new(&program);
        command
            .arg("--config")
            .arg(&document)
            .arg("--die-with-parent");
        for file in directory.leftovers() {
            command.arg("--cleanup").arg(file);
        }
        if terminal.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut vmm = command
            .spawn()
            .map_err(cannot(format!("start {}", program.display())))?;
        let typing = vmm.stdin.take().map(Typing::new).transpose()?;
        let pid = Pid::from_child(&vmm);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(cannot("watch the VMM"))?;
        Ok(Session {
            directory,
            vmm,
            pidfd,
            signals,
            ready,
            terminal,
            typing,
            stopping: None,
            measure_only: args.timing,
            end: End {
                code: 0,
                started,
                vmm: None,
                ready: None,
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
        if let Some(listener) = &self.ready {
            watched.push((Source::Ready, listener.as_fd(), PollFlags::IN));
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
                Source::Ready => self.agent_ready()?,
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

    /// The agent has connected: it sends one line, and then the guest is up.
    fn agent_ready(&mut self) -> Result<(), SessionError> {
        let Some(listener) = self.ready.take() else {
            return Ok(());
        };
        let arrived = timing::now();
        let message = listener
            .accept()
            .and_then(|(stream, _)| read_ready(stream))
            .map_err(cannot("read what the guest's agent reports"))?;
        self.end.ready = Some((message, arrived));
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

    /// Asks for the times. A VM that does not tell leaves gaps in the table, no more.
    fn measure(&mut self) {
        let control = self.directory.path().join("control.sock");
        if let Ok(answer) = http::ask(&control, "GET", "/v1/timings", "", ANSWER_LIMIT) {
            self.end.vmm = serde_json::from_slice(&answer.body).ok();
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
            None if self.end.ready.is_some() => Way::Agent,
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
