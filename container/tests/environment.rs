//! What the specification says of a container's mounts and its processes, as seen from inside. Run as root.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;

use common::*;

/// The optional fields of mounts, which tell how they spread: `shared`, `master`, `unbindable`, or nothing for private ones.
fn spreading(mountinfo: &str, point: &str) -> String {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(point))
        .unwrap_or_else(|| panic!("{point} is not in {mountinfo}"));
    let fields = line.split(' ').skip(6).take_while(|field| *field != "-");
    let names: Vec<&str> = fields
        .map(|field| field.split(':').next().unwrap())
        .collect();
    names.join(" ")
}

#[test]
fn root_when_its_propagation_is_asked_for_then_it_has_that() {
    let root = rootfs();
    let cases = [
        ("shared", "shared"),
        ("rshared", "shared"),
        ("private", ""),
        ("rprivate", ""),
        ("unbindable", "unbindable"),
        // Of a mount that was nobody's there is no master.
        ("slave", ""),
    ];
    for (wanted, seen) in cases {
        let mut spec = spec("cat /proc/self/mountinfo");
        spec.linux.as_mut().unwrap().rootfs_propagation = Some(wanted.into());
        let mountinfo = succeed(&spec, overlay(root.path()));
        assert_eq!(spreading(&mountinfo, "/"), seen, "{wanted}");
        let below = if wanted == "rshared" { "shared" } else { "" };
        assert_eq!(spreading(&mountinfo, "/proc"), below, "{wanted}");
    }
}

#[test]
fn mounts_when_their_propagation_is_asked_for_then_they_have_it() {
    let (root, source) = (rootfs(), tempfile::tempdir().unwrap());
    let mut spec = spec("cat /proc/self/mountinfo");
    let cases = [
        ("shared", "shared"),
        ("private", ""),
        ("slave", ""),
        ("unbindable", "unbindable"),
    ];
    for (wanted, _) in cases {
        let new = format!("/new/{wanted}");
        let bound = format!("/bound/{wanted}");
        // A filesystem's options mean nothing to a bind mount.
        let options = format!("nosuid,mode=755,size=4k,{wanted}");
        spec.mounts.push(mount(&new, "tmpfs", &options));
        let options = format!("bind,{options}");
        spec.mounts.push(bind(source.path(), &bound, &options));
    }
    let mountinfo = succeed(&spec, overlay(root.path()));
    for (wanted, seen) in cases {
        assert_eq!(spreading(&mountinfo, &format!("/new/{wanted}")), seen);
        let bound = spreading(&mountinfo, &format!("/bound/{wanted}"));
        // A slave has a master where its source is shared.
        assert!(
            bound == seen || (wanted, &bound[..]) == ("slave", "master"),
            "{wanted}: {bound}"
        );
    }
}

#[test]
fn mounts_when_one_lies_below_another_then_the_order_is_the_configurations() {
    let (root, source) = (rootfs(), tempfile::tempdir().unwrap());
    std::fs::write(source.path().join("file"), "bound\n").unwrap();
    let file = source.path().join("file");
    let mut spec = spec("cat /a/b/file; ls /c");
    spec.mounts.push(mount("/a", "tmpfs", "size=4k"));
    spec.mounts.push(bind(source.path(), "/a/b", "bind"));
    // What comes later hides what was there.
    spec.mounts.push(bind(&file, "/c/file", "bind"));
    spec.mounts.push(mount("/c", "tmpfs", "size=4k"));
    assert_eq!(succeed(&spec, overlay(root.path())), "bound\n");
}

#[test]
fn process_when_its_oom_score_is_asked_for_then_it_has_that_and_so_have_its_children() {
    let root = rootfs();
    let mut spec = spec("cat /proc/1/oom_score_adj; sh -c 'cat /proc/self/oom_score_adj'");
    spec.process.as_mut().unwrap().oom_score_adj = Some(500);
    assert_eq!(succeed(&spec, overlay(root.path())), "500\n500\n");
}

#[test]
fn path_when_masked_then_it_reads_as_empty_whatever_it_is() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let root = rootfs();
    let make = |name: &str, kind| {
        let path = root.path().join(name);
        mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), makedev(1, 8)).unwrap();
    };
    make("fifo", FileType::Fifo);
    make("device", FileType::CharacterDevice);
    let directory = root.path().join("directory");
    std::fs::create_dir_all(directory.join("below")).unwrap();
    for file in ["file", "directory/file", "directory/below/file"] {
        std::fs::write(root.path().join(file), "secret").unwrap();
    }
    let paths = [
        "/fifo",
        "/device",
        "/directory",
        "/file",
        "/directory/below",
        "/directory/file",
        "/directory/below/file",
    ];
    let mut spec = spec("cat /fifo /device /file; ls -A /directory");
    let linux = spec.linux.as_mut().unwrap();
    linux.masked_paths = paths.map(str::to_owned).to_vec();
    assert_eq!(succeed(&spec, overlay(root.path())), "");
    assert!(Path::new(&directory).join("below/file").exists());
}
