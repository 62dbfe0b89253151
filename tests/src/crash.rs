//! Kills one process of a Bulkhead at a random moment of a container's life, and looks at what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use crate::home::Home;
use crate::lane::{Lane, note};

/// Folders in which programs leave things behind.
const SHARED: [&str; 5] = ["/tmp", "/var/tmp", "/dev/shm", "/run", "/mnt"];

/// Numbers that a seed decides, so that what failed can be run again.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded by `BULKHEAD_TEST_SEED`, or by the clock. Says which seed it is.
    pub fn new(what: &str) -> Self {
        let given = std::env::var("BULKHEAD_TEST_SEED").ok();
        let seed = given.map_or_else(
            || {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                now.map_or(1, |now| now.subsec_nanos().into())
            },
            |text| text.parse().expect("BULKHEAD_TEST_SEED is a number"),
        );
        note(&format!("{what}: BULKHEAD_TEST_SEED={seed}"));
        Random(seed)
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("less than a usize")
    }

    /// From nothing up to the whole.
    pub fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a process of a Bulkhead is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The command.
    Command,
    /// A sandbox's monitor.
    Monitor,
    /// A sandbox's VMM.
    Machine,
    /// A server of a volume's files.
    Files,
}

impl Victim {
    /// What the process with this command line, and this name, is. A monitor on the host was forked from the
    /// command and has its line, but a name of its own.
    fn of(cmdline: &[u8], comm: &str) -> Self {
        let mut words = cmdline.split(|&byte| byte == 0);
        let program = words.next().unwrap_or_default();
        if program.ends_with(b"/bulkhead-vmm") {
            Victim::Machine
        } else if program.ends_with(b"/virtiofsd") {
            Victim::Files
        } else if words.any(|word| word == b"monitor") || comm == "monitor" {
            Victim::Monitor
        } else {
            Victim::Command
        }
    }

    /// Kills one of these. `false` if there is none.
    fn kill_one_of(self, home: &Home) -> bool {
        let pid = home.processes().into_iter().find(|pid| {
            let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let (cmdline, comm) = (read("cmdline"), read("comm"));
            let comm = String::from_utf8_lossy(&comm);
            !cmdline.is_empty() && Victim::of(&cmdline, comm.trim_end()) == self
        });
        let pid = pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    }
}

/// Commands one after the other: a container's life.
#[derive(Clone, Copy, Debug)]
pub struct Life<'a>(pub &'a [&'a [&'a str]]);

impl Life<'_> {
    /// Lives undisturbed, and tells how long that takes.
    pub fn measure(self, home: &Home) -> Duration {
        let begin = Instant::now();
        self.live(home, None);
        let whole = begin.elapsed();
        home.expect_nothing_left();
        whole
    }

    /// Lives, and has the victim killed after so long, or as soon as there is one. What was done before
    /// that must have succeeded. Tells at which command it was killed; `None` if there was none any more.
    pub fn live(self, home: &Home, kill: Option<(Victim, Duration)>) -> Option<usize> {
        let step = AtomicUsize::new(0);
        let (outputs, killed) = thread::scope(|scope| {
            let living = scope.spawn(|| {
                let commands = self.0.iter().enumerate();
                let outputs = commands.map(|(n, arguments)| {
                    step.store(n, Ordering::SeqCst);
                    let child = home.spawn(arguments, |command| {
                        command.stdout(Stdio::piped()).stderr(Stdio::piped());
                    });
                    child.wait_with_output().expect("wait")
                });
                outputs.collect::<Vec<Output>>()
            });
            let killed = kill.and_then(|(victim, after)| {
                thread::sleep(after);
                // What a command leaves to its monitor goes on after it.
                let more = || victim != Victim::Command && !home.processes().is_empty();
                while !living.is_finished() || more() {
                    let at = step.load(Ordering::SeqCst);
                    if victim.kill_one_of(home) {
                        return Some(at);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                None
            });
            (living.join().expect("the commands"), killed)
        });
        let undisturbed = killed.unwrap_or(self.0.len());
        for (arguments, output) in self.0.iter().zip(&outputs).take(undisturbed) {
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        }
        killed
    }
}

/// How often what was killed, during which command.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<(Victim, String), u32>);

impl Tally {
    /// Counts one, unless there was nothing to kill any more.
    pub fn count(&mut self, victim: Victim, life: Life<'_>, step: Option<usize>) {
        if let Some(step) = step {
            let key = (victim, life.0[step][0].to_owned());
            *self.0.entry(key).or_default() += 1;
        }
    }

    /// How many there were.
    pub fn kills(&self) -> u32 {
        self.0.values().sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for ((victim, command), count) in &self.0 {
            write!(f, "{separator}{count} x {victim:?} at {command}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// What there is on the machine that a Bulkhead could leave behind: mounts, control groups, files where
/// programs put temporary ones. Nothing in the lane whose machine has others at work.
#[derive(Debug)]
pub struct Surroundings(BTreeSet<String>);

impl Surroundings {
    /// What there is now.
    pub fn now() -> Self {
        let mut all = BTreeSet::new();
        if Lane::current() != Lane::Faithful {
            return Surroundings(all);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        // A mount's number, which comes first, is no part of it.
        let mounts = mounts.lines().filter_map(|line| line.splitn(5, ' ').nth(4));
        all.extend(mounts.map(|mount| format!("mount {mount}")));
        for folder in SHARED {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                all.insert(entry.path().display().to_string());
            }
        }
        add_folders(Path::new("/sys/fs/cgroup"), &mut all);
        Surroundings(all)
    }

    /// Nothing has come since.
    pub fn expect_nothing_new(&self) {
        let now = Self::now();
        let new: Vec<_> = now.0.difference(&self.0).collect();
        assert!(new.is_empty(), "left behind: {new:?}");
    }
}

fn add_folders(folder: &Path, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.insert(entry.path().display().to_string());
            add_folders(&entry.path(), all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victim_when_seen_by_its_command_line_is_told_from_the_others() {
        assert_eq!(
            Victim::of(b"/x/bulkhead-vmm\0--config\0-\0", "bulkhead-vmm"),
            Victim::Machine
        );
        assert_eq!(
            Victim::of(b"/usr/libexec/virtiofsd\0--fd=3\0", "virtiofsd"),
            Victim::Files
        );
        let monitor = b"/proc/self/exe\0--root\0/r\0monitor\0abc\0";
        assert_eq!(Victim::of(monitor, "exe"), Victim::Monitor);
        let run = b"/x/bulkhead\0run\0";
        assert_eq!(Victim::of(run, "bulkhead"), Victim::Command);
        assert_eq!(Victim::of(run, "monitor"), Victim::Monitor);
    }

    #[test]
    fn random_when_it_is_a_part_is_never_more_than_the_whole() {
        let mut random = Random(7);
        let whole = Duration::from_secs(1);
        let mut parts = (0..1000).map(|_| random.part_of(whole));
        assert!(parts.all(|part| part < whole));
        let mut random = Random(7);
        let seen: BTreeSet<usize> = (0..1000).map(|_| random.below(3)).collect();
        assert_eq!(seen, BTreeSet::from([0, 1, 2]));
    }
}
