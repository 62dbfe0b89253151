//! Archives that GNU tar makes, in each of its formats: the disk is the tree that was packed.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use support::disk::{can_mount, checked, mounted, run};
use support::tree::{Seen, see};

/// A tree with what formats differ in.
fn plant(root: &Path) {
    let long = root.join("long/".repeat(30)).join("n".repeat(200));
    fs::create_dir_all(long.parent().expect("it has one")).expect("directories");
    fs::write(&long, "deep").expect("a file");
    symlink("target/".repeat(30), root.join("symlink")).expect("a link");
    fs::hard_link(&long, root.join("hard")).expect("a link");
    fs::write(root.join("small"), vec![b's'; 5000]).expect("a file");
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    // More pieces than a header and one more block have room for, the last one a hole.
    let sparse = File::create(root.join("sparse")).expect("a file");
    for piece in 0..40 {
        sparse
            .write_all_at(&[piece + 1; 3000], u64::from(piece) << 16)
            .expect("room");
    }
    sparse.set_len(10 << 20).expect("a hole");
    File::create(root.join("hole"))
        .expect("a file")
        .set_len(5 << 20)
        .expect("a hole");
    let set = |path: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(root.join(path), name, value, flags).is_ok()
    };
    let _ = set("small", "user.test", b"\0value\n");
    if can_mount() {
        for (path, uid) in [("sparse", 70_000), ("hole", 3_000_000)] {
            std::os::unix::fs::chown(root.join(path), Some(uid), Some(uid + 1)).expect("chown");
        }
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(set("small", "security.capability", &capability));
    }
}

fn packed_and_mounted(arguments: &[&str], change: impl Fn(&mut BTreeMap<Vec<u8>, Seen>)) {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fs::create_dir(&root).expect("a folder");
    plant(&root);
    let archive = folder.path().join("archive");
    run(Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*"])
        .args(arguments)
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .arg("."));
    let disk = checked(&[fs::read(&archive).expect("the archive")]);
    // Holes are holes on the disk as well.
    if arguments.contains(&"--sparse") {
        assert!(disk.as_file().metadata().expect("its length").len() < 3 << 20);
    }
    if !can_mount() {
        return;
    }
    let mut expected = see(&root);
    change(&mut expected);
    let seen = mounted(disk.path(), see);
    for (path, seen) in &seen {
        let expected = &expected[path];
        assert!(seen == expected, "{}", String::from_utf8_lossy(path));
    }
    assert_eq!(seen.len(), expected.len());
}

#[test]
fn archive_when_in_pax_format_then_is_the_tree() {
    packed_and_mounted(&["--format=posix"], |_| {});
}

#[test]
fn archive_when_sparse_in_each_version_then_is_the_tree() {
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        packed_and_mounted(&["--format=posix", "--sparse", &version], |_| {});
    }
}

#[test]
fn archive_when_in_gnu_format_then_is_the_tree() {
    // GNU's format has whole seconds, and no extended attributes.
    let plain = |tree: &mut BTreeMap<Vec<u8>, Seen>| {
        for seen in tree.values_mut() {
            seen.mtime.1 = 0;
            seen.xattrs.clear();
        }
    };
    let folder = ["--format=gnu", "--no-xattrs"];
    packed_and_mounted(&folder, plain);
    packed_and_mounted(&[folder[0], folder[1], "--sparse"], plain);
}
