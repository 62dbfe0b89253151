//! A report as rows of words, for a table on a terminal.

use super::{Evidence, Figure, Kind, Report, Samples, number};

/// Cells of a table: what it is, both kinds, how they compare, and what it means. A heading has only the
/// first.
pub type Row = Vec<String>;

impl Report {
    /// The figures, in groups.
    pub fn figure_rows(&self) -> Vec<Row> {
        let mut rows = vec![heading(&[
            "FIGURE",
            "VM",
            "CONTAINER",
            "VM:CONTAINER",
            "WHAT IT MEANS",
        ])];
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                group = &figure.group;
                rows.push(vec![group.to_owned()]);
            }
            rows.push(vec![
                format!("  {}", figure.name()),
                cell(figure.of(Kind::Vm)),
                cell(figure.of(Kind::Container)),
                figure.ratio().map_or_else(|| "-".to_owned(), ratio),
                figure.meaning.clone(),
            ]);
        }
        rows
    }

    /// What was seen.
    pub fn evidence_rows(&self) -> Vec<Row> {
        let mut rows = vec![heading(&[
            "EVIDENCE",
            "HOST",
            "VM",
            "CONTAINER",
            "WHAT IT MEANS",
        ])];
        let row = |evidence: &Evidence| {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            vec![
                evidence.title.clone(),
                evidence.host.clone(),
                or_dash(&evidence.vm),
                or_dash(&evidence.container),
                evidence.meaning.clone(),
            ]
        };
        rows.extend(self.evidence.iter().map(row));
        rows
    }

    /// What else there is to say, a line each.
    pub fn remarks(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for kind in Kind::ALL {
            for error in self.errors.of(kind) {
                lines.push(format!("Not measured for {}: {error}", kind.name()));
            }
        }
        if let Some(blast) = &self.blast_radius {
            lines.push(format!("Blast radius: {}", blast.victim));
            lines.push(format!("  the host: {}", blast.host));
            lines.push(format!("  a VM beside it: {}", blast.neighbours.vm));
            lines.push(format!(
                "  a container beside it: {}",
                blast.neighbours.container
            ));
            lines.push(format!("  the same in a container: {}", blast.container));
        }
        lines.push(format!("KVM here: {}", self.host.kvm_meaning));
        lines.extend(self.notes.iter().cloned());
        lines
    }
}

impl Figure {
    /// Its name, and what it is counted in.
    pub fn name(&self) -> String {
        match &*self.unit {
            "" => self.title.clone(),
            unit => format!("{}, {unit}", self.title),
        }
    }

    /// How many times the container's figure a VM's is.
    pub fn ratio(&self) -> Option<f64> {
        let (vm, container) = (self.vm.as_ref()?, self.container.as_ref()?);
        (container.median > 0.0).then(|| vm.median / container.median)
    }
}

fn heading(words: &[&str]) -> Row {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn cell(samples: Option<&Samples>) -> String {
    samples.map_or_else(|| "-".to_owned(), |samples| number(samples.median))
}

/// A ratio as people say it.
pub(super) fn ratio(value: f64) -> String {
    format!("{}x", number(value))
}

#[cfg(test)]
mod tests {
    use crate::report::sample;

    #[test]
    fn rows_when_a_side_failed_have_dashes_and_the_reason() {
        let mut report = sample::report();
        let rows = report.figure_rows();
        assert_eq!(rows[1], ["Life"]);
        assert_eq!(
            rows[2][..4],
            ["  Start, cold, ms", "12,000", "20.0", "600x"]
        );
        for figure in &mut report.figures {
            figure.container = None;
        }
        report.errors.container = vec!["it is not allowed here".to_owned()];
        let rows = report.figure_rows();
        assert_eq!(rows[2][..4], ["  Start, cold, ms", "12,000", "-", "-"]);
        let remarks = report.remarks();
        assert_eq!(
            remarks[0],
            "Not measured for container: it is not allowed here"
        );
        assert_eq!(report.evidence_rows()[1].len(), 5);
    }
}
