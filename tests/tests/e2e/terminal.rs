//! Containers at a terminal: keys, job control, sizes, and that the terminal is as before in the end.

use std::process::{Child, Stdio};

use bulkhead_tests::artifacts;
use bulkhead_tests::home::Home;
use bulkhead_tests::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_P: &str = "\x10";
const CTRL_Q: &str = "\x11";
const CTRL_Z: &str = "\x1a";

/// Starts the command on a terminal of its own, wide enough for what is typed here.
fn on_terminal(home: &Home, arguments: &[&str]) -> (Terminal, Child) {
    let terminal = Terminal::open();
    terminal.resize(24, 120);
    let child = home.spawn(arguments, |command| terminal.give_to(command));
    (terminal, child)
}

fn code(child: &mut Child) -> Option<i32> {
    child.wait().expect("wait").code()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("send a signal");
}

/// Keys, job control and sizes, at a shell's prompt.
fn try_keys_and_sizes(terminal: &mut Terminal) {
    terminal.type_in("stty size\n");
    terminal.wait_for("24 120");
    terminal.wait_for("# ");

    // Each says when it is there.
    for (script, code) in [
        ("echo here; exec sleep 1000", 130),
        (
            "trap \"exit 9\" INT; echo here; while :; do sleep 1; done",
            9,
        ),
    ] {
        terminal.type_in(&format!("sh -c '{script}'\n"));
        terminal.wait_for("\nhere\r");
        terminal.type_in(CTRL_C);
        expect_last_code(terminal, code);
    }

    terminal.type_in("sh -c 'echo here; exec cat'\n");
    terminal.wait_for("\nhere\r");
    terminal.type_in("before\n");
    terminal.wait_for("before\r\nbefore\r");
    terminal.type_in(CTRL_Z);
    terminal.wait_for("Stopped");
    terminal.wait_for("# ");
    terminal.type_in("fg\n");
    terminal.wait_for("\nsh -c");
    terminal.type_in("after\n");
    terminal.wait_for("after\r\nafter\r");
    terminal.type_in(CTRL_D);
    expect_last_code(terminal, 0);

    let script = "trap \"stty size; exit 4\" WINCH; echo here; while :; do sleep 1; done";
    terminal.type_in(&format!("sh -c '{script}'\n"));
    terminal.wait_for("\nhere\r");
    terminal.resize(30, 100);
    terminal.wait_for("\n30 100\r");
    expect_last_code(terminal, 4);
}

/// The shell is back at its prompt, and its last program has ended so.
fn expect_last_code(terminal: &mut Terminal, code: u8) {
    terminal.wait_for("# ");
    terminal.type_in("echo code=$?\n");
    terminal.wait_for(&format!("\ncode={code}\r"));
    terminal.wait_for("# ");
}

/// A shell in a container of this kind, on a terminal of its own.
fn shell(home: &Home, isolation: &str) -> (Terminal, Child) {
    let run = ["run", "--isolation", isolation, "--rm", "-it", "--name"];
    on_terminal(home, &[&run[..], &["box", "busybox"]].concat())
}

#[test]
fn terminal_when_containers_programs_have_it_then_keys_and_sizes_reach_them() {
    try_programs("vm");
}

#[test]
fn terminal_on_the_host_when_programs_have_it_then_keys_and_sizes_reach_them() {
    try_programs("container");
}

fn try_programs(isolation: &str) {
    let home = Home::with_busybox();
    let (mut terminal, mut run) = shell(&home, isolation);
    terminal.wait_for("# ");
    assert!(terminal.is_raw());
    try_keys_and_sizes(&mut terminal);

    let (mut other, mut exec) = on_terminal(&home, &["exec", "-it", "box", "sh"]);
    other.wait_for("# ");
    assert!(other.is_raw());
    try_keys_and_sizes(&mut other);
    other.type_in("exit 6\n");
    assert_eq!(code(&mut exec), Some(6));
    other.expect_restored();

    terminal.type_in("exit 5\n");
    assert_eq!(code(&mut run), Some(5));
    terminal.expect_restored();
    home.expect_nothing_left();
}

#[test]
fn terminal_when_left_taken_away_or_killed_then_it_is_restored() {
    try_leaving("vm");
}

#[test]
fn terminal_on_the_host_when_left_taken_away_or_killed_then_it_is_restored() {
    try_leaving("container");
}

fn try_leaving(isolation: &str) {
    let home = Home::with_busybox();
    let (mut terminal, mut run) = shell(&home, isolation);
    terminal.wait_for("# ");
    terminal.type_in(CTRL_P);
    terminal.type_in(CTRL_Q);
    assert_eq!(code(&mut run), Some(0));
    terminal.expect_restored();
    assert_eq!(home.inspect("box", ".State.Status"), "running");

    // The command is asked to end, which is not the container's business.
    let (mut terminal, mut attach) = on_terminal(&home, &["attach", "box"]);
    terminal.type_in("\n");
    terminal.wait_for("# ");
    assert!(terminal.is_raw());
    send(&attach, Signal::TERM);
    assert_eq!(code(&mut attach), Some(128 + 15));
    terminal.expect_restored();

    // A program executed in it is hung up.
    let (mut terminal, mut exec) = on_terminal(&home, &["exec", "-it", "box", "sh"]);
    terminal.wait_for("# ");
    terminal.type_in("exec sleep 1234\n");
    wait_for_process(&home, "sleep 1234", true);
    send(&exec, Signal::HUP);
    assert_eq!(code(&mut exec), Some(128 + 1));
    terminal.expect_restored();
    wait_for_process(&home, "sleep 1234", false);

    // The command is killed.
    let (mut terminal, mut attach) =
        on_terminal(&home, &["attach", "--detach-keys", "ctrl-x,x", "box"]);
    terminal.type_in("\n");
    terminal.wait_for("# ");
    // Not its keys.
    terminal.type_in(CTRL_P);
    terminal.type_in(CTRL_Q);
    terminal.type_in("echo still $((40 + 2))\n");
    terminal.wait_for("still 42");
    attach.kill().expect("kill");
    assert_eq!(code(&mut attach), None);
    terminal.expect_restored();

    // The container is killed.
    let (mut terminal, mut attach) = on_terminal(&home, &["attach", "box"]);
    terminal.type_in("\n");
    terminal.wait_for("# ");
    home.expect(&["kill", "box"]);
    assert_eq!(code(&mut attach), Some(128 + 9));
    terminal.expect_restored();
    home.expect_nothing_left();
}

/// Waits until the container has, or has no, process that is called so.
fn wait_for_process(home: &Home, name: &str, is_there: bool) {
    home.wait_until(&format!("{name} is there: {is_there}"), || {
        home.expect(&["top", "box"]).contains(name) == is_there
    });
}

#[test]
fn terminal_when_its_program_is_under_an_init_then_keys_reach_it() {
    let home = Home::with_busybox();
    let program = ["sh", "-c", "echo here; exec sleep 100000"];
    let run = [&["run", "--rm", "-it", "--init", "busybox"], &program[..]].concat();
    let (mut terminal, mut run) = on_terminal(&home, &run);
    terminal.wait_for("here");
    terminal.type_in(CTRL_C);
    assert_eq!(code(&mut run), Some(128 + 2));
    terminal.expect_restored();
    home.expect_nothing_left();
}

#[test]
fn input_when_it_ends_stays_open_or_is_no_terminal_then_nothing_hangs() {
    let home = Home::with_busybox();
    for command in [
        &["run", "--rm", "-it", "busybox"][..],
        &["exec", "-it", "box", "sh"],
    ] {
        let (_, said) = home.expect_code(125, command);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("not a terminal"), "{said}");
    }
    home.expect_nothing_left();

    // At its end from the start.
    assert_eq!(home.expect(&["run", "--rm", "-i", "busybox", "cat"]), "");
    // Open, and not asked for.
    let run = ["run", "-d", "--name", "box", "busybox", "sleep", "100000"];
    expect_end_with_input_open(&home, &run);
    expect_end_with_input_open(&home, &["exec", "box", "cat"]);
    expect_end_with_input_open(&home, &["exec", "-i", "box", "true"]);
    assert_eq!(home.expect(&["exec", "-i", "box", "cat"]), "");
    let closed = std::process::Command::new(artifacts::busybox())
        .args(["sh", "-c", "exec \"$@\" <&-", "sh"])
        .arg(artifacts::cli())
        .args(["exec", "-i", "box", "cat"])
        .env("BULKHEAD_ROOT", home.root())
        .output()
        .expect("run a shell");
    assert!(closed.status.success(), "{closed:?}");
    // A terminal for its output only.
    let script = "test -t 1 && echo terminal";
    let said = home.expect(&["exec", "-t", "box", "sh", "-c", script]);
    assert_eq!(said, "terminal\r\n");
    home.expect(&["rm", "--force", "box"]);
    home.expect_nothing_left();
}

/// The command ends although its standard input does not.
fn expect_end_with_input_open(home: &Home, arguments: &[&str]) {
    let mut child = home.spawn(arguments, |command| {
        command.stdin(Stdio::piped()).stdout(Stdio::null());
    });
    let open = child.stdin.take();
    assert_eq!(code(&mut child), Some(0), "{arguments:?}");
    drop(open);
}
