//! Signals for commands: while a container's machine boots they end it, and later they are its program's.

use std::fs;
use std::process::{Child, Stdio};

use bulkhead_tests::home::Home;
use bulkhead_tests::lines::Lines;
use bulkhead_tests::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};

/// Waits until there is a VMM, and holds it, so that its guest boots no further.
fn hold_the_machine(home: &Home) {
    let is_vmm = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "bulkhead-vmm\n")
    };
    let mut vmm = None;
    home.wait_until("there is a VMM", || {
        vmm = home.processes().into_iter().find(is_vmm);
        vmm.is_some()
    });
    let pid = vmm.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(pid.expect("a process"), Signal::STOP).expect("hold the VMM");
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("send a signal");
}

fn code(child: &mut Child) -> Option<i32> {
    child.wait().expect("wait").code()
}

#[test]
fn command_when_signalled_while_the_machine_boots_then_the_sandbox_goes() {
    let home = Home::with_busybox();
    for (signal, number, arguments) in [
        (Signal::INT, 2, &["run", "--rm", "busybox", "true"][..]),
        (Signal::TERM, 15, &["run", "--rm", "-i", "busybox", "cat"]),
        (Signal::HUP, 1, &["run", "--rm", "-d", "busybox", "true"]),
    ] {
        let mut run = home.spawn(arguments, |command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        });
        hold_the_machine(&home);
        send(&run, signal);
        assert_eq!(code(&mut run), Some(128 + number), "{arguments:?}");
        // It has waited for that.
        assert_eq!(home.left(), [""; 0], "{arguments:?}");
    }

    let terminal = Terminal::open();
    let mut run = home.spawn(&["run", "--rm", "-it", "busybox"], |command| {
        terminal.give_to(command);
    });
    hold_the_machine(&home);
    let mut terminal = terminal;
    terminal.type_in("\x03");
    assert_eq!(code(&mut run), Some(128 + 2));
    terminal.wait_for("interrupted by signal 2");
    terminal.expect_restored();
    assert_eq!(home.left(), [""; 0]);

    // One that is to be kept is as it was before.
    home.expect(&["create", "--name", "box", "busybox", "sh", "-c", "exit 3"]);
    let mut start = home.spawn(&["start", "--attach", "box"], |command| {
        command.stderr(Stdio::null());
    });
    hold_the_machine(&home);
    send(&start, Signal::TERM);
    assert_eq!(code(&mut start), Some(128 + 15));
    assert_eq!(home.inspect("box", ".State.Status"), "created");
    // Killed, it cannot wait; the monitor needs nobody for this.
    let mut start = home.spawn(&["start", "box"], |_| {});
    hold_the_machine(&home);
    start.kill().expect("kill");
    start.wait().expect("wait");
    home.wait_until("the sandbox is gone", || home.processes().is_empty());
    home.expect_code(3, &["start", "--attach", "box"]);
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
}

#[test]
fn command_when_signalled_while_the_program_runs_then_passes_it_on_unless_told_not_to() {
    let home = Home::with_busybox();
    let traps = "trap 'echo int' INT; trap 'echo hup' HUP; trap 'echo usr1' USR1; ";
    let script = format!("{traps} echo up; while :; do sleep 1; done");
    let run = [
        "run", "--rm", "--name", "box", "busybox", "sh", "-c", &script,
    ];
    let mut run = home.spawn(&run, |command| {
        command.stdout(Stdio::piped());
    });
    let lines = Lines::of(run.stdout.take().expect("stdout"));
    lines.wait_for("up");
    for (signal, line) in [(Signal::HUP, "hup"), (Signal::USR1, "usr1")] {
        send(&run, signal);
        lines.wait_for(line);
    }

    let mut attach = home.spawn(&["attach", "--sig-proxy=false", "box"], |command| {
        command.stdout(Stdio::piped());
    });
    let seen = Lines::of(attach.stdout.take().expect("stdout"));
    home.wait_until("it is attached", || {
        home.expect(&["kill", "--signal", "USR1", "box"]);
        seen.has("usr1")
    });
    send(&attach, Signal::HUP);
    assert_eq!(code(&mut attach), Some(128 + 1));

    // The program of an exec gets them, too, and its end is the command's.
    let script = "trap 'exit 7' TERM; echo up; while :; do sleep 1; done";
    let mut exec = home.spawn(&["exec", "box", "sh", "-c", script], |command| {
        command.stdout(Stdio::piped());
    });
    Lines::of(exec.stdout.take().expect("stdout")).wait_for("up");
    send(&exec, Signal::TERM);
    assert_eq!(code(&mut exec), Some(7));

    // Who insists on the end gets it.
    for _ in 0..2 {
        send(&run, Signal::INT);
        lines.wait_for("int");
    }
    send(&run, Signal::INT);
    assert_eq!(code(&mut run), Some(128 + 9));
    home.expect_nothing_left();
}
