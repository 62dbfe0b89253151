//! Ways out of a container that others have found, each tried and refused. Run as root.
//!
//! What cannot fail shows nothing: where it is cheap, a test first takes the wall away and sees the attack succeed.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod databases;
mod descriptors;
mod devices;
mod kernel;
mod keys;
mod program;
mod races;

use std::os::unix::fs::symlink;
use std::path::Path;

use bulkhead_container::spec::{Process, Spec};
use bulkhead_container::{Container, Stdio, defaults, seccomp};
use common::*;

fn process(spec: &mut Spec) -> &mut Process {
    spec.process.as_mut().unwrap()
}

/// As Docker confines it.
fn confine(spec: &mut Spec) {
    let capabilities = defaults::capabilities();
    let linux = spec.linux.as_mut().unwrap();
    linux.seccomp = Some(seccomp::docker_default().filter(&capabilities.bounding));
    linux.masked_paths = defaults::masked_paths();
    linux.readonly_paths = defaults::readonly_paths();
    process(spec).capabilities = Some(capabilities);
}

/// A root filesystem that shows this machine's programs too, for attacks that take more than busybox: they are in Perl, which
/// every Debian has and which knows of `syscall`.
fn armed_rootfs() -> tempfile::TempDir {
    let root = rootfs();
    for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(target, root.path().join(link)).unwrap();
    }
    root
}

/// A container for such a root filesystem.
fn armed(script: &str) -> Spec {
    let mut spec = spec(script);
    spec.mounts
        .push(bind(Path::new("/usr"), "/usr", "rbind,ro"));
    spec
}

fn perl(spec: &mut Spec, script: &str) {
    process(spec).args = ["/usr/bin/perl", "-e", script].map(str::to_owned).to_vec();
}

/// What a Perl program prints in a confined container, without the filter if that is not what is to hold.
fn confined_perl(script: &str, filtered: bool) -> String {
    let root = armed_rootfs();
    let mut spec = armed("");
    confine(&mut spec);
    if !filtered {
        spec.linux.as_mut().unwrap().seccomp = None;
    }
    perl(&mut spec, script);
    succeed(&spec, overlay(root.path()))
}

/// What it prints where nothing is in its way: all capabilities, no filter, no hidden paths.
fn free_perl(script: &str) -> String {
    let root = armed_rootfs();
    let mut spec = armed("");
    give_all_capabilities(&mut spec);
    perl(&mut spec, script);
    succeed(&spec, overlay(root.path()))
}

/// Executes a program in a container and waits for it.
fn exec(container: &Container, program: &Process) -> Result<Output, bulkhead_container::Error> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let exec = container.exec(program, stdio)?;
    Ok(finish(exec.pid(), pipes))
}
