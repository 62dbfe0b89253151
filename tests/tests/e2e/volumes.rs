//! Folders, files and volumes of the host in containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use bulkhead_tests::home::Home;
use bulkhead_tests::process;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A folder of the host, and a place in it that no container is given.
fn host() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("bulkhead-host-")
        .tempdir()
        .expect("make a folder");
    fs::create_dir(dir.path().join("shared")).expect("make a folder");
    fs::write(dir.path().join("secret"), "of the host\n").expect("write");
    dir
}

/// What a container with the volume `conf` in place of its `/etc` says.
fn with_conf(home: &Home, script: &str) -> String {
    let volume = ["-v", "conf:/etc"];
    home.expect(
        &[
            &["run", "--rm"],
            &volume[..],
            &["busybox", "sh", "-c", script],
        ]
        .concat(),
    )
}

/// Kills a process, which may have ended with another.
fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process"), Signal::KILL);
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path").to_owned()
}

#[test]
fn folder_when_written_to_then_the_host_sees_it_and_a_read_only_one_is_not() {
    let home = Home::with_busybox();
    let host = host();
    let shared = host.path().join("shared");
    fs::write(shared.join("given"), "from the host\n").expect("write");
    fs::create_dir(shared.join("sub")).expect("make a folder");
    let again = host.path().join("again");
    fs::create_dir(&again).expect("make a folder");
    fs::write(again.join("given"), "once more\n").expect("write");
    fs::write(host.path().join("file"), "alone\n").expect("write");

    let script = "cat /data/given /ro/given /etc/alone; \
        echo made >/data/sub/made; mkdir /data/dir; chmod 751 /data/dir; \
        echo more >>/data/given; \
        for f in /ro/given /ro/new /etc/alone; do (echo x >$f) 2>/dev/null && echo wrote $f; done; \
        chmod 777 /ro/given 2>/dev/null && echo changed; \
        ls /etc/ | grep -c secret; ls -A /new";
    let (stdout, _) = home.expect_code(
        0,
        &[
            "run",
            "--rm",
            "-v",
            &format!("{}:/data", text(&shared)),
            "--mount",
            &format!("type=bind,src={},dst=/ro,readonly", text(&again)),
            "-v",
            &format!("{}/file:/etc/alone:ro", text(host.path())),
            "-v",
            &format!("{}/new:/new", text(host.path())),
            "busybox",
            "sh",
            "-c",
            script,
        ],
    );
    assert_eq!(stdout, "from the host\nonce more\nalone\n0\n");
    let read = |path: &str| fs::read_to_string(shared.join(path)).expect(path);
    assert_eq!(read("given"), "from the host\nmore\n");
    assert_eq!(read("sub/made"), "made\n");
    let made = fs::metadata(shared.join("dir")).expect("dir");
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o751, 0));
    assert!(host.path().join("new").is_dir(), "made for --volume");
    home.expect_nothing_left();
}

#[test]
fn hostile_container_when_it_follows_links_and_paths_then_it_stays_inside() {
    let home = Home::with_busybox();
    let host = host();
    let shared = host.path().join("shared");
    fs::write(host.path().join("file"), "alone\n").expect("write");
    symlink("../secret", shared.join("near")).expect("link");
    symlink(host.path().join("secret"), shared.join("far")).expect("link");
    symlink("/etc/hostname", shared.join("absolute")).expect("link");
    let script = "cat /data/near /data/far 2>/dev/null; cat /data/../secret 2>/dev/null; \
        ln -s / /data/root; cat /data/root/secret /data/root/../secret 2>/dev/null; \
        mkdir /all; mount -t virtiofs host /all; \
        ls -R /all /data | grep -c secret; \
        for f in /all/1 /all/../1 /alone; do echo x >$f; done";
    // As root with all capabilities, and no filter: as near to a hostile kernel as a program comes.
    let stdout = home.expect(&[
        "run",
        "--rm",
        "--cap-add",
        "ALL",
        "--security-opt",
        "seccomp=unconfined",
        "-v",
        &format!("{}:/data", text(&shared)),
        "-v",
        &format!("{}/file:/alone:ro", text(host.path())),
        "busybox",
        "sh",
        "-c",
        &format!("({script}) 2>/dev/null; true"),
    ]);
    assert!(!stdout.contains("of the host"), "{stdout}");
    assert_eq!(stdout, "0\n");
    assert_eq!(
        fs::read_to_string(host.path().join("file")).expect("file"),
        "alone\n"
    );
    // What it made is a link, and leads nowhere on the host that was not there before.
    assert!(
        fs::symlink_metadata(shared.join("root"))
            .expect("root")
            .is_symlink()
    );
    home.expect_nothing_left();
}

#[test]
fn volume_when_used_again_then_what_was_written_is_there_and_it_began_as_the_image() {
    let home = Home::with_busybox();
    let first = "ls -A /etc; echo kept >/etc/kept";
    let second = "cat /etc/kept; grep -c root /etc/passwd; echo x >/etc/kept";
    let listing = with_conf(&home, first);
    assert!(listing.contains("passwd"), "{listing}");
    let (stdout, _) = home.expect_code(
        1,
        &[
            "run",
            "--name",
            "second",
            "-v",
            "conf:/etc:ro",
            "busybox",
            "sh",
            "-c",
            second,
        ],
    );
    assert_eq!(stdout, "kept\n1\n");
    let mounts = home.inspect("second", "json .Mounts");
    let mounts: serde_json::Value = serde_json::from_str(&mounts).expect("JSON");
    let mount = &mounts[0];
    assert_eq!(
        (&mount["Type"], &mount["Name"], &mount["Destination"]),
        (&"volume".into(), &"conf".into(), &"/etc".into())
    );
    assert_eq!(
        (&mount["RW"], &mount["Mode"]),
        (&false.into(), &"ro".into())
    );
    home.expect(&["rm", "second"]);
    home.expect_nothing_left();
}

/// Runs a container where there is no file server.
fn run_without_server(home: &Home, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = home
        .command(&[&["run", "--rm"], arguments].concat())
        .env("BULKHEAD_VIRTIOFSD", "none")
        .output()
        .expect("run bulkhead");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), stdout, stderr)
}

#[test]
fn folder_when_there_is_no_file_server_then_copied_to_read_and_refused_to_write() {
    let home = Home::with_busybox();
    let host = host();
    let shared = host.path().join("shared");
    fs::create_dir(shared.join("sub")).expect("make a folder");
    fs::write(shared.join("sub/given"), "from the host\n").expect("write");
    symlink("sub/given", shared.join("link")).expect("link");
    symlink("../secret", shared.join("out")).expect("link");
    fs::write(host.path().join("file"), "alone\n").expect("write");
    let folder = format!("{}:/data", text(&shared));
    let (code, stdout, stderr) = run_without_server(
        &home,
        &[
            "-v",
            &format!("{folder}:ro"),
            "-v",
            &format!("{}/file:/etc/alone:ro", text(host.path())),
            "busybox",
            "sh",
            "-c",
            "cat /data/link /etc/alone; cat /data/out; ls -A /data; (echo x >/data/x) && echo wrote",
        ],
    );
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stdout, "from the host\nalone\nlink\nout\nsub\n", "{stderr}");

    let (code, _, stderr) = run_without_server(&home, &["-v", &folder, "busybox", "true"]);
    assert_eq!(code, Some(125), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("virtiofsd"), "{stderr}");
    home.expect_nothing_left();
}

#[test]
fn volume_when_there_is_no_file_server_then_a_disk_that_stays_one() {
    let home = Home::with_busybox();
    let sh = |options: &[&str], script: &str| {
        let arguments = [options, &["busybox", "sh", "-c", script]].concat();
        run_without_server(&home, &arguments)
    };
    let first = sh(&["-v", "conf:/etc"], "ls -A /etc; echo kept >/etc/kept");
    assert_eq!(first.0, Some(0), "{first:?}");
    assert!(first.1.contains("passwd"), "{first:?}");
    assert!(home.root().join("volumes/conf/disk.ext4").is_file());
    // With a file server about, it is a disk all the same.
    let second = "cat /etc/kept; echo more >>/etc/kept; grep -c root /etc/passwd";
    let stdout = with_conf(&home, second);
    assert_eq!(stdout, "kept\n1\n");
    let third = sh(&["-v", "conf:/etc:ro"], "cat /etc/kept; echo x >/etc/kept");
    assert_eq!((third.0, &*third.1), (Some(1), "kept\nmore\n"), "{third:?}");
    home.expect_nothing_left();
}

#[test]
fn source_when_it_cannot_be_had_then_one_sentence_and_no_sandbox() {
    let home = Home::with_busybox();
    let host = host();
    let missing = format!("type=bind,src={}/missing,dst=/x", text(host.path()));
    let same = format!("{}:/x", text(host.path()));
    for (arguments, word) in [
        (&["--mount", &missing][..], "does not exist"),
        (&["-v", "a/../b c:/x:nonsense"], "nonsense"),
        (&["-v", "no!name:/x"], "no!name"),
        (&["-v", &same, "-v", &same], "/x"),
    ] {
        let (_, stderr) =
            home.expect_code(125, &[&["run", "--rm"], arguments, &["busybox"]].concat());
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
    }
    assert!(!host.path().join("missing").exists());
    home.expect_nothing_left();
}

#[test]
fn file_server_when_killed_then_the_container_ends_and_says_why_and_else_it_ends_with_it() {
    let home = Home::with_busybox();
    let host = tempfile::tempdir().expect("make a folder");
    let volume = format!("{}:/data", host.path().to_str().expect("a path"));
    let run = ["run", "-d", "--name", "box", "-v", &volume, "busybox"];
    home.expect(&[&run[..], &["sleep", "100000"]].concat());
    let folder = home.root().join("run/sandboxes");
    // Nothing else is told where its sandbox is.
    let servers = || process::naming(&folder.display().to_string());
    assert!(!servers().is_empty(), "no file server");
    for pid in servers() {
        kill(pid);
    }
    home.wait_for("box", ".State.Status", "exited");
    assert_eq!(home.inspect("box", ".State.ExitCode"), "137");
    let error = home.inspect("box", ".State.Error");
    assert!(error.contains("file server"), "{error}");

    home.expect(&["start", "box"]);
    assert!(!servers().is_empty(), "no file server");
    let monitor = home.inspect("box", ".State.MonitorPid");
    kill(monitor.parse().expect("a process"));
    home.wait_for("box", ".State.Status", "exited");
    home.expect(&["rm", "box"]);
    home.expect_nothing_left();
    // The folder is the host's, and none of this was its doing.
    assert!(host.path().is_dir());
}
