//! What a kernel's panic takes down: one guest's kernel is brought down on purpose, and its neighbours and
//! the host are asked whether they are still there.

use std::fs;
use std::process::Stdio;

use crate::density::Crowd;
use crate::instance::{Setup, last_line, name_of};
use crate::report::{BlastRadius, Both, Side};

/// Why the same is not done to a container.
const NOT_DONE: &str = "not tried: its kernel is the host's own, whose panic ends every container, every VM and this \
                        command with it";

/// Brings down a guest's kernel beside these neighbours.
pub fn prove(setup: &Setup<'_>, neighbours: Both<Option<&mut Crowd<'_>>>) -> BlastRadius {
    let before = Host::look();
    let (panicked, victim) = bring_down(setup);
    let after = Host::look();
    BlastRadius {
        panicked,
        victim,
        host: before.compare(&after),
        neighbours: Both {
            vm: ask(neighbours.vm),
            container: ask(neighbours.container),
        },
        container: NOT_DONE.to_owned(),
    }
}

/// Runs the program that makes its kernel panic, in a VM whose container may do so. Returns whether that
/// kernel panicked, and what came of it.
fn bring_down(setup: &Setup<'_>) -> (bool, String) {
    // It boots: nobody else has a machine of its size, and a template of that would be made for this alone.
    let name = name_of(Side::Cold, 9999);
    let victim = Setup {
        options: [
            "--cap-add=SYS_ADMIN",
            "--security-opt=seccomp=unconfined",
            "--memory=32M",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..setup.clone()
    };
    let mut command = victim.command(&victim.run(Side::Cold, &name, &["panic"]));
    match command.stdin(Stdio::null()).output() {
        Ok(output) => {
            let said = last_line(&String::from_utf8_lossy(&output.stderr));
            let panicked = !output.status.success() && said.contains("panicked");
            let code = output.status.code().unwrap_or(-1);
            (
                panicked,
                format!("its own kernel brought down by its program: {said} (exit code {code})"),
            )
        }
        Err(e) => (false, format!("cannot start bulkhead: {e}")),
    }
}

/// Whether the instances of a kind still answer.
fn ask(crowd: Option<&mut Crowd<'_>>) -> String {
    let Some(crowd) = crowd else {
        return "there was none".to_owned();
    };
    let all = crowd.instances.len();
    let mut answer = 0;
    let mut failure = String::new();
    for instance in &mut crowd.instances {
        match instance.ask("idle") {
            Ok(_) => answer += 1,
            Err(e) => failure = format!(": {e}"),
        }
    }
    match (answer, all) {
        (1, 1) => "goes on, and answers".to_owned(),
        (answer, all) if answer == all => format!("all {all} go on, and answer"),
        (answer, all) => format!("{answer} of {all} answer{failure}"),
    }
}

/// The host's kernel, at one moment.
struct Host {
    boot_id: String,
    uptime_s: f64,
}

impl Host {
    fn look() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let uptime = text("/proc/uptime");
        Host {
            boot_id: text("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            uptime_s: uptime
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0.0),
        }
    }

    fn compare(&self, after: &Host) -> String {
        if self.boot_id != after.boot_id || after.uptime_s < self.uptime_s {
            return "it has another boot ID than before".to_owned();
        }
        format!(
            "goes on: boot ID {} as before, up for {:.0} s then and {:.0} s now",
            after.boot_id, self.uptime_s, after.uptime_s
        )
    }
}
