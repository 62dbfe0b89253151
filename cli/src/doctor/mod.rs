//! `bulkhead doctor`: what this host can do, what is missing, and what to do about it.

mod cgroups;
mod kernel;
mod kvm;
mod parts;
mod users;

use std::error::Error;
use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use crate::boot::Format;

/// Say what this host can do, what is missing, and what to do about it.
#[derive(Args)]
#[command(after_help = "Exit codes: 0 microVMs can run here, 1 something they need is missing.")]
pub struct DoctorArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Works without, but slower or with less.
    Warning,
    /// MicroVMs cannot run.
    Missing,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it, if anything should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Finding {
            what: what.into(),
            verdict: Verdict::Good,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Finding {
            what: what.into(),
            verdict: Verdict::Warning,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn missing(
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Finding {
            verdict: Verdict::Missing,
            ..Finding::warning(what, found, advice)
        }
    }
}

/// Looks at everything and prints it.
pub fn run(args: &DoctorArgs) -> Result<u8, Box<dyn Error>> {
    let mut findings = kvm::look();
    findings.extend(cgroups::look());
    findings.extend(kernel::look());
    findings.extend(users::look());
    findings.extend(parts::look());
    let mut out = io::stdout().lock();
    match args.format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &findings)?;
            writeln!(out)?;
        }
        Format::Table => print_table(&mut out, &findings)?,
    }
    let healthy = findings.iter().all(|f| f.verdict != Verdict::Missing);
    Ok(if healthy { 0 } else { 1 })
}

fn print_table(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    let width = findings.iter().map(|f| f.what.len()).max().unwrap_or(0);
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Missing => "FAIL",
        };
        writeln!(out, "{mark}  {:width$}  {}", finding.what, finding.found)?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "      {:width$}  -> {advice}", "")?;
        }
    }
    let missing = findings
        .iter()
        .filter(|f| f.verdict == Verdict::Missing)
        .count();
    let warnings = findings
        .iter()
        .filter(|f| f.verdict == Verdict::Warning)
        .count();
    let verdict = if missing == 0 {
        "MicroVMs can run here"
    } else {
        "MicroVMs cannot run here"
    };
    writeln!(out, "\n{verdict}: {missing} missing, {warnings} warnings.")
}
