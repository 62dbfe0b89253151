//! The process that makes a container, is its parent, and does with it what it is asked for until it is deleted.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use bulkhead_container::cgroup::{Hierarchies, Location};
use bulkhead_container::spec::{self, Spec};
use bulkhead_container::{Bundle, Container, Create, Error, Rootfs, State, Status, Stdio};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use crate::place::Place;

/// What a keeper is asked for.
#[derive(Serialize, Deserialize)]
pub enum Request {
    State,
    Start,
    /// With a signal's number.
    Kill(i32),
    Delete {
        /// Also when it runs.
        force: bool,
    },
}

/// The state after what was asked for, or why not.
pub type Reply = Result<State, String>;

/// Reads an answer. The other end need not be closed after it.
pub fn read_reply(from: UnixStream) -> Reply {
    let mut replies = serde_json::Deserializer::from_reader(from).into_iter::<Reply>();
    match replies.next() {
        Some(Ok(reply)) => reply,
        Some(Err(e)) => Err(format!("cannot read the keeper's answer: {e}")),
        None => Err("the keeper ended without an answer".into()),
    }
}

/// Makes the container of a bundle and stays with it. Whoever made this process reads of it on standard input.
pub fn keep(place: &Place, bundle: &Path) -> Result<(), String> {
    let made = Keeper::make(place, bundle).and_then(|keeper| {
        let listener = place.listen().map_err(|e| format!("cannot listen: {e}"))?;
        Ok((keeper, listener))
    });
    let report = |reply: &Reply| {
        let creator = io::stdin().as_fd().try_clone_to_owned();
        creator
            .map(|fd| answer(&fd.into(), reply))
            .map_err(|e| e.to_string())
    };
    match made {
        Ok((keeper, listener)) => {
            report(&Ok(keeper.state()))?;
            keeper.serve(&listener)
        }
        // The creator says it, and gives the place back.
        Err(message) => report(&Err(message)),
    }
}

fn answer(to: &UnixStream, reply: &Reply) {
    // Whoever is gone need not know.
    let _ = serde_json::to_writer(to, reply);
}

struct Keeper<'a> {
    place: &'a Place,
    container: Container,
    status: Status,
    bundle: PathBuf,
    spec: Spec,
}

impl<'a> Keeper<'a> {
    fn make(place: &'a Place, bundle: &Path) -> Result<Keeper<'a>, String> {
        let failed = |path: &Path, e: io::Error| format!("cannot open {}: {e}", path.display());
        let bundle = fs::canonicalize(bundle).map_err(|e| failed(bundle, e))?;
        let config = bundle.join("config.json");
        let file = File::open(&config).map_err(|e| failed(&config, e))?;
        let spec: Spec = serde_json::from_reader(BufReader::new(file))
            .map_err(|e| format!("{}: {e}", config.display()))?;
        let root = spec.root.as_ref().ok_or("root: there is none")?;
        let root = bundle.join(&root.path);
        let root = fs::canonicalize(&root).map_err(|e| failed(&root, e))?;
        let stdio = || {
            io::Result::Ok(Stdio::Files {
                stdin: File::open("/dev/null")?.into(),
                stdout: io::stdout().as_fd().try_clone_to_owned()?,
                stderr: io::stderr().as_fd().try_clone_to_owned()?,
            })
        };
        let create = Create {
            id: &place.id,
            spec: &spec,
            rootfs: Rootfs::Directory(root),
            cgroup: cgroup(&place.id, &spec),
            stdio: stdio().map_err(|e| e.to_string())?,
            init: false,
            bundle: Some(Bundle {
                path: bundle.clone(),
                warn: |failure| eprintln!("oci-runtime: warning: {failure}"),
            }),
        };
        let container = Container::create(create).map_err(|e| e.to_string())?;
        Ok(Keeper {
            place,
            container,
            status: Status::Created,
            bundle,
            spec,
        })
    }

    /// Answers until the container is gone.
    fn serve(mut self, listener: &UnixListener) -> Result<(), String> {
        let failed = |e: io::Error| format!("the keeper of {}: {e}", self.place.id);
        loop {
            let is_wanted = {
                let mut ready = [
                    PollFd::new(listener, PollFlags::IN),
                    PollFd::from_borrowed_fd(self.container.pidfd(), PollFlags::IN),
                ];
                let watched = if self.status == Status::Stopped { 1 } else { 2 };
                match poll(&mut ready[..watched], None) {
                    Err(Errno::INTR) => continue,
                    polled => polled.map_err(|e| failed(e.into()))?,
                };
                !ready[0].revents().is_empty()
            };
            // Whoever asks sees an end that was before.
            self.notice_end();
            if is_wanted {
                let (caller, _) = listener.accept().map_err(failed)?;
                let Ok(request) = serde_json::from_reader(&caller) else {
                    continue;
                };
                let (reply, is_gone) = self.perform(&request);
                if is_gone {
                    self.place.remove();
                }
                answer(&caller, &reply);
                if is_gone {
                    return Ok(());
                }
            }
        }
    }

    /// Collects the first process if it has ended.
    fn notice_end(&mut self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if self.status != Status::Stopped
            && let Ok(Some(_)) = waitid(WaitId::PidFd(self.container.pidfd()), options)
        {
            self.status = Status::Stopped;
        }
    }

    fn await_end(&mut self) {
        while self.status != Status::Stopped {
            let mut ended = [PollFd::from_borrowed_fd(
                self.container.pidfd(),
                PollFlags::IN,
            )];
            let _ = poll(&mut ended, None);
            self.notice_end();
        }
    }

    /// The answer, and whether the container is gone.
    fn perform(&mut self, request: &Request) -> (Reply, bool) {
        let done = match *request {
            Request::State => Ok(false),
            Request::Start => self.start(),
            Request::Kill(signal) => self.kill(signal),
            Request::Delete { force } => self.delete(force),
        };
        match done {
            Ok(is_gone) => (Ok(self.state()), is_gone),
            Err(Failure { message, is_gone }) => (Err(message), is_gone),
        }
    }

    fn start(&mut self) -> Result<bool, Failure> {
        if self.status != Status::Created {
            return Err(self.refuse("start", "it is not created but"));
        }
        match self.container.start() {
            Ok(()) => {
                self.status = Status::Running;
                Ok(false)
            }
            Err(error) => {
                let is_gone = matches!(error, Error::Hook { .. });
                if is_gone {
                    self.await_end();
                }
                Err(Failure {
                    message: error.to_string(),
                    is_gone,
                })
            }
        }
    }

    fn kill(&mut self, signal: i32) -> Result<bool, Failure> {
        if self.status == Status::Stopped {
            return Err(self.refuse("signal", "it is"));
        }
        self.container.kill(signal)?;
        Ok(false)
    }

    fn delete(&mut self, force: bool) -> Result<bool, Failure> {
        if self.status != Status::Stopped && !force {
            return Err(self.refuse("delete", "it is not stopped but"));
        }
        self.container.delete()?;
        self.await_end();
        Ok(true)
    }

    fn refuse(&self, operation: &str, why: &str) -> Failure {
        let (id, status) = (&self.place.id, self.status);
        let message = format!("cannot {operation} container {id}: {why} {status}");
        Failure {
            message,
            is_gone: false,
        }
    }

    fn state(&self) -> State {
        let pid = self.container.pid().as_raw_pid();
        State {
            oci_version: spec::VERSION.into(),
            id: self.place.id.clone(),
            status: self.status,
            pid: (self.status != Status::Stopped).then_some(pid),
            bundle: self.bundle.clone(),
            annotations: self.spec.annotations.clone(),
        }
    }
}

struct Failure {
    message: String,
    is_gone: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            message: error.to_string(),
            is_gone: false,
        }
    }
}

/// In this host's hierarchies, if there are any.
fn cgroup(id: &str, spec: &Spec) -> Option<Location> {
    let host = Hierarchies::of_this_host().ok()?;
    let wanted = spec.linux.as_ref().and_then(|l| l.cgroups_path.as_deref());
    let location = match wanted.filter(|path| !path.is_empty()) {
        Some(path) => host.at(Path::new("/").join(path)),
        // Another root may have a container of that name.
        None => host.at(format!("/oci-runtime-{}-{id}", std::process::id())),
    };
    Some(location.everywhere())
}
