//! `--timing`: where a boot's time went.

use std::io::{self, Write};

use serde::Serialize;

use super::options::Format;
use super::session::End;

/// One step of a boot.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Step {
    /// What it was.
    step: &'static str,
    /// How long it took, in nanoseconds.
    duration_ns: u64,
    /// When it ended, in nanoseconds since this process started.
    end_ns: u64,
}

/// The whole, for programs.
#[derive(Serialize)]
struct Report<'a> {
    steps: &'a [Step],
    /// From the start of this process to the agent's word, in nanoseconds.
    total_ns: u64,
    /// CPU time of the VMM until the first `KVM_RUN`, in nanoseconds.
    vmm_cpu_ns: Option<u64>,
    host_kernel: String,
    guest_kernel: Option<String>,
}

/// Prints the steps of the boot that `end` tells of.
pub fn print(end: &End, format: Format) -> io::Result<()> {
    let steps = steps(end);
    let uname = rustix::system::uname();
    let host_kernel = format!(
        "{} {} {} {}",
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.version().to_string_lossy(),
        uname.machine().to_string_lossy()
    );
    let guest_kernel = end.info.as_ref().map(|info| {
        format!(
            "{} {} {} {}",
            info.kernel.sysname, info.kernel.release, info.kernel.version, info.kernel.machine
        )
    });
    let total_ns = steps.last().map_or(0, |step| step.end_ns);
    let vmm_cpu_ns = end.vmm.map(|times| times.cpu_ns);
    let mut out = io::stdout().lock();
    if format == Format::Json {
        let report = Report {
            steps: &steps,
            total_ns,
            vmm_cpu_ns,
            host_kernel,
            guest_kernel,
        };
        serde_json::to_writer_pretty(&mut out, &report)?;
        return writeln!(out);
    }
    writeln!(out, "host   {host_kernel}")?;
    let guest = guest_kernel.as_deref().unwrap_or("no word from an agent");
    writeln!(out, "guest  {guest}\n")?;
    writeln!(out, "{:<28}{:>12}{:>12}", "STEP", "TOOK", "AT")?;
    for step in &steps {
        let (took, at) = (milliseconds(step.duration_ns), milliseconds(step.end_ns));
        writeln!(out, "{:<28}{took:>12}{at:>12}", step.step)?;
    }
    if let Some(cpu) = vmm_cpu_ns {
        writeln!(
            out,
            "\nVMM's CPU time until the first KVM_RUN: {}",
            milliseconds(cpu)
        )?;
    }
    Ok(())
}

fn milliseconds(ns: u64) -> String {
    format!("{}.{:02} ms", ns / 1_000_000, ns % 1_000_000 / 10_000)
}

/// The steps that are known, one after the other without gaps.
fn steps(end: &End) -> Vec<Step> {
    let mut moments: Vec<(&'static str, u64)> = Vec::new();
    if let Some(vmm) = end.vmm {
        let (host, kernel, run) = match end.is_restored {
            false => (
                "configuration and KVM",
                "kernel load",
                "devices, first KVM_RUN",
            ),
            true => ("snapshot", "devices", "KVM, vCPUs, first KVM_RUN"),
        };
        moments.extend([
            ("start of the VMM", vmm.process_ns),
            (host, vmm.host_ns),
            ("guest memory", vmm.memory_ns),
            (kernel, vmm.kernel_ns),
            (run, vmm.run_ns),
        ]);
    }
    moments.extend(end.woken.map(|at| ("agent knows", at)));
    if let Some((ready, arrived)) = &end.ready {
        let timings = ready.timings;
        let init_took = timings.ready_ns.saturating_sub(timings.init_start_ns);
        moments.push(("guest kernel", arrived.saturating_sub(init_took)));
        moments.push(("init to ready", *arrived));
    }
    let mut before = end.started;
    moments
        .into_iter()
        .map(|(step, at)| {
            // A guest can lie about its times; the table stays in order all the same.
            let at = at.max(before);
            let duration_ns = at - before;
            before = at;
            Step {
                step,
                duration_ns,
                end_ns: at - end.started,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_protocol::{BootTimings, Ready};
    use bulkhead_vmm::timing::StartTimes;

    fn end(init_start_ns: u64, ready_ns: u64) -> End {
        End {
            code: 0,
            started: 1000,
            is_restored: false,
            woken: None,
            vmm: Some(StartTimes {
                process_ns: 1100,
                host_ns: 1200,
                memory_ns: 1300,
                kernel_ns: 1400,
                run_ns: 1500,
                cpu_ns: 77,
            }),
            ready: Some((
                Ready {
                    api: 1,
                    agent_version: "0".into(),
                    kernel_release: "0".into(),
                    timings: BootTimings {
                        init_start_ns,
                        ready_ns,
                    },
                },
                3000,
            )),
            info: None,
        }
    }

    #[test]
    fn steps_add_up_to_the_whole() {
        let steps = steps(&end(900, 1100));
        let sum: u64 = steps.iter().map(|step| step.duration_ns).sum();
        assert_eq!(sum, 2000);
        assert_eq!(steps.last().map(|step| step.duration_ns), Some(200));
    }

    #[test]
    fn steps_of_a_restore_end_when_the_agent_knows() {
        let restored = End {
            is_restored: true,
            woken: Some(2500),
            ready: None,
            ..end(0, 0)
        };
        let steps = steps(&restored);
        let names: Vec<&str> = steps.iter().map(|step| step.step).collect();
        assert!(names.contains(&"snapshot") && !names.contains(&"kernel load"));
        let last = steps.last().map(|step| (step.step, step.end_ns));
        assert_eq!(last, Some(("agent knows", 1500)));
    }

    #[test]
    fn steps_when_the_guest_lies_stay_in_order() {
        for (start, ready) in [(0, u64::MAX), (u64::MAX, 0)] {
            let steps = steps(&end(start, ready));
            assert_eq!(steps.last().map(|step| step.end_ns), Some(2000));
            assert!(steps.windows(2).all(|w| w[0].end_ns <= w[1].end_ns));
        }
    }

    #[test]
    fn milliseconds_have_two_places() {
        assert_eq!(milliseconds(12_345_678), "12.34 ms");
    }
}
