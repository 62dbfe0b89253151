//! The system calls that reach the host's kernel while a program runs, counted by tracing every process
//! that comes of the command: ours, and with a container on the host's kernel the container's.
//!
//! The program tells when it begins and when it is done, and waits for our word each time, so that what
//! it does is told from its start and its end.
//!
//! If the tracer dies, the kernel kills all that it traces; the next command puts in order what they leave.

mod ptrace;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use crate::instance::{Setup, keep_the_end, last_line, name_of, why_booted};
use crate::report::Side;

/// The hidden command that a traced command begins as: it waits until it is traced.
pub const COMMAND: &str = "compare-traced";

/// How often the program asks its kernel.
pub const CALLS: u64 = 10_000;
/// How long a traced container may take, to each of its lines.
const LIMIT: Duration = Duration::from_secs(300);

/// A part of the time that is counted for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Work,
    Stop,
}

const PHASES: usize = 3;

/// Which system calls reached the host's kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Until the program ran.
    pub start: u64,
    /// While it made [`CALLS`] system calls.
    pub work: u64,
    /// Until all had ended.
    pub stop: u64,
    /// How many different ones there were in all that time.
    pub kinds: usize,
}

/// What the traced command said, as far as it concerns whoever asks it something.
struct Streams {
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Wakes whoever waits when this command is to be given up.
    pid: u32,
}

/// Runs a container of this side whose program makes some system calls, and counts.
pub fn count(setup: &Setup<'_>, side: Side) -> Result<Counted, String> {
    let phase = AtomicUsize::new(Phase::Start as usize);
    let name = name_of(side, 9000);
    let (sender, streams) = channel();
    thread::scope(|scope| {
        // All about a traced process is for one thread to do.
        let tracer = scope.spawn(|| trace(setup, (side, &name), &phase, sender));
        let talked = match streams.recv() {
            Ok(streams) => talk(streams, &phase, setup, (side, &name)),
            // It says why itself.
            Err(_) => Ok(()),
        };
        let counted = tracer
            .join()
            .unwrap_or_else(|_| Err("the tracer has failed".to_owned()))?;
        talked?;
        Ok(counted)
    })
}

/// Has the program do what it is to do, phase by phase.
fn talk(
    streams: Streams,
    phase: &AtomicUsize,
    setup: &Setup<'_>,
    (side, name): (Side, &str),
) -> Result<(), String> {
    let Streams {
        mut stdin,
        stdout,
        pid,
    } = streams;
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let line = || {
        lines.recv_timeout(LIMIT).map_err(|_| {
            // It may hang, and whoever traces it would wait for ever.
            let mut remove = setup.command(&["rm", "--force", name]);
            let streams = remove.stdin(Stdio::null()).stdout(Stdio::null());
            let _ = streams.stderr(Stdio::null()).status();
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            "the traced container does not answer".to_owned()
        })
    };
    line()?;
    // The calls of a boot are not those of a clone's start.
    if side == Side::Warm
        && let Some(why) = why_booted(setup, name)?
    {
        return Err(format!("it has booted: {why}"));
    }
    phase.store(Phase::Work as usize, Ordering::SeqCst);
    let asked = writeln!(stdin, "calls {CALLS}");
    asked.map_err(|e| format!("cannot talk to the traced container: {e}"))?;
    line()?;
    phase.store(Phase::Stop as usize, Ordering::SeqCst);
    drop(stdin);
    Ok(())
}

/// Starts the command, traces it to the end of all that comes of it, and counts.
fn trace(
    setup: &Setup<'_>,
    (side, name): (Side, &str),
    phase: &AtomicUsize,
    sender: Sender<Streams>,
) -> Result<Counted, String> {
    let failed = |e: std::io::Error| format!("cannot trace a container: {e}");
    let arguments = setup.arguments(&setup.run(side, name, &["session"]));
    let mut command = Command::new("/proc/self/exe");
    command
        // What follows is the other command's, and no option of this one.
        .args([COMMAND, "--"])
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("the traced command has no streams".to_owned());
    };
    let complaints = keep_the_end(stderr);
    let pid = i32::try_from(child.id()).map_err(|e| failed(std::io::Error::other(e)))?;
    if let Err(e) = ptrace::seize(pid) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(e));
    }
    // Now it may begin.
    stdin.write_all(b"\n").map_err(failed)?;
    let streams = Streams {
        stdin,
        stdout,
        pid: child.id(),
    };
    let _ = sender.send(streams);
    drop(sender);
    let mut calls = [0_u64; PHASES];
    let mut kinds = std::collections::BTreeSet::new();
    let status = ptrace::follow(pid, &mut |number| {
        let phase = phase.load(Ordering::SeqCst);
        if let Some(count) = calls.get_mut(phase) {
            *count += 1;
        }
        kinds.insert(number);
    });
    let status = status.map_err(failed)?;
    if status != 0 {
        let said = complaints.join().unwrap_or_default();
        return Err(last_line(&said));
    }
    let [start, work, stop] = calls;
    Ok(Counted {
        start,
        work,
        stop,
        kinds: kinds.len(),
    })
}

/// Waits until this process is traced, and becomes the command with these arguments.
pub fn become_traced(arguments: &[String]) -> std::io::Error {
    // What comes is a byte that is not for the command.
    let mut byte = [0];
    match rustix::io::read(std::io::stdin(), &mut byte) {
        Ok(1) => Command::new("/proc/self/exe").args(arguments).exec(),
        Ok(_) => std::io::ErrorKind::UnexpectedEof.into(),
        Err(e) => e.into(),
    }
}
