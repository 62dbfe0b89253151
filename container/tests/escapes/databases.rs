//! User databases and other files of an image that the runtime itself looks at.

use std::fs;
use std::os::unix::fs::FileExt;

use bulkhead_container::{NewFile, Rootfs};
use rustix::fs::{CWD, FileType, makedev, mknodat};

use super::*;

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, 0o666.into(), device).unwrap();
}

/// What stands in the place of a database, by name.
fn hostile(path: &Path, what: &str, outside: &Path) {
    let big = |text: &str| {
        let file = fs::File::create(path).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
    };
    match what {
        "a FIFO" => node(path, FileType::Fifo, 0),
        "/dev/zero" => node(path, FileType::CharacterDevice, makedev(1, 5)),
        "a terminal" => node(path, FileType::CharacterDevice, makedev(5, 0)),
        "the kernel's log" => node(path, FileType::CharacterDevice, makedev(1, 11)),
        "a directory" => fs::create_dir(path).unwrap(),
        "a link out" => symlink(outside, path).unwrap(),
        "a link up and out" => {
            let up = Path::new("../../../../../..").join(outside.strip_prefix("/").unwrap());
            symlink(up, path).unwrap();
        }
        "a link to itself" => symlink(path.file_name().unwrap(), path).unwrap(),
        "a descriptor" => symlink("/proc/self/fd/0", path).unwrap(),
        "memory" => symlink("/proc/self/mem", path).unwrap(),
        "the runtime's environment" => symlink("/proc/self/environ", path).unwrap(),
        "a line without an end" => big("alice:x:7:7"),
        "lines without an end" => {
            big("");
            let lines = "a:x:1:1::/:\n".repeat(1 << 20);
            fs::OpenOptions::new().write(true).open(path).unwrap();
            fs::write(path, lines.repeat(2)).unwrap();
        }
        "NULs" => fs::write(path, [0; 100_000]).unwrap(),
        other => panic!("{other}"),
    }
}

const KINDS: [&str; 14] = [
    "a FIFO",
    "/dev/zero",
    "a terminal",
    "the kernel's log",
    "a directory",
    "a link out",
    "a link up and out",
    "a link to itself",
    "a descriptor",
    "memory",
    "the runtime's environment",
    "a line without an end",
    "lines without an end",
    "NULs",
];

#[test]
fn passwd_when_hostile_then_nobody_is_found_and_nothing_hangs() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "alice:x:7:7::/secret:\n").unwrap();
    for what in KINDS {
        let root = rootfs();
        let passwd = root.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        hostile(&passwd, what, outside.path());
        // A number needs no entry, and so no database that can be read.
        let mut spec = spec("grep ^Uid /proc/self/status; echo $HOME");
        process(&mut spec).user.uid = 7;
        assert_eq!(
            succeed(&spec, overlay(root.path())),
            "Uid:\t7\t7\t7\t7\n/\n",
            "{what}"
        );
        process(&mut spec).user.username = Some("alice".into());
        let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
        assert!(error.contains("/etc/passwd"), "{what}: {error}");
    }
}

#[test]
fn group_when_hostile_then_nobody_is_found_and_nothing_hangs() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "secret:x:7:alice\n").unwrap();
    for what in KINDS {
        let root = rootfs();
        let group = root.path().join("etc/group");
        fs::remove_file(&group).unwrap();
        hostile(&group, what, outside.path());
        let mut spec = spec("grep ^Groups /proc/self/status");
        process(&mut spec).user.username = Some("alice:secret".into());
        let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
        assert!(error.contains("/etc/group"), "{what}: {error}");
        // Those that list the user: none, or an error, but none of the host's.
        process(&mut spec).user.username = Some("alice".into());
        if let Ok(output) = run(&spec, overlay(root.path())) {
            assert_eq!(output.stdout.trim(), "Groups:", "{what}");
        }
    }
}

/// To open a device can do things: to start a watchdog, to rewind a tape.
#[test]
fn database_when_a_device_then_not_even_opened() {
    for name in ["passwd", "group"] {
        let root = rootfs();
        let path = root.path().join("etc").join(name);
        fs::remove_file(&path).unwrap();
        // Nobody's number: to open it would be another error.
        node(&path, FileType::CharacterDevice, makedev(240, 7));
        let opened = fs::File::open(&path).unwrap_err();
        assert_eq!(opened.raw_os_error(), Some(libc::ENXIO));
        let mut spec = spec("true");
        process(&mut spec).user.username = Some("alice:adm".into());
        let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
        assert!(error.contains("Invalid argument"), "{name}: {error}");
    }
}

/// /etc/hosts and its like are written in place of whatever the image has there.
#[test]
fn new_file_when_the_image_has_something_hostile_there_then_it_is_replaced() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    for what in KINDS {
        let root = rootfs();
        hostile(&root.path().join("etc/hosts"), what, outside.path());
        let Rootfs::Overlay { lower, upper, .. } = overlay(root.path()) else {
            panic!("an overlay");
        };
        let rootfs = Rootfs::Overlay {
            lower,
            upper,
            files: vec![NewFile {
                path: "/etc/hosts".into(),
                data: b"ours\n".to_vec(),
            }],
            devices: true,
        };
        let read = spec("cat /etc/hosts; stat -c '%F %u %a' /etc/hosts");
        match run(&read, rootfs) {
            Ok(output) => assert_eq!(output.stdout, "ours\nregular file 0 644\n", "{what}"),
            Err(error) => {
                assert_eq!(what, "a directory", "{error}");
                assert!(error.to_string().contains("/etc/hosts"), "{error}");
            }
        }
        assert_eq!(fs::read(outside.path()).unwrap(), b"", "{what}");
    }
}

/// What the runtime mounts on, opens or hides, where the image has put something else.
#[test]
fn place_of_a_mount_when_the_image_has_something_hostile_there_then_nothing_outside_is_touched() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "the host's\n").unwrap();
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "the volume's\n").unwrap();
    for what in KINDS {
        for place in ["dev", "sys", "home", "tmp/file"] {
            let root = rootfs();
            let path = root.path().join(place);
            let _ = fs::remove_dir(&path);
            hostile(&path, what, outside.path());
            let mut spec =
                spec("cat /home/file /tmp/file; echo > /home/new; echo changed > /tmp/file; true");
            confine(&mut spec);
            spec.mounts.push(bind(volume.path(), "/home", "rbind,ro"));
            spec.mounts
                .push(bind(&volume.path().join("file"), "/tmp/file", "bind,ro"));
            let linux = spec.linux.as_mut().unwrap();
            linux.masked_paths.push("/tmp/hidden".into());
            process(&mut spec).cwd = "/home".into();
            // It may fail, with a sentence.
            if let Ok(output) = run(&spec, overlay(root.path())) {
                assert!(
                    !output.stdout.contains("the host's"),
                    "{what} at {place}: {output:?}"
                );
            }
            let names = |path: &Path| fs::read_dir(path).unwrap().count();
            assert_eq!(
                (names(outside.path()), names(volume.path())),
                (1, 1),
                "{what} at {place}"
            );
        }
    }
    assert_eq!(
        fs::read(outside.path().join("file")).unwrap(),
        b"the host's\n"
    );
    assert_eq!(
        fs::read(volume.path().join("file")).unwrap(),
        b"the volume's\n"
    );
}
