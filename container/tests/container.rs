//! Containers on this machine's kernel. Run as root.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;

use bulkhead_container::spec::Root;
use bulkhead_container::{Error, Lower, NewFile, Rootfs, Upper};
use common::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};

#[test]
fn file_when_given_then_it_is_there_whatever_the_image_has_and_even_read_only() {
    let root = rootfs();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let in_image = |name: &str| root.path().join("etc").join(name);
    fs::write(
        in_image("plain"),
        "of the image, and longer than what is given",
    )
    .unwrap();
    std::os::unix::fs::symlink(outside.path(), in_image("link")).unwrap();
    mknodat(
        CWD,
        in_image("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let paths = [
        "/etc/plain",
        "/etc/link",
        "/etc/fifo",
        "/etc/new",
        "/none/new",
    ];
    let file = |path: &&str| NewFile {
        path: (*path).into(),
        data: format!("{path}\n").into_bytes(),
    };
    let with = |paths: &[&str]| {
        let mut rootfs = overlay(root.path());
        if let Rootfs::Overlay { files, .. } = &mut rootfs {
            files.extend(paths.iter().map(file));
        }
        rootfs
    };
    let command = format!(
        "stat -c '%F %a %u' {0}; cat {0}; > /etc/new",
        paths.join(" ")
    );
    let mut spec = spec(&command);
    spec.root = Some(Root {
        path: "unused".into(),
        readonly: true,
    });
    let output = run(&spec, with(&paths)).unwrap();
    let expected = "regular file 644 0\n".repeat(5) + &paths.join("\n") + "\n";
    assert_eq!(output.stdout, expected);
    assert!(
        output.stderr.contains("Read-only file system"),
        "{}",
        output.stderr
    );
    assert!(fs::read(outside.path()).unwrap().is_empty());
    for (path, part) in [
        ("/etc", "write"),
        ("/a/b/c", "write"),
        ("relative", "rootfs.files"),
    ] {
        let error = run(&spec, with(&[path])).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn directory_of_a_given_file_then_it_is_as_the_image_has_it_with_all_that_is_in_it() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let root = rootfs();
    let path = |name: &str| root.path().join(name);
    for name in ["plain", "noted"] {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("other"), "").unwrap();
        chown(path(name), Some(7), Some(8)).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o2775)).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path("noted"), "user.note", b"kept", flags).unwrap();
    symlink("plain", path("linked")).unwrap();
    let looks = "for d in plain noted linked; do stat -c '%a %u %g %F' $d/; ls $d; cat $d/new; done; readlink linked";
    let each = |d: &str| format!("2775 7 8 directory\nnew\nother\n/{d}/new\n");
    let (plain, noted) = (each("plain"), each("noted"));
    // With and without one that only the overlay can write before those that are placed below it.
    for order in [["plain", "noted"], ["noted", "plain"]] {
        let mut rootfs = overlay(root.path());
        if let Rootfs::Overlay { files, .. } = &mut rootfs {
            files.extend(order.map(|name| NewFile {
                path: format!("/{name}/new"),
                data: format!("/{name}/new\n").into_bytes(),
            }));
        }
        let output = run(&spec(looks), rootfs).unwrap();
        assert_eq!(output.stdout, format!("{plain}{noted}{plain}plain\n"));
    }
    let mut rootfs = overlay(root.path());
    if let Rootfs::Overlay { files, .. } = &mut rootfs {
        let data = b"/linked/new\n".to_vec();
        let path = "/linked/new".into();
        files.push(NewFile { path, data });
    }
    let output = run(&spec("cat plain/new"), rootfs).unwrap();
    assert_eq!(output.stdout, "/linked/new\n");
}

#[test]
fn program_when_run_then_its_output_and_code() {
    let root = rootfs();
    let output = run(
        &spec("echo out; echo err >&2; exit 3"),
        overlay(root.path()),
    )
    .unwrap();
    assert_eq!(
        (
            output.stdout.as_str(),
            output.stderr.as_str(),
            output.exit.code
        ),
        ("out\n", "err\n", 3)
    );
}

#[test]
fn container_when_run_then_its_own_namespaces() {
    let text = sh(
        "echo $$; hostname; ls /proc > /tmp/list; grep -c '^[0-9]' /tmp/list; cat /proc/net/dev | grep -c :; pwd; echo $HOME",
    );
    // The shell and ls.
    assert_eq!(text, "1\nbox\n2\n1\n/\n/root\n");
}

#[test]
fn directory_when_root_then_changes_stay_in_it() {
    let root = rootfs();
    succeed(
        &spec("echo hi > /tmp/file"),
        Rootfs::Directory(root.path().into()),
    );
    assert_eq!(
        std::fs::read_to_string(root.path().join("tmp/file")).unwrap(),
        "hi\n"
    );
}

#[test]
fn overlay_when_changed_then_the_image_is_not() {
    let root = rootfs();
    succeed(
        &spec("echo hi > /tmp/file && cat /tmp/file > /dev/null"),
        overlay(root.path()),
    );
    assert!(!root.path().join("tmp/file").exists());
}

#[test]
fn program_when_missing_or_no_program_then_127_or_126() {
    let root = rootfs();
    let mut missing = spec("");
    missing.process.as_mut().unwrap().args = vec!["nothing".into()];
    let error = run(&missing, overlay(root.path())).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert_eq!(error.exit_code(), 127);
    missing.process.as_mut().unwrap().args = vec!["/etc/passwd".into()];
    let error = run(&missing, overlay(root.path())).unwrap_err();
    assert_eq!(
        (error.exit_code(), error.to_string().contains("/etc/passwd")),
        (126, true),
        "{error}"
    );
}

#[test]
fn program_when_executed_in_a_container_then_it_is_in_there() {
    let root = rootfs();
    let (mut container, pipes) =
        create(&spec("read line; echo $line"), overlay(root.path())).unwrap();
    container.start().unwrap();
    let process = spec("hostname; ls /proc | grep -c '^[0-9]'; echo $HOME")
        .process
        .unwrap();
    let (stdio, exec_pipes) = bulkhead_container::Stdio::pipes().unwrap();
    let exec = container
        .exec(&process, stdio)
        .unwrap_or_else(|e| panic!("{e}"));
    let output = finish(exec.pid(), exec_pipes);
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("box\n4\n/root\n", "")
    );
    container.kill(9).unwrap();
    assert_eq!(finish(container.pid(), pipes).exit.signal, Some(9));
}

#[test]
fn container_when_running_then_what_was_listed_is_mounted_and_nothing_of_the_host() {
    let root = rootfs();
    let spec = spec("read line");
    let listed = spec.mounts.iter().map(|mount| {
        let source = mount.source.as_deref().unwrap();
        (mount.destination.as_str(), source)
    });
    for rootfs in [overlay(root.path()), Rootfs::Directory(root.path().into())] {
        let directory = matches!(rootfs, Rootfs::Directory(_));
        let (mut container, pipes) = create(&spec, rootfs).unwrap();
        container.start().unwrap();
        let mounts = format!("/proc/{}/mountinfo", container.pid().as_raw_pid());
        let mounts = std::fs::read_to_string(mounts).unwrap();
        let seen = mounts.lines().map(|line| {
            let (place, filesystem) = line.split_once(" - ").unwrap();
            let point = place.split(' ').nth(4).unwrap();
            (point, filesystem.split(' ').nth(1).unwrap())
        });
        let below_root: Vec<_> = seen.skip(1).collect();
        assert_eq!(below_root, listed.clone().collect::<Vec<_>>(), "{mounts}");
        let kind = mounts.lines().next().unwrap();
        assert_eq!(kind.contains(" - overlay overlay "), !directory, "{kind}");
        assert_eq!(finish(container.pid(), pipes).exit.code, 1);
    }
}

#[test]
fn image_when_erofs_then_changes_go_to_the_upper_layer_and_stay() {
    let root = rootfs();
    std::fs::set_permissions(
        root.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    let (image, upper) = (
        tempfile::NamedTempFile::new().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let mut mkfs = std::process::Command::new("mkfs.erofs");
    let made = mkfs
        .arg("--quiet")
        .args([image.path(), root.path()])
        .status();
    assert!(made.expect("mkfs.erofs; run scripts/setup").success());
    let rootfs = || Rootfs::Overlay {
        lower: Lower::ErofsFile(image.path().into()),
        upper: Upper::Directory(upper.path().into()),
        files: Vec::new(),
        devices: true,
    };
    succeed(&spec("echo hi > /tmp/file; rm /etc/group"), rootfs());
    let text = succeed(&spec("cat /tmp/file; ls /etc; stat -c %a /"), rootfs());
    assert_eq!(text, "hi\npasswd\n711\n");
    assert!(upper.path().join("upper/tmp/file").exists());
}
