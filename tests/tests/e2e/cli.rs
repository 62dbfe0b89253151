//! `bulkhead boot`: the command as a person or a script meets it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::lane::patience;
use bulkhead_tests::terminal::Terminal;
use bulkhead_tests::{artifacts, http, net, process};
use serde_json::Value;
use tempfile::TempDir;

/// A `bulkhead boot` under way, and the folder its sockets are in. Dropping it kills it.
struct Boot {
    child: Child,
    dir: TempDir,
}

impl Boot {
    /// Starts it with `arguments`, its sockets in a folder of its own.
    fn start(arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Self {
        Self::start_by(Command::new(artifacts::cli()), arguments, configure)
    }

    /// The same, by a program that is given the command's arguments, or is the command.
    fn start_by(
        mut command: Command,
        arguments: &[&str],
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("make a folder");
        command
            .arg("boot")
            .arg("--vsock")
            .arg(dir.path().join("vm"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        configure(&mut command);
        process::die_with_parent(&mut command);
        let child = command.spawn().expect("start bulkhead");
        Boot { child, dir }
    }

    fn vm_dir(&self) -> PathBuf {
        self.dir.path().join("vm")
    }

    /// Waits until the agent answers, and returns the VMM's process.
    fn wait_up(&mut self) -> u32 {
        let path = self.vm_dir().join("api.sock");
        let deadline = Instant::now() + patience();
        loop {
            if let Ok(stream) = UnixStream::connect(&path)
                && stream.set_read_timeout(Some(patience())).is_ok()
                && http::request(stream, "GET", "/v1/health", None).is_ok()
            {
                break;
            }
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "bulkhead ended: {ended:?}");
            assert!(Instant::now() < deadline, "the guest does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let dir = self.vm_dir().display().to_string();
        let ours = process::naming(&dir);
        let vmm = ours.iter().find(|&&pid| pid != self.child.id());
        *vmm.unwrap_or_else(|| panic!("no VMM among {ours:?}"))
    }

    fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "bulkhead has not ended");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing of it is left: no process, no socket, no folder.
    fn expect_gone(&self) {
        let dir = self.vm_dir();
        let deadline = Instant::now() + patience();
        loop {
            let processes = process::naming(&dir.display().to_string());
            if processes.is_empty() && !dir.exists() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left behind: processes {processes:?}, files {:?}",
                list(&dir)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn boot_when_asked_for_its_timing_then_prints_it_and_leaves_nothing() {
    let runtime = tempfile::tempdir().expect("make a folder");
    let output = Command::new(artifacts::cli())
        .args(["boot", "--timing", "--format", "json"])
        .env("XDG_RUNTIME_DIR", runtime.path())
        .stdin(Stdio::null())
        .output()
        .expect("run bulkhead");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let stdout = String::from_utf8_lossy(&output.stdout);
    // What the guest's console showed may come first.
    let document = stdout.find('{').map_or("", |at| &stdout[at..]);
    let report: Value = serde_json::from_str(document).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    assert!(
        report["total_ns"].as_u64().is_some_and(|ns| ns > 0),
        "{report}"
    );
    assert!(report["guest_kernel"].is_string(), "{report}");
    assert_ne!(report["guest_kernel"], report["host_kernel"]);
    assert_eq!(list(runtime.path()), [""; 0]);
}

#[test]
fn boot_when_the_command_is_killed_then_nothing_is_left() {
    net::in_new_namespace(|| {
        let mut boot = Boot::start(&["--net", "tap=made1"], |_| {});
        boot.wait_up();
        assert!(net::exists("made1"));
        boot.child.kill().expect("kill");
        boot.child.wait().expect("wait");
        boot.expect_gone();
        assert!(!net::exists("made1"), "the tap was left behind");
    });
}

#[test]
fn boot_when_the_vmm_is_killed_then_the_command_says_so_and_nothing_is_left() {
    let mut boot = Boot::start(&[], |_| {});
    let vmm = boot.wait_up();
    let pid = rustix::process::Pid::from_raw(vmm as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    assert_eq!(boot.wait_exit().code(), Some(128 + 9));
    boot.expect_gone();
}

#[test]
fn boot_when_terminated_then_the_guest_stops_in_order() {
    let mut boot = Boot::start(&[], |_| {});
    boot.wait_up();
    let pid = rustix::process::Pid::from_child(&boot.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("terminate");
    assert_eq!(boot.wait_exit().code(), Some(0));
    boot.expect_gone();
}

#[test]
fn boot_when_told_nonsense_then_one_sentence_and_125() {
    for arguments in [
        &["--cpus", "0"][..],
        &["--cpus", "1000"],
        &["--memory", "1M"],
        &["--memory", "10T"],
        &["--kernel", "/no/such/kernel"],
        &["--kernel", "/etc/passwd"],
        &["--initrd", "/no/such/initrd"],
        &["--disk", "/no/such/disk"],
        &["--vsock", "/no/such/folder/for/it"],
    ] {
        let runtime = tempfile::tempdir().expect("make a folder");
        let output = Command::new(artifacts::cli())
            .arg("boot")
            .args(arguments)
            .env("XDG_RUNTIME_DIR", runtime.path())
            .stdin(Stdio::null())
            .output()
            .expect("run bulkhead");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.starts_with("bulkhead"), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert_eq!(list(runtime.path()), [""; 0], "{arguments:?}");
    }
}

/// A `bulkhead boot` on a terminal.
fn boot_on_terminal() -> (Terminal, Boot) {
    let terminal = Terminal::open();
    let boot = Boot::start(&[], |command| terminal.give_to(command));
    (terminal, boot)
}

#[test]
fn terminal_when_the_escape_is_typed_then_the_vm_stops_and_it_is_restored() {
    let (mut terminal, mut boot) = boot_on_terminal();
    terminal.wait_for("guest is ready");
    assert!(terminal.is_raw());
    terminal.type_in("\x01x");
    assert_eq!(boot.wait_exit().code(), Some(0));
    terminal.expect_restored();
    boot.expect_gone();
}

#[test]
fn terminal_when_the_command_is_killed_then_it_is_restored() {
    let (mut terminal, mut boot) = boot_on_terminal();
    terminal.wait_for("guest is ready");
    boot.child.kill().expect("kill");
    terminal.expect_restored();
    boot.expect_gone();
}

#[test]
fn terminal_when_the_command_is_in_its_background_then_it_is_left_alone() {
    let mut terminal = Terminal::open();
    let mut shell = Command::new(artifacts::busybox());
    // With job control, as somebody has it who types.
    let script = r#""$@" & read -r line; kill $!; wait $!"#;
    shell
        .args(["sh", "-m", "-c", script, "sh"])
        .arg(artifacts::cli());
    let mut boot = Boot::start_by(shell, &[], |command| terminal.give_to(command));
    boot.wait_up();
    assert!(!terminal.is_raw());
    terminal.type_in("\n");
    assert_eq!(boot.wait_exit().code(), Some(0));
    terminal.expect_restored();
    boot.expect_gone();
}
