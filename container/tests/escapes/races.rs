//! Parts of paths that are swapped for links while containers are created: another container that shares the root filesystem, or a
//! volume of it, would do that.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bulkhead_container::spec::{Device, DeviceKind};
use bulkhead_container::{Lower, NewFile, Rootfs, Upper};
use rustix::fs::{AtFlags, RenameFlags, renameat_with, symlinkat, unlinkat};

use super::*;

/// What there is in a directory, to the last file.
fn listing(directory: &Path) -> Vec<(PathBuf, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let (path, data) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
            found.push((path.clone(), data.ino() ^ data.len()));
            if data.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The directories whose names are exchanged with links.
const SWAPPED: [&str; 6] = ["vol", "vol/a", "work", "home", "devices", "etc"];

struct Race {
    root: tempfile::TempDir,
    outside: tempfile::TempDir,
}

impl Race {
    fn new() -> Race {
        let (root, outside) = (rootfs(), tempfile::tempdir().unwrap());
        for name in SWAPPED {
            fs::create_dir_all(root.path().join(name)).unwrap();
            // Where the links lead to, there is what they are followed by.
            fs::create_dir_all(outside.path().join("a")).unwrap();
        }
        for name in ["home/secret", "home/fixed"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        for name in ["secret", "fixed"] {
            fs::create_dir(outside.path().join(name)).unwrap();
            fs::write(outside.path().join(name).join("file"), "the host's").unwrap();
        }
        fs::write(outside.path().join("passwd"), "alice:x:77:77::/evil:\n").unwrap();
        Race { root, outside }
    }

    /// Links that lead out, if anything follows them outside of the container's root.
    fn links(&self) -> Vec<PathBuf> {
        let outside = self.outside.path();
        let from_root = outside.strip_prefix("/").unwrap();
        let host = fs::File::open("/").unwrap();
        let mut links = vec![
            outside.to_owned(),
            Path::new("../../../../../../..").join(from_root),
            Path::new("/proc/self/root").join(from_root),
            Path::new("/proc/1/root").join(from_root),
        ];
        let numbers = (3..13).chain([std::os::fd::AsRawFd::as_raw_fd(&host)]);
        links.extend(numbers.map(|n| format!("/proc/self/fd/{n}/{}", from_root.display()).into()));
        std::mem::forget(host);
        links
    }

    /// Runs something while names are swapped, until it has had enough.
    fn run(&self, mut victim: impl FnMut() -> bool) {
        let (done, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
        let links = self.links();
        // By descriptors, lest a link that is there at this moment leads the attacker himself out.
        let names = SWAPPED.map(|name| {
            let path = self.root.path().join(name);
            let above = fs::File::open(path.parent().unwrap()).unwrap();
            (above, path.file_name().unwrap().to_owned())
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // One at a time, so that some of the victims find everything in its place.
                for (link, (above, name)) in links.iter().cycle().zip(names.iter().cycle()) {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let other = Path::new(name).with_extension("swapped");
                    symlinkat(link, above, &other).unwrap();
                    for _ in 0..2 {
                        renameat_with(above, name, above, &other, RenameFlags::EXCHANGE).unwrap();
                        swaps.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                    unlinkat(above, &other, AtFlags::empty()).unwrap();
                }
            });
            while victim() {}
            done.store(true, Ordering::Relaxed);
        });
        assert!(swaps.into_inner() > 0);
    }
}

/// All that the runtime makes, mounts, opens and hides below the names that are swapped.
fn spec_of_victim(volume: &Path) -> Spec {
    let mut spec = spec(
        "echo > /vol/a/b/made; echo > /work/x/made; echo > /home/secret/made; echo > /home/fixed/made; true",
    );
    confine(&mut spec);
    spec.mounts.push(bind(volume, "/vol/a/b", "rbind"));
    spec.mounts
        .push(bind(&volume.join("file"), "/vol/a/file", "bind"));
    spec.mounts.push(mount("/work/new/tmp", "tmpfs", "size=1m"));
    spec.mounts
        .push(mount("/home/new", "tmpfs", "size=1m,tmpcopyup"));
    let linux = spec.linux.as_mut().unwrap();
    linux.masked_paths.push("/home/secret".into());
    linux.readonly_paths.push("/home/fixed".into());
    linux.devices = vec![Device {
        kind: DeviceKind::Character,
        path: "/devices/made/null".into(),
        major: Some(1),
        minor: Some(3),
        file_mode: None,
        uid: Some(7),
        gid: None,
    }];
    process(&mut spec).cwd = "/work/x/y".into();
    process(&mut spec).user.username = Some("alice".into());
    spec
}

fn mounts_of_the_host() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

#[test]
fn names_when_swapped_while_containers_are_created_then_nothing_outside_is_touched() {
    let race = Race::new();
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "").unwrap();
    let before = (listing(race.outside.path()), mounts_of_the_host());
    let spec = spec_of_victim(volume.path());
    let (mut rounds, mut made) = (0, 0);
    race.run(|| {
        let rootfs = match rounds % 2 {
            0 => Rootfs::Directory(race.root.path().into()),
            _ => Rootfs::Overlay {
                lower: Lower::Directory(race.root.path().into()),
                upper: Upper::Tmpfs { size_bytes: None },
                files: vec![NewFile {
                    path: "/etc/hosts".into(),
                    data: b"made\n".to_vec(),
                }],
                devices: true,
            },
        };
        if let Ok(output) = run(&spec, rootfs) {
            made += usize::from(output.exit.code == 0);
        }
        rounds += 1;
        rounds < 300
    });
    assert_eq!((listing(race.outside.path()), mounts_of_the_host()), before);
    assert!(made > 0, "not one of {rounds} containers was made");
}

/// What the test is worth: a runtime that works by paths, as runc once did.
#[test]
fn names_when_swapped_while_somebody_works_by_paths_then_he_is_led_out() {
    let race = Race::new();
    let before = listing(race.outside.path());
    race.run(|| {
        // A check, and then the use.
        let target = race.root.path().join("vol/a/made");
        let inside = target.parent().unwrap().canonicalize();
        if inside.is_ok_and(|path| path.starts_with(race.root.path())) {
            let _ = fs::create_dir(&target);
        }
        listing(race.outside.path()) == before
    });
}

/// A program that goes on swapping in its own container while others are executed there.
#[test]
fn directory_of_an_exec_when_swapped_from_inside_then_the_program_stays_inside() {
    let swap = r#"
        $| = 1; mkdir "/tmp/d"; mkdir "/tmp/d/usr"; symlink("/proc/self/fd/" . ($_ % 12), "/tmp/l$_") for 0 .. 11;
        symlink("/proc/self/root", "/tmp/l12"); print "ready\n"; my $n = 0;
        until (-e "/tmp/stop") {
            my ($d, $l) = ("/tmp/d\0", "/tmp/l" . $n++ % 13 . "\0");
            syscall(316, -100, $d, -100, $l, 2); syscall(316, -100, $d, -100, $l, 2);
        }"#;
    let root = armed_rootfs();
    let mut spec = armed("");
    perl(&mut spec, swap);
    let (mut container, mut pipes) = create(&spec, overlay(root.path())).unwrap();
    container.start().unwrap();
    assert_eq!(read_line(&mut pipes), "ready");
    let mark = tempfile::tempdir().unwrap();
    // From a directory of the host the file would be seen by its way up.
    let look = format!(
        "ls ../../../../../..{} ../..{0} 2>/dev/null; true",
        mark.path().display()
    );
    fs::write(mark.path().join("seen"), "").unwrap();
    let mut program = crate::spec(&look).process.unwrap();
    program.cwd = "/tmp/d/usr".into();
    for _ in 0..200 {
        if let Ok(output) = exec(&container, &program) {
            assert_eq!(output.stdout, "");
        }
    }
    let stop = crate::spec("touch /tmp/stop").process.unwrap();
    exec(&container, &stop).unwrap();
    finish(container.pid(), pipes);
}
