//! What a container's user sees when one of its processes is killed. At any moment: `tests/alone`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use bulkhead_tests::home::Home;
use bulkhead_tests::lane::patience;
use bulkhead_tests::process;
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: &str) {
    let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::KILL).expect("kill");
}

fn start(home: &Home) {
    home.expect(&["run", "-d", "--name", "box", "busybox", "sleep", "100000"]);
}

#[test]
fn monitor_when_killed_then_its_machine_goes_and_the_next_command_says_what_happened() {
    let home = Home::with_busybox();
    start(&home);
    let vmm: u32 = home
        .inspect("box", ".State.Pid")
        .parse()
        .expect("a process");
    kill(&home.inspect("box", ".State.MonitorPid"));
    home.wait_for("box", ".State.Status", "exited");
    assert_eq!(home.inspect("box", ".State.ExitCode"), "255");
    assert!(!process::is_alive(vmm));
    // It can be started again, and then its machine be killed.
    home.expect(&["start", "box"]);
    kill(&home.inspect("box", ".State.Pid"));
    home.wait_for("box", ".State.Status", "exited");
    assert_eq!(home.inspect("box", ".State.ExitCode"), "137");
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
}

#[test]
fn command_when_killed_then_the_container_goes_on_and_can_be_stopped() {
    let home = Home::with_busybox();
    let mut run = home.spawn(
        &[
            "run",
            "--rm",
            "-i",
            "--name",
            "box",
            "busybox",
            "sh",
            "-c",
            "echo up; sleep 100000",
        ],
        |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        },
    );
    let deadline = Instant::now() + patience();
    while home.run(&["logs", "box"]).stdout != b"up\n" {
        assert!(Instant::now() < deadline, "the container is not up");
        std::thread::sleep(Duration::from_millis(100));
    }
    run.kill().expect("kill");
    run.wait().expect("wait");
    assert_eq!(home.inspect("box", ".State.Status"), "running");
    home.expect(&["kill", "box"]);
    // It was to be removed at its end, whoever was there to see that.
    home.expect_nothing_left();
}
