//! What a user can get wrong: always one clear sentence and exit code 125, nothing left behind.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use bulkhead_tests::vm::Setup;
use bulkhead_tests::{artifacts, net};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;

/// The exit code for everything that is wrong before the guest runs.
const CANNOT_START: i32 = 125;

#[test]
fn vmm_when_its_document_is_wrong_then_says_so_in_one_sentence() {
    let huge = 10 << 20;
    for (what, field, value) in [
        ("no CPU", "cpus", json!(0)),
        ("1000 CPUs", "cpus", json!(1000)),
        ("1 MiB of memory", "memory_mib", json!(1)),
        ("10 TiB of memory", "memory_mib", json!(huge)),
        ("memory that overflows", "memory_mib", json!(u64::MAX)),
        ("negative memory", "memory_mib", json!(-1)),
        ("a misspelt field", "memroy_mib", json!(128)),
        ("a reserved CID", "vsock", json!({"cid": 2, "path": "x"})),
        ("a console that is not one", "console", json!("teletype")),
    ] {
        refused(what, Setup::bare().with(field, value));
    }
}

#[test]
fn vmm_when_a_file_is_wrong_then_names_it_in_one_sentence() {
    let kernel = fs::read(artifacts::kernel()).expect("read the kernel");
    let with_kernel = |name: &str, bytes: &[u8]| {
        let setup = Setup::bare();
        let path = setup.path(name);
        fs::write(&path, bytes).expect("write");
        setup.kernel(&path)
    };
    let setup = Setup::bare();
    let missing = setup.path("no-such-kernel");
    named("no kernel", "no-such-kernel", setup.kernel(&missing));
    for (what, bytes) in [
        ("an empty kernel", &b""[..]),
        (
            "a text as kernel",
            b"#!/bin/sh\necho this is not a kernel\n",
        ),
        ("a kernel cut in its header", &kernel[..40]),
        ("a kernel cut in half", &kernel[..kernel.len() / 2]),
    ] {
        named(what, "odd-kernel", with_kernel("odd-kernel", bytes));
    }
    let setup = Setup::bare();
    let dir = setup.path("folder");
    fs::create_dir(&dir).expect("folder");
    named("a folder as kernel", "folder", setup.kernel(&dir));

    let setup = Setup::bare();
    let path = setup.path("no-such-initrd");
    named("no initrd", "no-such-initrd", setup.initrd(&path));
    let setup = Setup::bare();
    let path = setup.path("big-initrd");
    sparse(&path, 1 << 30);
    named(
        "an initrd bigger than memory",
        "big-initrd",
        setup.initrd(&path),
    );

    let setup = Setup::bare();
    let path = setup.path("no-such-disk");
    named("no disk", "no-such-disk", setup.disk(json!({"path": path})));
    for size in [0, 100] {
        let setup = Setup::bare();
        let path = setup.path("small-disk");
        sparse(&path, size);
        let setup = setup.disk(json!({"path": path}));
        named("a disk too small for a sector", "small-disk", setup);
    }
}

#[test]
fn vmm_when_a_tap_is_taken_then_says_so_and_makes_none() {
    net::in_new_namespace(|| {
        let _taken = net::attach("taken0").expect("make a tap");
        let setup = Setup::bare().net(json!({"tap": "taken0"}));
        named("a tap somebody uses", "taken0", setup);
        // The second card is at fault: the tap of the first, ours to make, must not stay.
        let setup = Setup::bare()
            .net(json!({"tap": "fresh0"}))
            .net(json!({"tap": "taken0"}));
        named("a second tap somebody uses", "taken0", setup);
        assert!(!net::exists("fresh0"), "a tap was left behind");
        let setup = Setup::bare().net(json!({"tap": "a-name-too-long-for-linux"}));
        named(
            "a tap's name that cannot be",
            "a-name-too-long-for-linux",
            setup,
        );
    });
}

#[test]
fn vmm_when_kvm_cannot_be_had_then_says_why() {
    // Not there at all, and something else in its place.
    let covered = |cover: fn() -> io::Result<()>| {
        let setup = Setup::bare();
        let mut command = command(&setup);
        // SAFETY: between fork and exec this makes system calls only; their arguments are constants.
        unsafe {
            command.pre_exec(move || {
                unshare_unsafe(UnshareFlags::NEWNS)?;
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change(c"/", private)?;
                cover()
            });
        }
        (command.output().expect("run the VMM"), setup)
    };
    let (output, setup) =
        covered(|| Ok(mount(c"none", c"/dev", c"tmpfs", MountFlags::empty(), c"")?));
    check("no /dev/kvm", "/dev/kvm", &output, &setup);
    let (output, setup) = covered(|| Ok(mount_bind(c"/dev/null", c"/dev/kvm")?));
    check("a /dev/kvm that is not KVM", "/dev/kvm", &output, &setup);

    // Not for us. The program and its files must be where anybody can read them.
    let setup = Setup::bare();
    fs::set_permissions(setup.path("."), fs::Permissions::from_mode(0o777)).expect("chmod");
    let (vmm, kernel) = (setup.path("vmm"), setup.path("vmlinux"));
    fs::copy(artifacts::vmm(), &vmm).expect("copy the VMM");
    fs::copy(artifacts::kernel(), &kernel).expect("copy the kernel");
    let setup = setup.kernel(&kernel);
    let file = setup.path("vm.json");
    fs::write(&file, setup.config().to_string()).expect("write");
    if fs::metadata("/dev/kvm")
        .expect("/dev/kvm")
        .permissions()
        .mode()
        & 0o006
        == 0
    {
        let output = Command::new(&vmm)
            .arg("--config")
            .arg(&file)
            .uid(65534)
            .gid(65534)
            .current_dir("/")
            .output()
            .expect("run the VMM");
        check("a /dev/kvm for others", "/dev/kvm", &output, &setup);
    }
}

fn sparse(path: &Path, size: u64) {
    let file = File::create(path).expect("create");
    file.set_len(size).expect("set the size");
}

fn command(setup: &Setup) -> Command {
    let file = setup.path("vm.json");
    fs::write(&file, setup.config().to_string()).expect("write the configuration");
    let mut command = Command::new(artifacts::vmm());
    command.arg("--config").arg(file);
    command
}

/// The VMM refuses this, for a reason that needs no name.
fn refused(what: &str, setup: Setup) {
    named(what, "", setup);
}

/// The VMM refuses this and names `name` as the reason.
fn named(what: &str, name: &str, setup: Setup) {
    let output = command(&setup).output().expect("run the VMM");
    check(what, name, &output, &setup);
}

fn check(what: &str, name: &str, output: &Output, setup: &Setup) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(CANNOT_START), "{what}: {said}");
    assert_eq!(said.lines().count(), 1, "{what}: {said}");
    assert!(said.starts_with("bulkhead-vmm: "), "{what}: {said}");
    assert!(said.contains(name), "{what}: not named: {said}");
    for word in ["panicked", "RUST_BACKTRACE", "unwrap", "Err(", "Os {"] {
        assert!(!said.contains(word), "{what}: {said}");
    }
    assert_eq!(output.stdout, b"", "{what}");
    for socket in ["vsock.sock", "control.sock"] {
        assert!(
            !setup.path(socket).exists(),
            "{what}: {socket} was left behind"
        );
    }
}

/// The document is JSON at all.
#[test]
fn vmm_when_its_document_is_not_json_then_says_so() {
    for text in ["", "{", "[]", "kernel = 1", "{\"cpus\": 1}"] {
        let setup = Setup::bare();
        let file = setup.path("vm.json");
        fs::write(&file, text).expect("write");
        let output = Command::new(artifacts::vmm())
            .arg("--config")
            .arg(&file)
            .output()
            .expect("run the VMM");
        check(text, "vm.json", &output, &setup);
    }
}
