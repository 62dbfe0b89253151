//! What came out: the figures of both kinds side by side, and what was seen.

mod figures;
mod html;
mod number;
mod rows;

use serde::{Deserialize, Serialize};

pub use figures::{Better, CATALOGUE, Definition, TEMPLATE};
pub use number::{count, number};
pub use rows::Row;

/// The version of the report's form. Fields are only ever added.
pub const VERSION: u32 = 1;

/// One of the two kinds of isolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A microVM.
    Vm,
    /// The host's kernel.
    Container,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Vm, Kind::Container];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vm => "vm",
            Kind::Container => "container",
        }
    }
}

/// What stands beside what where it matters how a microVM was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A microVM that has booted.
    Cold,
    /// A microVM that is a clone of a template.
    Warm,
    /// A container on the host's kernel.
    Container,
}

impl Side {
    /// All of them.
    pub const ALL: [Side; 3] = [Side::Cold, Side::Warm, Side::Container];

    /// Which kind of isolation it is.
    pub fn kind(self) -> Kind {
        match self {
            Side::Cold | Side::Warm => Kind::Vm,
            Side::Container => Kind::Container,
        }
    }

    /// As parts of names have it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Cold => "vm-cold",
            Side::Warm => "vm-warm",
            Side::Container => "container",
        }
    }
}

/// Something of each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sides<T> {
    /// The booted microVM's.
    pub cold: T,
    /// The clone's.
    pub warm: T,
    /// The container's on the host's kernel.
    pub container: T,
}

impl<T> Sides<T> {
    /// One side's.
    pub fn of(&self, side: Side) -> &T {
        match side {
            Side::Cold => &self.cold,
            Side::Warm => &self.warm,
            Side::Container => &self.container,
        }
    }

    /// One side's, to be changed.
    pub fn of_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Cold => &mut self.cold,
            Side::Warm => &mut self.warm,
            Side::Container => &mut self.container,
        }
    }
}

/// Something of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both<T> {
    /// The microVM's.
    pub vm: T,
    /// The container's on the host's kernel.
    pub container: T,
}

impl<T> Both<T> {
    /// One kind's.
    pub fn of(&self, kind: Kind) -> &T {
        match kind {
            Kind::Vm => &self.vm,
            Kind::Container => &self.container,
        }
    }

    /// One kind's, to be changed.
    pub fn of_mut(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Vm => &mut self.vm,
            Kind::Container => &mut self.container,
        }
    }
}

/// A whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form.
    pub version: u32,
    /// The version of Bulkhead.
    pub bulkhead: String,
    /// When it was begun, as in RFC 3339.
    pub taken: String,
    /// How long it took.
    pub seconds: f64,
    /// How often each kind was started to be measured.
    pub rounds: u32,
    /// The image.
    pub image: String,
    /// The command that was measured besides, if there was one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Where.
    pub host: Host,
    /// Why a kind, or a part of it, could not be measured.
    pub errors: Both<Vec<String>>,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What was seen.
    pub evidence: Vec<Evidence>,
    /// What a panic took down, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blast_radius: Option<BlastRadius>,
    /// What should be known about the figures.
    pub notes: Vec<String>,
}

/// The machine that a comparison was made on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its kernel's release.
    pub kernel: String,
    /// Its processor.
    pub processor: String,
    /// How many there are.
    pub processors: usize,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// Which kind of KVM it has.
    pub kvm: Kvm,
    /// What that means.
    pub kvm_meaning: String,
}

/// Kinds of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kvm {
    /// The processor runs guests.
    Hardware,
    /// KVM emulates what a guest's kernel does.
    SoftwareAssisted,
    /// There is none that works.
    None,
}

/// One figure of both kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name for programs.
    pub id: String,
    /// What it belongs to.
    pub group: String,
    /// Its name.
    pub title: String,
    /// What it is counted in.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// What it means, in half a sentence.
    pub meaning: String,
    /// Of a microVM, if it was measured.
    pub vm: Option<Samples>,
    /// How the microVM that `vm` is of was started. Cold stands for more than that: the figure depends on it,
    /// and a clone is beside it.
    #[serde(default)]
    pub vm_start: VmStart,
    /// Of a microVM that is a clone of a template, if `vm` is of one that has booted and this was measured.
    #[serde(default)]
    pub vm_warm: Option<Samples>,
    /// Of a container on the host's kernel, if it was measured.
    pub container: Option<Samples>,
}

/// How a microVM was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmStart {
    /// It has booted, as all had in reports that do not say.
    #[default]
    Cold,
    /// It is a clone of a template.
    Warm,
}

impl Figure {
    /// What a definition makes of the measurements of all sides.
    pub fn of(definition: &Definition, samples: Sides<Vec<f64>>) -> Self {
        // What was measured of booted microVMs as well depends on that, or there are no others.
        let (vm_start, vm, vm_warm) = match samples.cold.is_empty() {
            true => (VmStart::Warm, samples.warm, Vec::new()),
            false => (VmStart::Cold, samples.cold, samples.warm),
        };
        Figure {
            id: definition.id.to_owned(),
            group: definition.group.to_owned(),
            title: definition.title.to_owned(),
            unit: definition.unit.to_owned(),
            better: definition.better,
            meaning: definition.meaning.to_owned(),
            vm: Samples::of(vm),
            vm_start,
            vm_warm: Samples::of(vm_warm),
            container: Samples::of(samples.container),
        }
    }

    /// What is beside each other in it: the field, whose it is, and what was measured.
    pub fn columns(&self) -> Vec<(&'static str, Side, Option<&Samples>)> {
        let mut columns = match self.vm_start {
            VmStart::Cold => vec![
                ("vm", Side::Cold, self.vm.as_ref()),
                ("vm_warm", Side::Warm, self.vm_warm.as_ref()),
            ],
            VmStart::Warm => vec![("vm", Side::Warm, self.vm.as_ref())],
        };
        // There is no such thing as a template of a container.
        if self.id != TEMPLATE {
            columns.push(("container", Side::Container, self.container.as_ref()));
        }
        columns
    }

    /// One side's.
    pub fn side(&self, side: Side) -> Option<&Samples> {
        let mut columns = self.columns().into_iter();
        columns.find(|column| column.1 == side)?.2
    }
}

/// Measurements of the same thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// The one in the middle, or what is half way between the two that are.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// All, in the order in which they were taken.
    pub samples: Vec<f64>,
}

impl Samples {
    /// Of these, which are finite; `None` if there are none.
    pub fn of(samples: Vec<f64>) -> Option<Self> {
        let samples: Vec<f64> = samples
            .into_iter()
            .filter(|x| x.is_finite())
            .map(rounded)
            .collect();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Samples {
            median: rounded((lower + upper) / 2.0),
            least: *sorted.first()?,
            most: *sorted.last()?,
            samples,
        })
    }
}

/// Six digits: more are noise, and these are the same in every program that reads them.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// One thing that was looked at on the host and in both kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Its name for programs.
    pub id: String,
    /// Its name.
    pub title: String,
    /// On the host.
    pub host: String,
    /// In a microVM, if it was looked at.
    pub vm: Option<String>,
    /// In a container on the host's kernel, if it was looked at.
    pub container: Option<String>,
    /// What it means, in half a sentence.
    pub meaning: String,
}

/// What was still there after a guest's kernel had panicked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlastRadius {
    /// What was done to the microVM, and what came of it.
    pub victim: String,
    /// Whether that kernel has panicked.
    pub panicked: bool,
    /// Whether the host's kernel is the same as before, and goes on.
    pub host: String,
    /// What became of the neighbours.
    pub neighbours: Both<String>,
    /// Why the same is not done to a container on the host's kernel.
    pub container: String,
}

#[cfg(test)]
pub(crate) mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_when_there_are_none_are_nothing() {
        assert_eq!(Samples::of(Vec::new()), None);
        assert_eq!(Samples::of(vec![f64::NAN]), None);
        let samples = Samples::of(vec![3.0, 1.0, 2.0]).expect("samples");
        assert_eq!(
            (samples.median, samples.least, samples.most),
            (2.0, 1.0, 3.0)
        );
        assert_eq!(samples.samples, [3.0, 1.0, 2.0]);
        assert_eq!(Samples::of(vec![1.0, 4.0]).map(|s| s.median), Some(2.5));
        let third = Samples::of(vec![1e6 / 3.0]).expect("samples");
        assert_eq!(third.median, 333_333.0);
    }

    #[test]
    fn figure_when_its_report_is_from_before_clones_is_of_booted_vms() {
        let mut value = serde_json::to_value(&sample::report().figures[0]).expect("JSON");
        let fields = value.as_object_mut().expect("an object");
        fields.remove("vm_start").expect("the field");
        fields.remove("vm_warm").expect("the field");
        let figure: Figure = serde_json::from_value(value).expect("a figure");
        assert_eq!(figure.vm_start, VmStart::Cold);
        assert_eq!(figure.vm_warm, None);
    }

    #[test]
    fn figure_when_only_clones_were_measured_has_them_as_its_vm() {
        let figure = |cold: &[f64], warm: &[f64]| {
            let samples = Sides {
                cold: cold.to_vec(),
                warm: warm.to_vec(),
                container: vec![3.0],
            };
            Figure::of(&CATALOGUE[0], samples)
        };
        let median = |samples: &Option<Samples>| samples.as_ref().map(|s| s.median);
        let running = figure(&[], &[2.0]);
        assert_eq!(running.vm_start, VmStart::Warm);
        assert_eq!(median(&running.vm), Some(2.0));
        assert_eq!(running.vm_warm, None);
        assert_eq!(running.columns().len(), 2);
        let starting = figure(&[1.0], &[2.0]);
        assert_eq!(median(&starting.vm), Some(1.0));
        assert_eq!(median(&starting.vm_warm), Some(2.0));
        assert_eq!(starting.side(Side::Warm).map(|s| s.median), Some(2.0));
        // Where no clone could be made, what was measured is not called one.
        let booted = figure(&[1.0], &[]);
        assert_eq!(
            (booted.vm_start, booted.columns().len()),
            (VmStart::Cold, 3)
        );
        assert_eq!(booted.side(Side::Warm), None);
    }

    #[test]
    fn report_when_written_as_json_is_read_again() {
        let report = sample::report();
        let text = serde_json::to_string(&report).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Report>(&text).expect("a report"),
            report
        );
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["version"], VERSION);
        assert_eq!(value["host"]["kvm"], "software_assisted");
        assert_eq!(value["figures"][0]["id"], "start_cold");
        assert_eq!(value["figures"][0]["better"], "lower");
        assert_eq!(value["figures"][0]["vm_start"], "cold");
        assert!(value["figures"][0]["vm_warm"]["median"].is_f64());
        let figures = value["figures"].as_array().expect("figures");
        let running = figures.iter().find(|figure| figure["id"] == "integer");
        let running = running.expect("a figure of what runs");
        assert_eq!(running["vm_start"], "warm");
        assert!(running["vm_warm"].is_null());
        assert!(value["figures"][0]["vm"]["median"].is_f64());
    }
}
