//! The scripts in `examples/`, against an agent on this machine. Needs root, python3 and
//! busybox-static.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::Agent;
use serde_json::{Value, json};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// What a script with the examples to import says.
fn python(script: &str, argument: &Path) -> String {
    let out = Command::new("python3")
        .args(["-B", "-c", script])
        .arg(argument)
        .env("PYTHONPATH", EXAMPLES)
        .output()
        .expect("run python3, of the package python3");
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{errors}");
    String::from_utf8(out.stdout).expect("UTF-8")
}

#[test]
fn sandbox_example_when_it_drives_an_agent_then_runs_feeds_streams_copies_and_stops() {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = busybox.into_iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("busybox, of the package busybox-static");
    let agent = Agent::start();
    let root = agent.dir.path().join("rootfs");
    for folder in ["bin", "proc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("mkdir");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    for applet in ["cat", "echo", "sh", "sleep"] {
        symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    let wanted = json!({
        "id": "box",
        "rootfs": {"lower": {"directory": root}},
        "spec": {
            "ociVersion": "1.2.0",
            "process": {"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"]},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        },
    });
    agent.must("POST", "/v1/containers", &wanted);
    agent.must("POST", "/v1/containers/box/start", &Value::Null);
    let script = "import sys, sandbox; sandbox.drive(sandbox.Agent(sys.argv[1]))";
    let said = python(script, &agent.socket);
    for line in [
        "run: said 42, ended with 3",
        "run: ended with 127",
        "feed: 1048576 bytes there and back",
        "stream: you said one, you said two, you said three",
        "copy: notes/letter.txt has ['hello', 'from the guest']",
        "stop: ended with 137",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
}

#[test]
fn guest_to_host_example_when_both_ends_are_here_then_asks_feeds_streams_and_copies() {
    let dir = tempfile::tempdir().expect("tempdir");
    // The way between the two is a Unix socket at the host's end, and here at both.
    let script = "
import socket, sys, threading
import guest_to_host as example
def connect(self):
    self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    self.sock.connect(sys.argv[1])
example.FromGuest.connect = connect
with example.Server(sys.argv[1], example.ForGuest) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    example.guest()
    server.shutdown()
";
    let said = python(script, &dir.path().join("vsock.sock_5000"));
    for line in [
        "ask: from the host",
        "feed: the sum is 499500",
        "stream: tick0 tick1 tick2",
        "copy: letter.txt has 'hello, guest'",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
}
