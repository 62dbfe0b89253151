//! What came out: the figures of both kinds side by side, and what was seen.

mod figures;
mod html;
mod number;
mod rows;

use serde::{Deserialize, Serialize};

pub use figures::{Better, CATALOGUE, Definition};
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
    /// Its name for programs. `start_warm` comes with snapshots.
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
    /// Of a container on the host's kernel, if it was measured.
    pub container: Option<Samples>,
}

impl Figure {
    /// One kind's.
    pub fn of(&self, kind: Kind) -> Option<&Samples> {
        match kind {
            Kind::Vm => self.vm.as_ref(),
            Kind::Container => self.container.as_ref(),
        }
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
        assert!(value["figures"][0]["vm"]["median"].is_f64());
    }
}
