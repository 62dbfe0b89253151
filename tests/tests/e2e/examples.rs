//! The scripts in `examples/`, as people run them: through the command, with nothing but Python.

use std::fs::{self, File};
use std::path::Path;

use bulkhead_tests::artifacts;
use bulkhead_tests::home::Home;
use bulkhead_tests::process;
use tempfile::TempDir;

const SCRIPTS: [(&str, &str); 3] = [
    (
        "bulkhead_api.py",
        include_str!("../../../examples/bulkhead_api.py"),
    ),
    (
        "guest_to_host.py",
        include_str!("../../../examples/guest_to_host.py"),
    ),
    ("sandbox.py", include_str!("../../../examples/sandbox.py")),
];

/// Runs a script to its end with the Python of the test's archive, which the outer machine has, too. It
/// has to succeed, and to say these things in this order.
fn run(home: &Home, arguments: &[&str], said: &[&str]) {
    let folder = TempDir::with_prefix("bulkhead-test-").expect("make a folder");
    let python = folder.path().join("python");
    let archive = File::open(artifacts::test_python()).expect("open the archive of Python");
    tar::Archive::new(archive).unpack(&python).expect("unpack");
    for (name, text) in SCRIPTS {
        fs::write(folder.path().join(name), text).expect("write a script");
    }
    // Where it was unpacked, neither the kernel nor Python would find what belongs to it.
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
    let libraries = libraries.map(|path| python.join(path).display().to_string());
    let mut command = home.command_of(&python.join("lib64/ld-linux-x86-64.so.2"));
    command
        .args(["--library-path", &libraries.join(":")])
        .arg(python.join("usr/bin/python3"))
        .args(arguments)
        .current_dir(folder.path())
        .env("PYTHONHOME", python.join("usr"))
        .env("BULKHEAD", artifacts::cli());
    process::die_with_parent(&mut command);
    let output = command.output().expect("run Python");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let mut rest = &*stdout;
    for line in said {
        let at = rest.find(line);
        let at = at.unwrap_or_else(|| panic!("`{line}` is not where it should be in\n{stdout}"));
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn sandbox_example_when_run_then_boots_runs_feeds_streams_copies_and_stops() {
    let home = Home::with_busybox();
    let said = [
        "guest: Linux ",
        "run: said 42, ended with 3",
        "run: ended with 127",
        "feed: 1048576 bytes there and back",
        "stream: you said one, you said two, you said three",
        "copy: notes/letter.txt has ['hello', 'from the guest']",
        "stop: ",
    ];
    run(&home, &["sandbox.py", "busybox"], &said);
    home.expect_nothing_left();
}

#[test]
fn guest_to_host_example_when_run_then_a_guest_asks_feeds_streams_and_copies() {
    let home = Home::empty();
    let archive: &Path = &artifacts::test_python();
    home.expect(&["import", archive.to_str().expect("a path"), "python"]);
    let said = [
        "ask: from the host",
        "feed: the sum is 499500",
        "stream: tick0 tick1 tick2",
        "copy: letter.txt has 'hello, guest'",
    ];
    run(&home, &["guest_to_host.py", "host", "python"], &said);
    home.expect_nothing_left();
}
