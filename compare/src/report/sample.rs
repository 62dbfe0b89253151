//! A report for tests, with what a hostile guest would write into one.

use super::{
    BlastRadius, Both, CATALOGUE, Evidence, Figure, Host, Kvm, Report, Sides, TEMPLATE, VERSION,
};

/// What must not become part of a page.
pub const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&";

/// A report with every figure, some evidence and everything else.
pub fn report() -> Report {
    let figure = |(index, definition): (usize, &super::Definition)| {
        let slow = vec![12_000.0 / (index + 1) as f64; 3];
        let container = vec![20.0, 19.5, 21.25 + index as f64];
        let is_of_a_start = matches!(definition.group, "Life" | "Memory");
        let samples = match definition.id {
            TEMPLATE => Sides {
                warm: vec![13_000.0],
                ..Sides::default()
            },
            _ if is_of_a_start => Sides {
                cold: slow,
                warm: vec![500.0; 3],
                container,
            },
            _ => Sides {
                cold: Vec::new(),
                warm: slow,
                container,
            },
        };
        Figure::of(definition, samples)
    };
    let evidence = |id: &str, seen: &str| Evidence {
        id: id.to_owned(),
        title: id.to_owned(),
        host: "6.18.1".to_owned(),
        vm: Some(seen.to_owned()),
        container: Some("6.18.1".to_owned()),
        meaning: "whose code is behind each system call".to_owned(),
    };
    let text = |text: &str| text.to_owned();
    Report {
        version: VERSION,
        bulkhead: text("0.1.0"),
        taken: text("2026-01-01T00:00:00Z"),
        seconds: 123.4,
        rounds: 3,
        image: text(HOSTILE),
        command: vec![text("true")],
        host: Host {
            kernel: text("6.18.1"),
            processor: text("A processor"),
            processors: 2,
            memory_bytes: 8 << 30,
            kvm: Kvm::SoftwareAssisted,
            kvm_meaning: text("software-assisted"),
        },
        errors: Both::default(),
        figures: CATALOGUE.iter().enumerate().map(figure).collect(),
        evidence: vec![evidence("kernel", "6.12.1"), evidence("boot_id", HOSTILE)],
        blast_radius: Some(BlastRadius {
            victim: text("its kernel panicked"),
            panicked: true,
            host: text("goes on"),
            neighbours: Both {
                vm: text("answers"),
                container: text(HOSTILE),
            },
            container: text("not done"),
        }),
        notes: vec![text(HOSTILE)],
    }
}
