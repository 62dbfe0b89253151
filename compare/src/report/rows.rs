//! A report as rows of words, for a table on a terminal.

use super::{Figure, Kind, Report, Samples, Side, number};

/// Cells of a table: what it is, the microVM as it was started, the container, how they compare, and what it
/// means. A heading has only the first.
pub type Row = Vec<String>;

impl Report {
    /// The figures, in groups.
    pub fn figure_rows(&self) -> Vec<Row> {
        let mut rows = vec![heading(&[
            "FIGURE",
            "VM COLD",
            "VM WARM",
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
            let columns = figure.columns();
            let mut row = vec![format!("  {}", figure.name())];
            // What has nothing to do with how it was started is left empty, and is not a gap.
            row.extend(Side::ALL.map(|side| {
                let column = columns.iter().find(|column| column.1 == side);
                column.map_or_else(String::new, |column| cell(column.2))
            }));
            row.push(figure.ratio().map_or_else(|| "-".to_owned(), ratio));
            row.push(figure.meaning.clone());
            rows.push(row);
        }
        rows
    }

    /// What was seen, a line for each place that was looked at.
    pub fn evidence_lines(&self) -> Vec<String> {
        let mut lines = vec!["EVIDENCE".to_owned()];
        for evidence in &self.evidence {
            lines.push(format!("{}: {}", evidence.title, evidence.meaning));
            let seen = [
                ("host", Some(&evidence.host)),
                ("VM", evidence.vm.as_ref()),
                ("container", evidence.container.as_ref()),
            ];
            for (place, text) in seen {
                let text = text.map_or("not looked at", String::as_str);
                if text != "-" {
                    lines.push(format!("  {place:10} {text}"));
                }
            }
        }
        lines
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

    /// How many times the container's figure a VM's is: that of one that was started as they are by default,
    /// if that was measured.
    pub fn ratio(&self) -> Option<f64> {
        self.ratio_of(Side::Warm)
            .or_else(|| self.ratio_of(Side::Cold))
    }

    /// How many times the container's figure this VM's is.
    pub fn ratio_of(&self, side: Side) -> Option<f64> {
        let (vm, container) = (self.side(side)?, self.container.as_ref()?);
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
    if value > 0.0 && value < 0.1 {
        return format!("1/{}", number(1.0 / value));
    }
    format!("{}x", number(value))
}

#[cfg(test)]
mod tests {
    use super::ratio;
    use crate::report::sample;

    #[test]
    fn rows_when_a_side_failed_have_dashes_and_the_reason() {
        let mut report = sample::report();
        let rows = report.figure_rows();
        assert_eq!(rows[1], ["Life"]);
        let heading = ["FIGURE", "VM COLD", "VM WARM", "CONTAINER", "VM:CONTAINER"];
        assert_eq!(rows[0][..5], heading);
        assert_eq!(
            rows[2][..5],
            ["  Start, ms", "12,000", "500", "20.0", "25.0x"]
        );
        assert_eq!(
            rows[3][..5],
            ["  Making the template, once, ms", "", "13,000", "", "-"]
        );
        let running = rows.iter().find(|row| row[0].starts_with("  Integer"));
        let running = running.expect("a figure of what runs");
        assert_eq!((&*running[1], &*running[3]), ("", "20.0"));
        assert!(!running[2].is_empty());
        // Without clones, what is said of VMs is said of booted ones.
        report.figures[0].vm_warm = None;
        let rows = report.figure_rows();
        assert_eq!(rows[2][..5], ["  Start, ms", "12,000", "-", "20.0", "600x"]);
        for figure in &mut report.figures {
            figure.container = None;
        }
        report.errors.container = vec!["it is not allowed here".to_owned()];
        let rows = report.figure_rows();
        assert_eq!(rows[2][..5], ["  Start, ms", "12,000", "-", "-", "-"]);
        let remarks = report.remarks();
        assert_eq!(
            remarks[0],
            "Not measured for container: it is not allowed here"
        );
        let lines = report.evidence_lines();
        assert_eq!(lines[1], "kernel: whose code is behind each system call");
        assert_eq!(lines[3], "  VM         6.12.1");
        assert_eq!(
            (ratio(0.001), ratio(2.5)),
            ("1/1,000".into(), "2.50x".into())
        );
    }
}
