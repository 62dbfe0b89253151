//! One container with the measuring program in it, started as people start one: by the command line.
//!
//! Its program ends when nobody asks it any more, and the command that started it then removes it: so
//! whoever ends this process, nothing stays behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bulkhead_engine::record::Processes;
use bulkhead_engine::{Engine, Entry};
use serde_json::Value;

use crate::bench;
use crate::report::Side;

/// The longest line that is taken from a guest. What it finds in `/sys` is the longest there is.
const LONGEST_LINE: u64 = 8 << 20;
/// How long a container may take to start, or to answer. A guest on an emulated kernel is slow.
const LIMIT: Duration = Duration::from_secs(300);
/// What the monitor writes before the reason for which a machine was booted that was to be restored.
const BOOTING: &str = "booting, not restoring: ";
/// What is kept of what a command complains of.
const COMPLAINTS: usize = 4096;

/// How containers are started.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The containers.
    pub engine: &'a Engine,
    /// The root, if it was named.
    pub root: Option<&'a std::path::Path>,
    /// The image, which has the measuring program.
    pub image: &'a str,
    /// More options of `run`.
    pub options: Vec<String>,
}

impl Setup<'_> {
    /// This program, with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // By this path it is itself even if a new one was installed meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.args(self.arguments(arguments));
        command
    }

    /// The arguments, with those that say which root.
    pub fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(root) = self.root {
            all.push("--root".to_owned());
            all.push(root.to_string_lossy().into_owned());
        }
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        all
    }

    /// The arguments that run `program` in a container called `name`.
    pub fn run<'a>(&'a self, side: Side, name: &'a str, program: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["run", "--rm", "--interactive", "--pull", "never"];
        arguments.extend(isolation(side));
        arguments.extend(["--name", name]);
        arguments.extend(self.options.iter().map(String::as_str));
        arguments.extend(["--entrypoint", bench::IN_CONTAINER, self.image]);
        arguments.extend(program);
        arguments
    }
}

/// A container that is on its way up, or up.
pub struct Instance<'a> {
    setup: &'a Setup<'a>,
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
    complaints: Option<JoinHandle<String>>,
    started: Instant,
}

impl<'a> Instance<'a> {
    /// Starts a container, and does not wait for it.
    pub fn begin(setup: &'a Setup<'a>, side: Side, number: usize) -> Result<Self, String> {
        let name = name_of(side, number);
        let mut command = setup.command(&setup.run(side, &name, &["session"]));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|e| format!("cannot start bulkhead: {e}"))?;
        let (sender, lines) = sync_channel(16);
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || pass_lines(stdout, &sender));
        }
        let complaints = child.stderr.take().map(keep_the_end);
        Ok(Instance {
            setup,
            name,
            stdin: child.stdin.take(),
            child,
            lines,
            complaints,
            started,
        })
    }

    /// Waits until its program runs. Returns how long that took, from the start of the command.
    pub fn wait_ready(&mut self) -> Result<Duration, String> {
        let (when, _) = self.line(LIMIT)?;
        Ok(when.duration_since(self.started))
    }

    /// Starts a container and waits until its program runs.
    pub fn start(
        setup: &'a Setup<'a>,
        side: Side,
        number: usize,
    ) -> Result<(Self, Duration), String> {
        let mut instance = Instance::begin(setup, side, number)?;
        let took = instance.wait_ready()?;
        Ok((instance, took))
    }

    /// Asks its program something.
    pub fn ask(&mut self, question: &str) -> Result<Value, String> {
        let said = self
            .stdin
            .as_mut()
            .map(|stdin| writeln!(stdin, "{question}"));
        if !matches!(said, Some(Ok(()))) {
            return Err(self.why_ended());
        }
        let (_, line) = self.line(LIMIT)?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|e| format!("the program in the container does not speak JSON: {e}"))?;
        match answer["error"].as_str() {
            Some(error) => Err(bulkhead_engine::agent::printable(error)),
            None => Ok(answer),
        }
    }

    /// The container, as the engine has it.
    pub fn entry(&self) -> Result<Entry, String> {
        let found = self.setup.engine.find(&self.name);
        found.map_err(|e| e.to_string())
    }

    /// Why its machine has booted, if it is no clone of a template.
    pub fn why_booted(&self) -> Result<Option<String>, String> {
        why_booted(self.setup, &self.name)
    }

    /// The processes that stay with it.
    pub fn processes(&self) -> Result<Processes, String> {
        let read = self.entry()?.files.read_processes();
        read.map_err(|e| format!("cannot read which processes {} has: {e}", self.name))
    }

    /// Stops it, by the command line, and returns how long it took until nothing of it was left.
    pub fn stop(mut self) -> Result<Duration, String> {
        let monitor = self.processes()?.monitor.open();
        let start = Instant::now();
        let mut command = self.setup.command(&["stop", &self.name]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let output = command
            .output()
            .map_err(|e| format!("cannot start bulkhead: {e}"))?;
        if !output.status.success() {
            return Err(last_line(&String::from_utf8_lossy(&output.stderr)));
        }
        if let Some(monitor) = monitor {
            wait_end(&monitor)?;
        }
        let took = start.elapsed();
        self.stdin = None;
        let _ = self.child.wait();
        Ok(took)
    }

    fn line(&mut self, limit: Duration) -> Result<(Instant, String), String> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => Err(self.why_ended()),
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "nothing has come from its program for {} seconds",
                limit.as_secs()
            )),
        }
    }

    /// What the command said at its end.
    fn why_ended(&mut self) -> String {
        self.stdin = None;
        let _ = self.child.wait();
        let complaints = self.complaints.take().and_then(|thread| thread.join().ok());
        last_line(&complaints.unwrap_or_default())
    }
}

impl Drop for Instance<'_> {
    fn drop(&mut self) {
        self.stdin = None;
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let mut command = self.setup.command(&["rm", "--force", &self.name]);
            let streams = command.stdin(Stdio::null()).stdout(Stdio::null());
            let _ = streams.stderr(Stdio::null()).status();
            let _ = self.child.wait();
        }
    }
}

/// The options of `run` that make it this side's.
pub fn isolation<'a>(side: Side) -> Vec<&'a str> {
    let mut options = vec!["--isolation", side.kind().name()];
    if side == Side::Cold {
        options.push("--cold");
    }
    options
}

/// A container's name: this process's, and nobody else's.
pub fn name_of(side: Side, number: usize) -> String {
    format!("compare-{}-{}-{number}", std::process::id(), side.name())
}

/// Why the machine of the container with this name has booted, if it is no clone of a template. `run` says
/// nothing of it: a machine that cannot be restored boots, and all is well but the figure.
pub fn why_booted(setup: &Setup<'_>, name: &str) -> Result<Option<String>, String> {
    let entry = setup.engine.find(name).map_err(|e| e.to_string())?;
    let cannot = |e| format!("cannot tell how the machine of {name} was started: {e}");
    let processes = entry.files.read_processes().map_err(cannot)?;
    let command = fs::read(format!("/proc/{}/cmdline", processes.vmm.pid)).map_err(cannot)?;
    if is_restored(&command) {
        return Ok(None);
    }
    let log = fs::read(entry.files.complaints()).unwrap_or_default();
    Ok(Some(why_in(&String::from_utf8_lossy(&log))))
}

/// Whether a VMM with this command line, as in proc(5), restores a machine.
fn is_restored(command: &[u8]) -> bool {
    command
        .split(|&byte| byte == 0)
        .any(|word| word == b"--restore")
}

/// What a monitor's log says of why its machine has booted.
fn why_in(log: &str) -> String {
    let mut lines = log.lines().rev();
    match lines.find_map(|line| line.split_once(BOOTING)) {
        Some((_, why)) => last_line(why),
        None => "all machines boot in this environment".to_owned(),
    }
}

/// The last thing that a command said, without what it begins with.
pub fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or("it ended and said nothing").trim();
    let line = line.strip_prefix("bulkhead: ").unwrap_or(line);
    bulkhead_engine::agent::printable(&line.chars().take(400).collect::<String>())
}

/// Passes on each line with the moment at which its first byte came.
fn pass_lines(stdout: impl Read, sender: &SyncSender<(Instant, String)>) {
    let mut reader = BufReader::new(stdout);
    loop {
        if !matches!(reader.fill_buf(), Ok(bytes) if !bytes.is_empty()) {
            return;
        }
        let when = Instant::now();
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line);
        if read.is_err() || line.last() != Some(&b'\n') {
            return;
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        if sender.send((when, line)).is_err() {
            return;
        }
    }
}

/// Reads to the end, of which it keeps the last bytes.
pub fn keep_the_end(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..n]);
            let surplus = kept.len().saturating_sub(COMPLAINTS);
            kept.drain(..surplus);
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

fn wait_end(process: impl std::os::fd::AsFd) -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(LIMIT).ok();
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => return Err("its sandbox does not end".to_owned()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("cannot wait for the end of its sandbox: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_when_a_guest_never_ends_it_is_not_waited_for() {
        let (sender, lines) = sync_channel(4);
        let endless = std::io::repeat(b'x').take(LONGEST_LINE + 1);
        pass_lines(&b"one\ntwo\n"[..], &sender);
        pass_lines(endless, &sender);
        drop(sender);
        let texts: Vec<String> = lines.iter().map(|(_, line)| line).collect();
        assert_eq!(texts, ["one\n", "two\n"]);
    }

    #[test]
    fn machine_when_it_was_to_be_restored_and_has_booted_says_why() {
        assert!(is_restored(
            b"/bin/vmm\0--restore\0/snapshot\0--config\0-\0"
        ));
        assert!(!is_restored(b"/bin/vmm\0--config\0-\0"));
        let log = "bulkhead: booting, not restoring: its template is\u{1b} damaged\nready\n";
        assert_eq!(why_in(log), "its template is\u{fffd} damaged");
        assert_eq!(why_in("ready\n"), "all machines boot in this environment");
    }

    #[test]
    fn sides_have_names_of_their_own_and_only_one_is_told_to_boot() {
        let options = |side| isolation(side).join(" ");
        assert_eq!(options(Side::Cold), "--isolation vm --cold");
        assert_eq!(options(Side::Warm), "--isolation vm");
        assert_eq!(options(Side::Container), "--isolation container");
        assert_ne!(name_of(Side::Cold, 1), name_of(Side::Warm, 1));
    }

    #[test]
    fn complaint_is_the_last_line_and_nothing_for_the_terminal() {
        let text = "warning\nbulkhead: no \u{1b}[1mimage\n\n";
        assert_eq!(last_line(text), "no \u{fffd}[1mimage");
        assert_eq!(last_line(""), "it ended and said nothing");
        let end = keep_the_end(std::io::Cursor::new(vec![b'y'; 3 * COMPLAINTS]));
        assert_eq!(end.join().expect("joined").len(), COMPLAINTS);
    }
}
