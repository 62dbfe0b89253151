//! A root filesystem of busybox, and containers of it.

// Each test program uses a part.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bulkhead_container::cgroup::{Cgroup, Hierarchies, Location, Version};
use bulkhead_container::spec::{
    Capabilities, Linux, Mount, Namespace, NamespaceKind, Process, Spec,
};
use bulkhead_container::{
    Container, Create, Error, Exit, Lower, Pipes, Rootfs, Stdio, Upper, defaults,
};
use rustix::process::{Pid, WaitOptions, waitpid};

pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where busybox lies on this machine; `BULKHEAD_BUSYBOX` says otherwise.
fn busybox() -> PathBuf {
    std::env::var_os("BULKHEAD_BUSYBOX").map_or_else(|| "/bin/busybox".into(), PathBuf::from)
}

/// A root filesystem with every program of busybox.
pub fn rootfs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    root
}

fn fill(root: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    for directory in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "home"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    let program = busybox();
    fs::copy(&program, root.join("bin/busybox"))
        .unwrap_or_else(|e| panic!("{}: {e}; run scripts/setup", program.display()));
    for name in PROGRAMS.split_whitespace() {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nalice:x:1001:\nadm:x:4:bob,alice\nwheel:x:10:alice\n",
    )
    .unwrap();
}

const PROGRAMS: &str = "sh cat echo id ls mount umount ps sleep true false env pwd hostname stat grep kill touch mkdir \
    readlink tty stty dd chmod chown ln rm wc head tail nproc seq sort test printf find dirname basename sysctl \
    mknod uname date uptime trap mktemp cut tr yes df";

/// A configuration as Docker would write it, for a shell command.
pub fn spec(command: &str) -> Spec {
    let namespace = |kind| Namespace { kind, path: None };
    use NamespaceKind as K;
    Spec {
        oci_version: "1.2.0".into(),
        process: Some(Process {
            args: ["sh", "-c", command].map(str::to_owned).to_vec(),
            env: vec![PATH.into()],
            cwd: "/".into(),
            ..Process::default()
        }),
        hostname: Some("box".into()),
        mounts: defaults::mounts(),
        linux: Some(Linux {
            namespaces: [K::Pid, K::Network, K::Mount, K::Ipc, K::Uts, K::Cgroup]
                .map(namespace)
                .to_vec(),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

pub fn mount(destination: &str, kind: &str, options: &str) -> Mount {
    Mount {
        destination: destination.into(),
        kind: Some(kind.into()),
        options: options.split(',').map(str::to_owned).collect(),
        ..Mount::default()
    }
}

pub fn bind(source: &Path, destination: &str, options: &str) -> Mount {
    Mount {
        source: Some(source.to_str().unwrap().into()),
        ..mount(destination, "bind", options)
    }
}

pub fn overlay(root: &Path) -> Rootfs {
    Rootfs::Overlay {
        lower: Lower::Directory(root.into()),
        upper: Upper::Tmpfs {
            size_bytes: Some(16 << 20),
        },
        files: Vec::new(),
        devices: true,
    }
}

/// What a program wrote, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

pub fn wait(pid: Pid) -> Exit {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    Exit::from_wait_status(status.as_raw()).unwrap()
}

pub fn create(spec: &Spec, rootfs: Rootfs) -> Result<(Container, Pipes), Error> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    Ok((Container::create(creation(spec, rootfs, stdio))?, pipes))
}

/// As an agent creates containers, in no control group.
pub fn creation(spec: &Spec, rootfs: Rootfs, stdio: Stdio) -> Create<'_> {
    Create {
        id: "test",
        spec,
        rootfs,
        cgroup: None,
        stdio,
        init: false,
        borrows: true,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    }
}

pub fn finish(pid: Pid, pipes: Pipes) -> Output {
    let Pipes {
        stdin,
        stdout,
        stderr,
    } = pipes;
    drop(stdin);
    let read = |fd| {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    };
    let errors = std::thread::spawn(move || read(stderr));
    let stdout = read(stdout);
    Output {
        stdout,
        stderr: errors.join().unwrap(),
        exit: wait(pid),
    }
}

pub fn run(spec: &Spec, rootfs: Rootfs) -> Result<Output, Error> {
    let (mut container, pipes) = create(spec, rootfs)?;
    container.start()?;
    Ok(finish(container.pid(), pipes))
}

/// The output of a command that must succeed, in an overlay of a new root filesystem.
pub fn sh(command: &str) -> String {
    let root = rootfs();
    succeed(&spec(command), overlay(root.path()))
}

pub fn succeed(spec: &Spec, rootfs: Rootfs) -> String {
    let output = run(spec, rootfs).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        (output.exit.code, output.stderr.as_str()),
        (0, ""),
        "{output:?}"
    );
    output.stdout
}

/// A place for a control group that goes away with all that is in it.
pub struct Group(Location);

impl Group {
    /// In `BULKHEAD_CGROUP_ROOT`, a directory of cgroup v2, or wherever this machine has its control groups.
    pub fn new(name: &str) -> Group {
        let name = format!("bulkhead-test-{}-{name}", std::process::id());
        Group(match std::env::var_os("BULKHEAD_CGROUP_ROOT") {
            Some(root) => Location::Directory(PathBuf::from(root).join(name)),
            None => {
                let host = Hierarchies::of_this_host().unwrap_or_else(|e| panic!("{e}"));
                host.at(format!("/{name}"))
            }
        })
    }

    pub fn everywhere(name: &str) -> Group {
        let group = Group::new(name);
        Group(group.location().everywhere())
    }

    pub fn location(&self) -> Location {
        self.0.clone()
    }

    /// Whether anything of it is there.
    pub fn exists(&self) -> bool {
        self.0.directories().into_iter().any(Path::exists)
    }

    /// Controllers of hierarchies in which it has a directory, whatever its limits; nothing for that of version 2.
    pub fn counting(&self) -> Vec<&'static str> {
        match self.0.version() {
            Version::Two => vec![""],
            Version::One => {
                let all = ["freezer", "memory", "pids"].into_iter();
                all.filter(|name| self.0.directory_of(name).is_some())
                    .collect()
            }
        }
    }

    fn first(&self) -> &'static str {
        self.counting()[0]
    }

    /// The directory that tells of its processes.
    pub fn leading(&self) -> &Path {
        self.0.directory_of(self.first()).unwrap()
    }

    /// Where the container finds that.
    pub fn inside(&self) -> String {
        format!("/sys/fs/cgroup/{}", self.first())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A test that failed leaves its container.
        if let Ok(group) = Cgroup::open(&self.0) {
            let _ = group.remove();
        }
    }
}

/// Waits for what is sure to come; a minute is for machines that have much else to do.
pub fn wait_for(mut condition: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("it did not come to pass");
}

pub fn read_line(pipes: &mut Pipes) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while rustix::io::read(&pipes.stdout, &mut byte).unwrap() == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

pub fn give_all_capabilities(spec: &mut Spec) {
    give(spec, bulkhead_container::capabilities::all());
}

pub fn give(spec: &mut Spec, capabilities: &[&str]) {
    let list: Vec<String> = capabilities.iter().map(|&c| c.to_owned()).collect();
    spec.process.as_mut().unwrap().capabilities = Some(Capabilities {
        bounding: list.clone(),
        effective: list.clone(),
        permitted: list,
        ..Capabilities::default()
    });
}

/// Reads a terminal until its text ends so.
pub fn read_until(master: &std::os::fd::OwnedFd, end: &str) -> String {
    let (mut text, mut part) = (String::new(), [0; 256]);
    while !text.ends_with(end) {
        match rustix::io::read(master, &mut part) {
            Ok(n) if n > 0 => text += std::str::from_utf8(&part[..n]).unwrap(),
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}
