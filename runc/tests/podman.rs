//! Podman, as Debian packages it, with this runtime: run, exec, stop, logs, remove, with and without a terminal.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{busybox, wait_for};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A Podman that knows nothing of another's images and containers.
struct Podman {
    place: tempfile::TempDir,
    cgroup: String,
}

/// What it would raise the limits to, this process may not be allowed to.
const RUN: [&str; 6] = [
    "--network",
    "none",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
];

impl Podman {
    fn new() -> Podman {
        let place = tempfile::tempdir().unwrap();
        let name = place.path().file_name().unwrap().to_str().unwrap();
        let cgroup = format!("/bulkhead-test-{}", name.trim_start_matches('.'));
        let podman = Podman { place, cgroup };
        let mut import = podman.command(&["import", "-", "busybox"]);
        let mut import = import
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("podman: {e}; run scripts/setup"));
        let rootfs = podman.place.path().join("rootfs");
        busybox(&rootfs);
        let mut tar = Command::new("tar");
        let tar = tar
            .arg("-C")
            .arg(&rootfs)
            .args(["-c", "."])
            .output()
            .unwrap();
        import.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
        let output = import.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        podman
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let place = |name: &str| self.place.path().join(name);
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(place("root"))
            .arg("--runroot")
            .arg(place("run"))
            .arg("--tmpdir")
            .arg(place("tmp"))
            .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs"])
            .args(["--events-backend=none", "--runtime"])
            .arg(env!("CARGO_BIN_EXE_bulkhead-runc"))
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// `podman run`, or `podman create`.
    fn start(&self, options: &[&str], program: &[&str]) -> Output {
        let parent = ["--cgroup-parent", &self.cgroup];
        let arguments = [&["run"], &RUN[..], &parent, options, &["busybox"], program].concat();
        self.run(&arguments)
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "--all", "--force", "--time", "0"]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // Podman mounts its storage over itself.
        for line in mounts.lines().rev() {
            let target = line.split(' ').nth(4).map(PathBuf::from);
            if let Some(target) = target.filter(|target| target.starts_with(self.place.path())) {
                let _ = rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH);
            }
        }
        for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            let mounted = line.split(' ').nth(4).unwrap_or_default();
            // That of conmon is Podman's, which leaves it.
            for group in ["/conmon", ""] {
                let _ = fs::remove_dir(format!("{mounted}{}{group}", self.cgroup));
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn program_when_run_by_podman_then_its_output_input_and_code() {
    let podman = Podman::new();
    let output = podman.start(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(text(&output.stdout), "out\n");
    assert_eq!(text(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(5));
    let arguments = [&["run", "--rm", "-i"], &RUN[..], &["busybox", "cat"]].concat();
    let mut cat = podman.command(&arguments);
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(text(&cat.wait_with_output().unwrap().stdout), "through\n");
    for (program, code) in [("nothing", 127), ("/etc", 126)] {
        let output = podman.start(&["--rm"], &[program]);
        assert_eq!(output.status.code(), Some(code), "{program}: {output:?}");
    }
    assert_eq!(podman.succeed(&["ps", "--all", "--quiet"]), "");
}

#[test]
fn container_when_it_lives_then_podman_executes_in_it_stops_it_and_removes_it() {
    let podman = Podman::new();
    let loops = "trap 'echo ended; exit 7' TERM; echo begun; while :; do sleep 0.01; done";
    let output = podman.start(&["--detach", "--name", "a"], &["sh", "-c", loops]);
    assert!(output.status.success(), "{output:?}");
    let kept = Path::new("/run/bulkhead-runc").join(text(&output.stdout).trim());
    assert!(kept.join("state.json").exists());
    wait_for(|| podman.succeed(&["logs", "a"]) == "begun\n");

    let exec = ["exec", "-e", "X=y", "-w", "/tmp", "-u", "1000:1000", "a"];
    let shown = podman.succeed(&[&exec[..], &["sh", "-c", "echo $(id -u) $PWD $X"]].concat());
    assert_eq!(shown, "1000 /tmp y\n");
    let code = |program: &[&str]| {
        podman
            .run(&[&["exec", "a"], program].concat())
            .status
            .code()
    };
    assert_eq!(code(&["sh", "-c", "exit 9"]), Some(9));
    assert_eq!(code(&["nothing"]), Some(127));
    podman.succeed(&["exec", "-d", "a", "sh", "-c", "echo here > /detached"]);
    wait_for(|| code(&["cat", "/detached"]) == Some(0));

    podman.succeed(&["pause", "a"]);
    let status = || podman.succeed(&["inspect", "a", "--format", "{{.State.Status}}"]);
    assert_eq!(status(), "paused\n");
    podman.succeed(&["unpause", "a"]);
    assert_eq!(status(), "running\n");

    podman.succeed(&["stop", "a"]);
    assert_eq!(podman.succeed(&["logs", "a"]), "begun\nended\n");
    let code = podman.succeed(&["inspect", "a", "--format", "{{.State.ExitCode}}"]);
    assert_eq!(code, "7\n");
    podman.succeed(&["start", "a"]);
    podman.succeed(&["kill", "--signal", "KILL", "a"]);
    assert_eq!(podman.succeed(&["wait", "a"]), "137\n");
    podman.succeed(&["rm", "a"]);
    assert_eq!(podman.succeed(&["ps", "--all", "--quiet"]), "");
    assert!(!kept.exists());
}

#[test]
fn limits_when_podman_sets_them_then_they_hold() {
    let podman = Podman::new();
    let options = ["--rm", "--memory", "64m", "--pids-limit", "50"];
    // As cgroup v1 has them, or v2.
    let show = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
                cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true";
    let output = podman.start(&options, &["sh", "-c", show]);
    assert_eq!(text(&output.stdout), "67108864\n50\n", "{output:?}");
}

#[test]
fn terminal_when_podman_wants_one_then_it_has_its_size_and_what_is_typed() {
    let podman = Podman::new();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize {
        ws_row: 33,
        ws_col: 77,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = openat(CWD, name, flags, Mode::empty()).unwrap();
    tcsetwinsize(&terminal, size).unwrap();
    let ours = || Stdio::from(terminal.as_fd().try_clone_to_owned().unwrap());
    // The size comes when the program runs already.
    let program = "while [ \"$(stty size)\" != '33 77' ]; do sleep 0.01; done; tty; read line; echo got $line; exit 6";
    let arguments = [
        &["run", "--rm", "-it"],
        &RUN[..],
        &["busybox", "sh", "-c", program],
    ]
    .concat();
    let mut command = podman.command(&arguments);
    let mut child = command
        .stdin(ours())
        .stdout(ours())
        .stderr(ours())
        .spawn()
        .unwrap();
    drop(command);
    drop(terminal);
    let mut master = File::from(master);
    let mut shown = Vec::new();
    let mut typed = false;
    let mut buffer = [0; 1024];
    // Reading fails when nobody has the other side any more.
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..length]);
        if !typed && text(&shown).contains("/dev/") {
            typed = true;
            master.write_all(b"words\n").unwrap();
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(6));
    let shown = text(&shown);
    assert!(shown.contains("got words"), "{shown:?}");
}
