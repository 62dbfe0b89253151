//! A whole comparison, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::density::{Budget, Crowd, gather};
use crate::evidence::{self, Bait};
use crate::instance::{Instance, Setup, isolation, keep_the_end, last_line};
use crate::memory::taken;
use crate::report::{Both, CATALOGUE, Figure, Kind, Report, Side, Sides, TEMPLATE, VERSION};
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
/// The number of the instance that a template is made for. Rounds count from none.
const TEMPLATE_NUMBER: usize = 8999;
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
    /// Whether microVMs are clones here unless they are told to boot.
    warm: bool,
    samples: BTreeMap<&'static str, Sides<Vec<f64>>>,
    seen: Both<Option<Value>>,
    counted: Sides<Option<trace::Counted>>,
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
        warm: true,
        samples: BTreeMap::new(),
        seen: Both::default(),
        counted: Sides::default(),
        errors: Both::default(),
        notes: Vec::new(),
    };
    let bait = Bait::put()?;
    let here = bait.look_here()?;
    all.make_template();
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

    /// Whether a side is to be measured: its kind could be started so far, and there are clones.
    fn is_wanted(&self, side: Side) -> bool {
        self.works(side.kind()) && (side != Side::Warm || self.warm)
    }

    /// What measures a kind where it does not matter how it was started: as it is by default.
    fn usual(&self, kind: Kind) -> Side {
        match kind {
            Kind::Vm if self.warm => Side::Warm,
            Kind::Vm => Side::Cold,
            Kind::Container => Side::Container,
        }
    }

    fn add(&mut self, id: &'static str, side: Side, value: f64) {
        let samples = self.samples.entry(id).or_default();
        samples.of_mut(side).push(value);
    }

    fn fail(&mut self, kind: Kind, error: String) {
        let errors = self.errors.of_mut(kind);
        if !errors.contains(&error) {
            errors.push(error);
        }
    }

    /// Has the template made that clones are restored from, and keeps the time that it took apart: it is
    /// paid once, and by no start that is measured.
    fn make_template(&mut self) {
        (self.progress)("the template of the VM");
        if let Err(e) = self.try_make_template() {
            self.fail(Kind::Vm, e);
        }
    }

    fn try_make_template(&mut self) -> Result<(), String> {
        let templates = self.setup.engine.templates();
        let keys = || -> Result<BTreeSet<String>, String> {
            let list = templates.list().map_err(|e| e.to_string())?;
            Ok(list.into_iter().map(|template| template.key).collect())
        };
        let before = keys()?;
        let (instance, took) = Instance::start(self.setup, Side::Warm, TEMPLATE_NUMBER)?;
        if self.is_clone(&instance)? {
            if keys()?.is_subset(&before) {
                self.note(
                    "The template was there already, so that its making was not measured: `bulkhead system \
                     prune` removes all that nobody needs, and it with that."
                        .to_owned(),
                );
            } else {
                self.add(TEMPLATE, Side::Warm, ms(took));
                self.note(format!(
                    "Making the template took {:.1} s, once and beforehand: no start that was measured has it \
                     in it.",
                    took.as_secs_f64()
                ));
            }
        }
        instance.stop()?;
        Ok(())
    }

    /// Whether this microVM, which was not told to boot, is a clone. If it is none there are none.
    fn is_clone(&mut self, instance: &Instance<'_>) -> Result<bool, String> {
        let Some(why) = instance.why_booted()? else {
            return Ok(true);
        };
        self.warm = false;
        self.note(format!(
            "VMs boot here, and none is restored, so that what is said of VMs is said of booted ones: {why}"
        ));
        Ok(false)
    }

    /// Starts each side in turn, measures it and stops it. Who was first is last in the next round.
    fn measure(&mut self, bait: &Bait) {
        for round in 0..self.options.rounds {
            let start = Instant::now();
            let mut order = Side::ALL;
            if round % 2 == 1 {
                order.reverse();
            }
            for side in order {
                if !self.is_wanted(side) {
                    continue;
                }
                (self.progress)(&format!(
                    "round {} of {}: {}",
                    round + 1,
                    self.options.rounds,
                    side.name()
                ));
                if let Err(e) = self.round(side, round, bait) {
                    self.fail(side.kind(), e);
                }
            }
            self.rounds += 1;
            // To count system calls, for density and for a panic one is started each, some of them with
            // another beside it; and the user's command is run as often as there were rounds.
            let commands = match self.options.command {
                Some(_) => self.rounds + 1,
                None => 0,
            };
            let rest = self.slowest * (5 + 2 * commands);
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

    fn round(&mut self, side: Side, round: u32, bait: &Bait) -> Result<(), String> {
        let kind = side.kind();
        // What cannot be looked up is not measured; all else is.
        let forgotten = page_cache::forget(&self.options.disk);
        let (mut instance, took) = Instance::start(self.setup, side, round as usize)?;
        self.slowest = self.slowest.max(took);
        if side != Side::Warm || self.is_clone(&instance)? {
            self.add("start_cold", side, ms(took));
            if forgotten.is_ok()
                && let Ok(bytes) = page_cache::cached(&self.options.disk)
            {
                self.add("image_read", side, bytes as f64 / 1024.0);
            }
        }
        // What was to be a clone and has booted after all took as long as both, and is a booted one now.
        let side = match side {
            Side::Warm => self.usual(kind),
            side => side,
        };
        // Once it answers, it is idle.
        instance.ask("idle")?;
        let taken = taken(kind, &instance.processes()?)?;
        let mib = |bytes: u64| bytes as f64 / MIB;
        self.add("memory", side, mib(taken.processes()));
        self.add("memory_own", side, mib(taken.own));
        self.add("memory_guest", side, mib(taken.inside));
        if let Some(kernel) = taken.kernel {
            self.add("memory_kernel", side, mib(kernel));
        }
        // A VM that runs is the same, however it was started.
        if side == self.usual(kind) {
            self.work(side, &mut instance);
            if self.seen.of(kind).is_none() {
                *self.seen.of_mut(kind) = Some(instance.ask(&bait.question())?);
            }
        }
        self.add("stop", side, ms(instance.stop()?));
        Ok(())
    }

    /// Has the program in an instance measure what it gets.
    fn work(&mut self, side: Side, instance: &mut Instance<'_>) {
        let time = self.options.time.as_millis();
        for (id, rate) in MEASUREMENTS {
            match instance.ask(&format!("{id} {time}")) {
                Ok(answer) => self.add_rate(id, side, rate, &answer),
                Err(e) => self.note(format!("{id} in {}: {e}", side.name())),
            }
        }
        match instance.ask(&format!("files {time}")) {
            Ok(answer) => {
                for (id, rate) in FILES {
                    self.add_rate(id, side, rate, &answer[id]);
                }
            }
            Err(e) => self.note(format!("files in {}: {e}", side.name())),
        }
    }

    /// A hostile program may say anything; a figure is a number.
    fn add_rate(&mut self, id: &'static str, side: Side, rate: Rate, answer: &Value) {
        match answer["rate"].as_f64() {
            Some(per_second) if per_second > 0.0 => self.add(id, side, rate.of(per_second)),
            _ => self.note(format!("{id} in {}: it gave no figure", side.name())),
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
        // Where there was no time for all rounds there is none for all of these.
        for round in 0..self.rounds {
            for side in Side::ALL {
                if !self.is_wanted(side) {
                    continue;
                }
                (self.progress)(&format!("your command, {}: {}", round + 1, side.name()));
                match run_command(self.setup, side, (image, command)) {
                    Ok((code, took)) => {
                        self.add("command", side, ms(took));
                        *codes.of_mut(side.kind()) = Some(code);
                    }
                    Err(e) => self.fail(side.kind(), format!("your command: {e}")),
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
        // What takes longest comes last: there may be no time for it.
        for side in [Side::Warm, Side::Container, Side::Cold] {
            if !self.is_wanted(side) {
                continue;
            }
            // Tracing takes time, too, and density and a panic are to come.
            let is_late = self.left() < self.slowest * 3;
            if side == Side::Cold && self.counted.warm.is_some() && is_late {
                self.note(
                    "There was no time to count the system calls of a VM that boots: --limit allows more."
                        .to_owned(),
                );
                continue;
            }
            (self.progress)(&format!("counting system calls: {}", side.name()));
            match trace::count(self.setup, side) {
                Ok(counted) => *self.counted.of_mut(side) = Some(counted),
                Err(e) => self.note(format!(
                    "System calls of {} were not counted: {e}",
                    side.name()
                )),
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
            let side = self.usual(kind);
            match gather(setup, side, budget) {
                Ok(crowd) => {
                    if let Some(per_gib) = crowd.per_gib() {
                        self.add("density", side, per_gib);
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
            "A VM is a clone of a template, as it is by default, but where it says cold: that one has booted \
             (`--cold`). What depends on how a VM was started was measured of both."
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
            Some(Figure::of(definition, samples.clone()))
        };
        CATALOGUE.iter().filter_map(figure).collect()
    }
}

/// Runs the user's command to its end. Returns its exit code and how long it took.
fn run_command(
    setup: &Setup<'_>,
    side: Side,
    (image, command): (&str, &[String]),
) -> Result<(i32, Duration), String> {
    /// The exit code of a command that Bulkhead could not run.
    const FAILED: i32 = 125;
    let mut arguments = vec!["run", "--rm", "--pull", "never"];
    arguments.extend(isolation(side));
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
