//! A whole comparison, in order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::density::{Budget, Crowd, gather};
use crate::evidence::{self, Bait};
use crate::instance::{Instance, Setup, keep_the_end, last_line};
use crate::memory::taken;
use crate::report::{Both, CATALOGUE, Figure, Kind, Report, Samples, VERSION};
use crate::{blast, host, page_cache, trace};

/// What to compare, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image as people call it.
    pub title: String,
    /// The file that its root is.
    pub disk: PathBuf,
    /// A command of the user's, to be run in the image as it is, by this name.
    pub command: Option<(String, Vec<String>)>,
    /// How often each kind is started to be measured.
    pub rounds: u32,
    /// How long one measurement takes.
    pub time: Duration,
    /// How far density is tried.
    pub density_bytes: u64,
    /// How many instances that may be.
    pub density_most: usize,
    /// How long that may take, for each kind.
    pub density_time: Duration,
    /// How long all of it should take: on a slow host there are fewer rounds and instances then.
    pub limit: Duration,
    /// Whether a guest's kernel is brought down.
    pub blast_radius: bool,
}

/// What programs measure in a container, in this order: what is asked, the figure, and what makes its rate
/// that figure.
const MEASUREMENTS: [(&str, Rate); 7] = [
    ("integer", Rate::Per(1e6)),
    ("avx", Rate::Per(1e9)),
    ("memory_copy", Rate::Per(GIB)),
    ("memory_read", Rate::Per(GIB)),
    ("system_call", Rate::NanosecondsEach),
    ("spawn", Rate::Per(1.0)),
    ("first_touch", Rate::Per(1e3)),
];
/// The same, of what is asked for at once.
const FILES: [(&str, Rate); 5] = [
    ("file_write", Rate::Per(MIB)),
    ("file_read", Rate::Per(MIB)),
    ("file_random_read", Rate::Per(1e3)),
    ("file_random_write", Rate::Per(1e3)),
    ("file_metadata", Rate::Per(1.0)),
];
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// How a figure is made of so many a second.
#[derive(Clone, Copy)]
enum Rate {
    /// So many of these a second.
    Per(f64),
    /// The time of one.
    NanosecondsEach,
}

impl Rate {
    fn of(self, per_second: f64) -> f64 {
        match self {
            Rate::Per(unit) => per_second / unit,
            Rate::NanosecondsEach => 1e9 / per_second,
        }
    }
}

/// All that is collected on the way.
struct Collected<'a> {
    begun: Instant,
    /// The longest that an instance has taken to start so far.
    slowest: Duration,
    /// How often each kind was started to be measured.
    rounds: u32,
    setup: &'a Setup<'a>,
    options: &'a Options,
    progress: &'a dyn Fn(&str),
    samples: BTreeMap<&'static str, Both<Vec<f64>>>,
    seen: Both<Option<Value>>,
    counted: Both<Option<trace::Counted>>,
    errors: Both<Vec<String>>,
    notes: Vec<String>,
}

/// Compares. `progress` is told what is being done.
pub fn compare(
    setup: &Setup<'_>,
    options: &Options,
    progress: &dyn Fn(&str),
) -> Result<Report, String> {
    let begun = (Timestamp::now(), Instant::now());
    let mut all = Collected {
        begun: begun.1,
        slowest: Duration::ZERO,
        rounds: 0,
        setup,
        options,
        progress,
        samples: BTreeMap::new(),
        seen: Both::default(),
        counted: Both::default(),
        errors: Both::default(),
        notes: Vec::new(),
    };
    let bait = Bait::put()?;
    let here = bait.look_here()?;
    all.measure(&bait);
    all.commands();
    all.trace();
    let blast_radius = all.crowds();
    drop(bait);
    all.explain();
    Ok(Report {
        version: VERSION,
        bulkhead: env!("CARGO_PKG_VERSION").to_owned(),
        taken: begun.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seconds: begun.1.elapsed().as_secs_f64(),
        rounds: all.rounds,
        image: options.title.clone(),
        command: options
            .command
            .as_ref()
            .map(|(_, command)| command.clone())
            .unwrap_or_default(),
        host: host::look(),
        figures: all.figures(),
        evidence: evidence::rows(&here, &all.seen, &all.counted),
        errors: all.errors,
        blast_radius,
        notes: all.notes,
    })
}

impl<'a> Collected<'a> {
    /// Whether a kind could be started so far.
    fn works(&self, kind: Kind) -> bool {
        self.errors.of(kind).is_empty()
    }

    fn add(&mut self, id: &'static str, kind: Kind, value: f64) {
        let samples = self.samples.entry(id).or_default();
        samples.of_mut(kind).push(value);
    }

    fn fail(&mut self, kind: Kind, error: String) {
        let errors = self.errors.of_mut(kind);
        if !errors.contains(&error) {
            errors.push(error);
        }
    }

    /// Starts each kind in turn, measures it and stops it. Who was first is second in the next round.
    fn measure(&mut self, bait: &Bait) {
        for round in 0..self.options.rounds {
            let start = Instant::now();
            let mut order = Kind::ALL;
            if round % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                if !self.works(kind) {
                    continue;
                }
                (self.progress)(&format!(
                    "round {} of {}: {}",
                    round + 1,
                    self.options.rounds,
                    kind.name()
                ));
                if let Err(e) = self.round(kind, round, bait) {
                    self.fail(kind, e);
                }
            }
            self.rounds += 1;
            // To count system calls, for density and for a panic one is started each, some of them with
            // another beside it.
            let rest = self.slowest * 5;
            if self.rounds < self.options.rounds && self.left() < start.elapsed() + rest {
                self.note(format!(
                    "There was time for {} of {} rounds: --limit allows more.",
                    self.rounds, self.options.rounds
                ));
                return;
            }
        }
    }

    /// What is left of the time for all of it.
    fn left(&self) -> Duration {
        self.options.limit.saturating_sub(self.begun.elapsed())
    }

    fn round(&mut self, kind: Kind, round: u32, bait: &Bait) -> Result<(), String> {
        // What cannot be looked up is not measured; all else is.
        let forgotten = page_cache::forget(&self.options.disk);
        let (mut instance, took) = Instance::start(self.setup, kind, round as usize)?;
        self.slowest = self.slowest.max(took);
        self.add("start_cold", kind, ms(took));
        if forgotten.is_ok()
            && let Ok(bytes) = page_cache::cached(&self.options.disk)
        {
            self.add("image_read", kind, bytes as f64 / 1024.0);
        }
        // Once it answers, it is idle.
        instance.ask("idle")?;
        let taken = taken(kind, &instance.processes()?)?;
        let mib = |bytes: u64| bytes as f64 / MIB;
        self.add("memory", kind, mib(taken.processes()));
        self.add("memory_own", kind, mib(taken.own));
        self.add("memory_guest", kind, mib(taken.inside));
        if let Some(kernel) = taken.kernel {
            self.add("memory_kernel", kind, mib(kernel));
        }
        let time = self.options.time.as_millis();
        for (id, rate) in MEASUREMENTS {
            match instance.ask(&format!("{id} {time}")) {
                Ok(answer) => self.add_rate(id, kind, rate, &answer),
                Err(e) => self.note(format!("{id} in {}: {e}", kind.name())),
            }
        }
        match instance.ask(&format!("files {time}")) {
            Ok(answer) => {
                for (id, rate) in FILES {
                    self.add_rate(id, kind, rate, &answer[id]);
                }
            }
            Err(e) => self.note(format!("files in {}: {e}", kind.name())),
        }
        if self.seen.of(kind).is_none() {
            *self.seen.of_mut(kind) = Some(instance.ask(&bait.question())?);
        }
        self.add("stop", kind, ms(instance.stop()?));
        Ok(())
    }

    /// A hostile program may say anything; a figure is a number.
    fn add_rate(&mut self, id: &'static str, kind: Kind, rate: Rate, answer: &Value) {
        match answer["rate"].as_f64() {
            Some(per_second) if per_second > 0.0 => self.add(id, kind, rate.of(per_second)),
            _ => self.note(format!("{id} in {}: it gave no figure", kind.name())),
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The user's own command, in the image as it is.
    fn commands(&mut self) {
        let Some((image, command)) = &self.options.command else {
            return;
        };
        let mut codes: Both<Option<i32>> = Both::default();
        for round in 0..self.options.rounds {
            for kind in Kind::ALL {
                if !self.works(kind) {
                    continue;
                }
                (self.progress)(&format!("your command, {}: {}", round + 1, kind.name()));
                match run_command(self.setup, kind, (image, command)) {
                    Ok((code, took)) => {
                        self.add("command", kind, ms(took));
                        *codes.of_mut(kind) = Some(code);
                    }
                    Err(e) => self.fail(kind, format!("your command: {e}")),
                }
            }
        }
        let code = |kind| match codes.of(kind) {
            Some(code) => code.to_string(),
            None => "-".to_owned(),
        };
        self.notes.push(format!(
            "Your command ended with exit code {} in the VM and {} in the container.",
            code(Kind::Vm),
            code(Kind::Container)
        ));
    }

    /// Counts the system calls that reach the host.
    fn trace(&mut self) {
        for kind in Kind::ALL {
            if self.works(kind) {
                (self.progress)(&format!("counting system calls: {}", kind.name()));
                match trace::count(self.setup, kind) {
                    Ok(counted) => *self.counted.of_mut(kind) = Some(counted),
                    Err(e) => self.note(format!(
                        "System calls of the {} kind were not counted: {e}",
                        kind.name()
                    )),
                }
            }
        }
    }

    /// Density, and what a panic takes down among those that are up then.
    fn crowds(&mut self) -> Option<crate::report::BlastRadius> {
        let setup = self.setup;
        let mut crowds: Both<Option<Crowd<'a>>> = Both::default();
        for kind in Kind::ALL {
            if !self.works(kind) {
                continue;
            }
            (self.progress)(&format!("density: {}", kind.name()));
            // Those that come at the last moment, and a panic, take their time after this.
            let left = self.left().saturating_sub(self.slowest * 3);
            let budget = Budget {
                bytes: self.options.density_bytes,
                instances: self.options.density_most,
                time: self.options.density_time.min(left),
            };
            match gather(setup, kind, budget) {
                Ok(crowd) => {
                    if let Some(per_gib) = crowd.per_gib() {
                        self.add("density", kind, per_gib);
                    }
                    self.notes.push(format!(
                        "Density, {}: {:.1} MiB for {}.",
                        kind.name(),
                        crowd.bytes as f64 / MIB,
                        crowd.instances.len()
                    ));
                    *crowds.of_mut(kind) = Some(crowd);
                }
                Err(e) => self.note(format!("Density, {}: {e}", kind.name())),
            }
        }
        if !self.options.blast_radius || !self.works(Kind::Vm) {
            return None;
        }
        (self.progress)("bringing down a guest's kernel");
        let neighbours = Both {
            vm: crowds.vm.as_mut(),
            container: crowds.container.as_mut(),
        };
        Some(blast::prove(setup, neighbours))
    }

    /// What should be known about the figures.
    fn explain(&mut self) {
        let mut notes = vec![
            "Start is measured from outside, as a guest has a clock of its own: the program's first system \
             call writes a line, and that line's arrival at the command that waits for it counts."
                .to_owned(),
            "A figure is the median of its rounds; a bar's thin line goes from the least to the most.".to_owned(),
            "Image read to start: the pages of the image's one file that the host's page cache had after \
             the start, having had none before; read-ahead is in it."
                .to_owned(),
            "Memory of a container leaves out what it shares with the host's kernel and what the page cache \
             holds for it; a guest's kernel and page cache are part of the guest's memory."
                .to_owned(),
        ];
        notes.append(&mut self.notes);
        self.notes = notes;
    }

    fn figures(&self) -> Vec<Figure> {
        let figure = |definition: &crate::report::Definition| {
            let samples = self.samples.get(definition.id)?;
            Some(Figure {
                id: definition.id.to_owned(),
                group: definition.group.to_owned(),
                title: definition.title.to_owned(),
                unit: definition.unit.to_owned(),
                better: definition.better,
                meaning: definition.meaning.to_owned(),
                vm: Samples::of(samples.vm.clone()),
                container: Samples::of(samples.container.clone()),
            })
        };
        CATALOGUE.iter().filter_map(figure).collect()
    }
}

/// Runs the user's command to its end. Returns its exit code and how long it took.
fn run_command(
    setup: &Setup<'_>,
    kind: Kind,
    (image, command): (&str, &[String]),
) -> Result<(i32, Duration), String> {
    /// The exit code of a command that Bulkhead could not run.
    const FAILED: i32 = 125;
    let mut arguments = vec!["run", "--rm", "--pull", "never", "--isolation", kind.name()];
    arguments.extend(setup.options.iter().map(String::as_str));
    arguments.push(image);
    arguments.extend(command.iter().map(String::as_str));
    let start = Instant::now();
    let mut child = setup
        .command(&arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start bulkhead: {e}"))?;
    let complaints = child.stderr.take().map(keep_the_end);
    let status = child.wait();
    let took = start.elapsed();
    let status = status.map_err(|e| format!("cannot wait for bulkhead: {e}"))?;
    let code = status.code().unwrap_or(-1);
    if code == FAILED {
        let complaints = complaints.and_then(|thread| thread.join().ok());
        return Err(last_line(&complaints.unwrap_or_default()));
    }
    Ok((code, took))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
