//! Programs from packages.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program, which has to be there.
pub fn program(name: &str, package: &str) -> Command {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    match found {
        Some(file) => Command::new(file),
        None => panic!("{name} is missing: install the Debian package {package} (make setup does)"),
    }
}

pub fn skopeo() -> Command {
    let mut command = program("skopeo", "skopeo");
    command.arg("--insecure-policy");
    command
}

pub fn umoci() -> Command {
    program("umoci", "umoci")
}

pub fn openssl() -> Command {
    program("openssl", "openssl")
}

/// buildah, with everything it keeps below `folder`.
pub fn buildah(folder: &Path) -> Command {
    keeping("buildah", folder)
}

/// podman, with everything it keeps below `folder`.
pub fn podman(folder: &Path) -> Command {
    let mut command = keeping("podman", folder);
    command
        .arg("--tmpdir")
        .arg(folder.join("podman-tmp"))
        .args(["--cgroup-manager", "cgroupfs"])
        .args(["--events-backend", "file"]);
    command
}

/// A program of the containers project that keeps its images below `folder`.
fn keeping(name: &str, folder: &Path) -> Command {
    let mut command = program(name, name);
    command
        .arg("--root")
        .arg(folder.join(name))
        .arg("--runroot")
        .arg(folder.join(format!("{name}-run")))
        .args(["--storage-driver", "vfs"]);
    command
}

/// Runs a program that has to succeed, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("started");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim()
        .into()
}
