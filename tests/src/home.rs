//! A Bulkhead of a test's own: a root with an image in it, and everything that is done there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::lane::patience;
use crate::{artifacts, process};

/// Programs of the image, all of them busybox.
const APPLETS: [&str; 23] = [
    "cat",
    "chmod",
    "date",
    "dd",
    "echo",
    "env",
    "false",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "sh",
    "sha256sum",
    "sleep",
    "stty",
    "tail",
    "true",
    "wc",
];

/// A root of its own. Dropping it removes what runs there, however it got there.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    has_own_templates: bool,
}

/// Where the tests of this process have their templates in common: each takes as long as several boots.
fn shared_templates() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(folder) = FOLDER.get() {
            let _ = fs::remove_dir_all(folder);
        }
    }
    FOLDER.get_or_init(|| {
        let folder = tempfile::Builder::new()
            .prefix("bulkhead-test-templates-")
            .tempdir()
            .expect("make a folder")
            .keep();
        // SAFETY: the function is there as long as the program, and uses nothing that goes before it does.
        unsafe { libc::atexit(remove) };
        folder
    })
}

impl Home {
    /// An empty one.
    pub fn empty() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("make a folder");
        Home {
            dir,
            has_own_templates: false,
        }
    }

    /// The same, with its templates under its own root.
    pub fn with_own_templates(mut self) -> Self {
        self.has_own_templates = true;
        self
    }

    /// One with the image `busybox`.
    pub fn with_busybox() -> Self {
        let home = Home::empty();
        let archive = home.dir.path().join("busybox.tar");
        fs::write(&archive, busybox_archive()).expect("write the archive");
        let archive = archive.to_str().expect("a path");
        home.expect(&["import", "--change", "CMD [\"sh\"]", archive, "busybox"]);
        home
    }

    /// The root.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The command, with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_of(&artifacts::cli());
        command.args(arguments);
        command
    }

    /// A program that calls the command, or is it.
    pub fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("BULKHEAD_ROOT", self.root())
            .env("BULKHEAD_BOOT_TIMEOUT", patience().as_secs().to_string())
            .stdin(Stdio::null());
        if !self.has_own_templates {
            command.env("BULKHEAD_TEMPLATES", shared_templates());
        }
        command
    }

    /// Runs the command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("run bulkhead")
    }

    /// Runs the command, which must succeed, and returns what it printed.
    pub fn expect(&self, arguments: &[&str]) -> String {
        self.expect_code(0, arguments).0
    }

    /// Runs the command, which must end with this code, and returns what it printed and what it said.
    pub fn expect_code(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {stdout} {stderr} {}",
            self.complaints()
        );
        (stdout, stderr)
    }

    /// Starts the command, which dies with this thread.
    pub fn spawn(&self, arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Child {
        let mut command = self.command(arguments);
        configure(&mut command);
        process::die_with_parent(&mut command);
        command.spawn().expect("start bulkhead")
    }

    /// What `inspect` says at this place.
    pub fn inspect(&self, container: &str, field: &str) -> String {
        let template = format!("{{{{{field}}}}}");
        let text = self.expect(&["inspect", "--format", &template, container]);
        text.trim_end().to_owned()
    }

    /// Waits until a container is what it should be.
    pub fn wait_for(&self, container: &str, field: &str, value: &str) {
        let template = format!("{{{{{field}}}}}");
        self.wait_until(&format!("{field} is {value}"), || {
            let output = self.run(&["inspect", "--format", &template, container]);
            String::from_utf8_lossy(&output.stdout).trim_end() == value
        });
    }

    /// Waits until `is_so`, which `what` says in words.
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + patience();
        while !is_so() {
            assert!(Instant::now() < deadline, "not so: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// No container, no sandbox, no process, no socket and no mount is left, once what is ending has
    /// ended.
    pub fn expect_nothing_left(&self) {
        let deadline = Instant::now() + patience();
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is left of containers, sandboxes and processes.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for folder in ["containers", "names", "unfinished", "run/sandboxes"] {
            let entries = fs::read_dir(self.root().join(folder));
            for entry in entries.into_iter().flatten().flatten() {
                left.push(format!("{folder}/{}", entry.file_name().display()));
            }
        }
        for pid in self.processes() {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            left.push(format!("process {pid}: {cmdline}"));
        }
        for table in ["/proc/net/unix", "/proc/self/mountinfo"] {
            let table = fs::read_to_string(table).unwrap_or_default();
            let root = self.root().to_string_lossy();
            left.extend(
                table
                    .lines()
                    .filter(|l| l.contains(&*root))
                    .map(str::to_owned),
            );
        }
        left
    }

    /// The processes of this root: commands are told it in their environment, which all that they start
    /// inherits.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = process::of(&self.root().to_string_lossy());
        pids.retain(|&pid| process::is_alive(pid));
        pids
    }

    /// What monitors, VMMs and guests have to complain about.
    fn complaints(&self) -> String {
        let mut all = String::new();
        let containers = fs::read_dir(self.root().join("containers"));
        for entry in containers.into_iter().flatten().flatten() {
            for file in ["monitor.log", "console.log"] {
                all += &fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            }
        }
        all
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let list = self.run(&["ps", "--all", "--quiet"]);
        for id in String::from_utf8_lossy(&list.stdout).lines() {
            self.run(&["rm", "--force", id]);
        }
        for pid in self.processes() {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A file system with busybox and its names, and two users.
pub fn busybox_archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind, mode, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size as u64);
        header
    };
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        archive
            .append_data(&mut header, name, &b""[..])
            .expect("folder");
    }
    let busybox = fs::read(artifacts::busybox()).expect("read busybox");
    let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:A user:/tmp:/bin/sh\n";
    let group = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n";
    let files = [
        ("bin/busybox", 0o755, &busybox[..]),
        ("etc/passwd", 0o644, passwd.as_bytes()),
        ("etc/group", 0o644, group.as_bytes()),
    ];
    for (name, mode, data) in files {
        let mut header = header(tar::EntryType::Regular, mode, data.len());
        archive.append_data(&mut header, name, data).expect("file");
    }
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        archive
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .expect("link");
    }
    archive.into_inner().expect("archive")
}
