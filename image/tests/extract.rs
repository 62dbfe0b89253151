//! Disks as folders: what is in them, what damage does, and how a store keeps them.
//!
//! That a folder is the tree which the layers make is seen with random layers, in `merge`.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bulkhead_image::archive::{ImportOptions, import};
use bulkhead_image::extract::{ROOT, extract};
use bulkhead_image::progress::Silent;
use bulkhead_image::store::{Owners, RemoveOptions};
use bulkhead_image::{Image, Store};
use support::archive::{Archive, Header, directory, file, header, link};
use support::disk::{build, checked};
use support::tree::see;

/// Some of everything.
fn everything() -> Vec<u8> {
    let attribute = ("SCHILY.xattr.user.a".to_owned(), b"value".to_vec());
    let program = Header {
        mode: 0o4755,
        uid: 7,
        gid: 8,
        pax: vec![attribute],
        ..file("bin/program")
    };
    let closed = Header {
        mode: 0o500,
        ..directory("closed")
    };
    Archive::default()
        .add(&directory("bin"), b"")
        .add(&program, b"a program")
        .add(&link("bin/other", b'1', "bin/program"), b"")
        .add(&closed, b"")
        .add(&file("closed/file"), &[7; 5000])
        .add(&link("closed/link", b'2', "/etc/passwd"), b"")
        .add(&header("fifo", b'6'), b"")
        .end()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn folder_when_extracted_then_files_are_what_they_were_and_links_lead_nowhere_else() {
    let disk = checked(&[everything()]);
    let folder = tempfile::tempdir().expect("a folder");
    extract(disk.as_file(), folder.path()).expect("extracted");
    let root = folder.path().join(ROOT);
    assert_eq!(
        fs::read_dir(folder.path()).expect("listed").count(),
        1,
        "nothing but the root is left"
    );
    let tree = see(&root);
    let at = |name: &str| &tree[name.as_bytes()];
    assert_eq!(at("closed").mode, 0o40_500);
    assert_eq!(at("closed/file").contents, [7; 5000]);
    assert_eq!(at("closed/link").contents, b"/etc/passwd");
    assert_eq!(at("fifo").mode, 0o10_644);
    assert_eq!(at("bin/program").mtime, (1_700_000_000, 0));
    let program = root.join("bin/program").metadata().expect("there");
    let other = root.join("bin/other").metadata().expect("there");
    assert_eq!((program.ino(), program.nlink()), (other.ino(), 2));
    if is_root() {
        assert_eq!((program.uid(), program.gid()), (7, 8));
        assert_eq!(program.mode() & 0o7777, 0o4755);
    } else {
        // It is not for others to be us.
        assert_eq!(program.mode() & 0o7777, 0o755);
    }
}

#[test]
fn folder_when_not_empty_then_nothing_in_it_is_replaced_or_followed() {
    let disk = checked(&[everything()]);
    let elsewhere = tempfile::tempdir().expect("a folder");
    for name in [ROOT, "links"] {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(name)).expect("link");
        let error = extract(disk.as_file(), folder.path()).expect_err("refused");
        assert!(error.to_string().starts_with("cannot make"), "{error}");
    }
    assert_eq!(fs::read_dir(elsewhere.path()).expect("listed").count(), 0);
}

#[test]
fn directories_when_too_many_in_one_another_then_refused_in_a_sentence() {
    let deep = Archive::default()
        .add(&file("d/".repeat(500) + "f"), b"")
        .end();
    let (disk, _) = build(&[deep]).expect("a disk");
    let folder = tempfile::tempdir().expect("a folder");
    let error = extract(disk.as_file(), folder.path()).expect_err("refused");
    let expected =
        "it has more than 400 directories in one another, which is too deep for a folder";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn disk_when_damaged_anywhere_then_a_folder_or_an_error_and_nothing_outside() {
    let disk = checked(&[everything()]);
    let len = disk.as_file().metadata().expect("its length").len();
    let place = tempfile::tempdir().expect("a folder");
    let mut refused = 0;
    // Every few bytes, one bit of each in turn.
    for (count, at) in (0..len).step_by(11).enumerate() {
        let mut byte = [0];
        disk.as_file().read_exact_at(&mut byte, at).expect("read");
        let damaged = byte[0] ^ 1 << (count % 8);
        disk.as_file()
            .write_all_at(&[damaged], at)
            .expect("written");
        let folder = place.path().join(count.to_string());
        fs::create_dir(&folder).expect("a folder");
        refused += usize::from(extract(disk.as_file(), &folder).is_err());
        fs::remove_dir_all(&folder).expect("removed");
        disk.as_file().write_all_at(&byte, at).expect("written");
    }
    assert!(refused > 0);
    assert_eq!(fs::read_dir(place.path()).expect("listed").count(), 0);
    let cut = tempfile::tempfile().expect("a file");
    assert!(extract(&cut, place.path()).is_err());
    disk.as_file().set_len(len - 1).expect("cut");
    assert!(extract(disk.as_file(), place.path()).is_err());
}

/// A store with an image of everything.
fn store() -> (tempfile::TempDir, Store, Image) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("a store");
    let options = ImportOptions {
        name: Some("everything".parse().expect("a name")),
        ..ImportOptions::default()
    };
    let tar = everything();
    let name = Path::new("everything.tar");
    let image = import(&store, &tar[..], name, &options, &Silent).expect("imported");
    (folder, store, image)
}

fn trees(store: &Store) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.root().join("trees"))
        .into_iter()
        .flatten();
    entries.map(|entry| entry.expect("listed").path()).collect()
}

#[test]
fn tree_when_many_want_it_at_once_then_it_is_made_once_and_nothing_else_is_left() {
    let (_folder, store, image) = store();
    let ours = Owners::of_this_process();
    assert_eq!(store.find_tree(&image, &ours), None);
    let made: Vec<PathBuf> = std::thread::scope(|scope| {
        let wanted = || store.tree(&image, &Silent).expect("a tree");
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(wanted)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|path| path.expect("a tree")).collect()
    });
    assert!(made.iter().all(|path| *path == made[0]), "{made:?}");
    assert_eq!(store.find_tree(&image, &ours).as_ref(), made.first());
    assert_eq!(trees(&store).len(), 1);
    assert_eq!(
        fs::read(made[0].join("bin/other")).expect("its files"),
        b"a program"
    );
    // It is of no use to others.
    let others = Owners::mapped("0 1000 1", "0 1000 1");
    assert_eq!(store.find_tree(&image, &others), None);
}

#[test]
fn tree_when_its_maker_was_killed_then_it_is_made_anew() {
    let (_folder, store, image) = store();
    let tree = store.tree(&image, &Silent).expect("a tree");
    let folder = tree.parent().expect("its folder");
    // As after a kill: half of it is there, and nobody has the lock.
    fs::rename(folder, folder.with_added_extension("partial")).expect("renamed");
    File::create(folder.with_added_extension("lock")).expect("a lock");
    assert_eq!(store.tree(&image, &Silent).expect("a tree"), tree);
    assert!(tree.join("bin/program").exists());
    assert_eq!(trees(&store).len(), 1);
}

#[test]
fn tree_when_its_image_goes_then_it_goes_and_while_a_container_has_it_it_stays() {
    let (_folder, store, image) = store();
    let tree = store.tree(&image, &Silent).expect("a tree");
    let used = || Ok(vec![image.manifest.digest]);
    store.collect_garbage(&used).expect("collected");
    let force = RemoveOptions { force: true };
    store.remove("everything", force, &used).expect("removed");
    assert!(tree.exists());
    assert_eq!(
        store.image_of(&image.manifest.digest).expect("there").id,
        image.id
    );
    let garbage = store
        .collect_garbage(&|| Ok(Vec::new()))
        .expect("collected");
    assert!(garbage.bytes > 0);
    assert_eq!(trees(&store), Vec::<PathBuf>::new());
    assert!(!store.has_dead_trees().expect("listed"));
}
