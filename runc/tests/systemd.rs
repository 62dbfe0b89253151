//! Control groups from systemd: a real one, which manages a part of the host's groups and has mounts of its own, where it is found
//! in the place of the host's.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Runtime, config, wait_for};
use serde_json::{Value, json};

/// Where Debian and others have it.
const PROGRAM: &str = "/lib/systemd/systemd";

/// Puts itself in a group of every hierarchy, and has /run to itself, before it becomes systemd.
const SCRIPT: &str = r#"
    set -e
    if [ "$3" = version2 ]; then
        umount --lazy --recursive /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
    fi
    for hierarchy in $(awk '$3 ~ /^cgroup2?$/ {print $2}' /proc/mounts | sort -u); do
        mkdir "$hierarchy/$1"
        for file in cpuset.cpus cpuset.mems; do
            if [ -e "$hierarchy/$file" ]; then cat "$hierarchy/$file" > "$hierarchy/$1/$file"; fi
        done
        echo 0 > "$hierarchy/$1/cgroup.procs"
    done
    mount -t tmpfs none /run
    mkdir -p /run/systemd/system
    ln -s "$XDG_RUNTIME_DIR/systemd/private" /run/systemd/private
    exec "$2" --user --unit=idle.target
"#;

struct Systemd {
    process: Child,
    place: tempfile::TempDir,
    group: String,
}

impl Systemd {
    /// With control groups as the host has them, or of version 2 alone (`version2`), which may lack controllers then.
    fn start(groups: &str) -> Systemd {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let units = place.path().join("units");
        fs::create_dir(&units).unwrap();
        fs::write(units.join("idle.target"), "[Unit]\n").unwrap();
        let name = place.path().file_name().unwrap().to_string_lossy();
        let group = format!("bulkhead-test-{}", name.trim_start_matches('.'));
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
            .args(["sh", &group, PROGRAM, groups])
            .env("XDG_RUNTIME_DIR", place.path())
            // And after it the usual ones, which is where it writes down units that it is told of.
            .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
            .env("SYSTEMD_LOG_TARGET", "console")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut systemd = Systemd {
            process,
            place,
            group,
        };
        let socket = systemd.place.path().join("systemd/private");
        wait_for(|| {
            let ended = systemd.process.try_wait().unwrap();
            assert!(ended.is_none(), "{PROGRAM}: {ended:?}; run scripts/setup");
            UnixStream::connect(&socket).is_ok()
        });
        systemd
    }

    fn runtime(&self) -> Runtime {
        Runtime::among_mounts_of(self.process.id())
    }

    fn control(&self, arguments: &[&str]) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.process.id()))
            .args(["systemctl", "--user"])
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.place.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A property of a unit.
    fn property(&self, unit: &str, name: &str) -> String {
        let shown = self.control(&["show", "--property", name, "--value", unit]);
        shown.trim_end().to_owned()
    }

    /// Names of the scopes that there are, but for its own.
    fn scopes(&self) -> Vec<String> {
        let listed = self.control(&[
            "list-units",
            "--type=scope",
            "--all",
            "--plain",
            "--no-legend",
        ]);
        let names = listed.lines().filter_map(|line| line.split(' ').next());
        let others = names.filter(|name| *name != "init.scope");
        others.map(str::to_owned).collect()
    }

    /// The folders of its groups.
    fn groups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let hierarchies = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then_some(place)
        });
        let groups = hierarchies.map(|hierarchy| Path::new(hierarchy).join(&self.group));
        groups.filter(|group| group.is_dir()).collect()
    }

    /// The first of its groups that has this file, below.
    fn find(&self, below: &str) -> Option<PathBuf> {
        let mut paths = self.groups().into_iter().map(|group| group.join(below));
        paths.find(|path| path.exists())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for group in self.groups() {
            remove(&group);
        }
    }
}

/// Removes a group with those below.
fn remove(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        remove(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

/// A container that sleeps, with limits, in a scope of this name.
fn sleeping(unit: &str) -> Value {
    let mut config = config("cat /proc/self/cgroup > /groups; echo > /ready; exec sleep 1000");
    config["linux"]["cgroupsPath"] = json!(format!("walled.slice:unit:{unit}"));
    config["linux"]["resources"] = json!({"pids": {"limit": 50}, "memory": {"limit": 67_108_864}});
    config
}

#[test]
fn container_when_systemd_makes_its_group_then_it_is_in_the_scope_and_the_limits_last() {
    let systemd = Systemd::start("host");
    let runtime = systemd.runtime();
    runtime.configure(&sleeping("a"));
    let run = |arguments: &[&str]| runtime.succeed(&[&["--systemd-cgroup"], arguments].concat());
    run(&["run", "--detach", "a"]);
    wait_for(|| runtime.inside("ready").exists());
    let place = format!("/{}/walled.slice/unit-a.scope", systemd.group);
    assert_eq!(systemd.scopes(), ["unit-a.scope"]);
    assert_eq!(systemd.property("unit-a.scope", "ControlGroup"), place);
    assert_eq!(systemd.property("unit-a.scope", "Delegate"), "yes");
    assert_eq!(systemd.property("unit-a.scope", "TasksMax"), "50");
    let groups = runtime.read("groups");
    assert!(
        groups.lines().any(|line| line.ends_with(&place)),
        "{groups}"
    );

    let limit = systemd.find("walled.slice/unit-a.scope/pids.max").unwrap();
    let limit = || fs::read_to_string(&limit).unwrap();
    assert_eq!(limit(), "50\n");
    run(&["update", "--pids-limit", "40", "a"]);
    assert_eq!(limit(), "40\n");
    // All of its units are looked at anew.
    systemd.control(&["daemon-reload"]);
    assert_eq!(systemd.property("unit-a.scope", "TasksMax"), "40");
    assert_eq!(limit(), "40\n");

    run(&["exec", "a", "true"]);
    run(&["pause", "a"]);
    assert_eq!(runtime.status("a"), "paused");
    run(&["resume", "a"]);
    run(&["delete", "--force", "a"]);
    assert_eq!(systemd.scopes(), [""; 0]);
    assert_eq!(systemd.find("walled.slice/unit-a.scope"), None);
}

#[test]
fn scope_when_its_container_ends_or_cannot_be_made_then_it_is_over() {
    let systemd = Systemd::start("host");
    let runtime = systemd.runtime();
    let mut failing = sleeping("b");
    failing["process"]["args"] = json!(["sh", "-c", "exit 3"]);
    runtime.configure(&failing);
    let expect = |code, arguments: &[&str]| {
        let output = runtime.run(&[&["--systemd-cgroup"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(systemd.scopes(), [""; 0]);
    };
    expect(3, &["run", "b"]);
    failing["process"]["args"] = json!(["/nothing"]);
    runtime.configure(&failing);
    expect(127, &["run", "b"]);
    failing["mounts"] = json!([{"destination": "/x", "type": "nothing", "source": "none"}]);
    runtime.configure(&failing);
    expect(1, &["create", "b"]);

    // A name that is taken is somebody else's.
    runtime.configure(&sleeping("c"));
    runtime.succeed(&["--systemd-cgroup", "run", "--detach", "c"]);
    let refused = runtime.fail(&["--systemd-cgroup", "run", "--detach", "d"]);
    assert!(
        refused.contains("systemd refused StartTransientUnit"),
        "{refused}"
    );
    assert_eq!(systemd.scopes(), ["unit-c.scope"]);
    runtime.succeed(&["kill", "c", "KILL"]);
    runtime.await_end("c");
    runtime.succeed(&["delete", "c"]);
    assert_eq!(systemd.scopes(), [""; 0]);
}

#[test]
fn container_when_the_host_has_version_2_alone_then_it_is_in_the_scope_too() {
    let systemd = Systemd::start("version2");
    let runtime = systemd.runtime();
    let mut config = sleeping("e");
    config["linux"].as_object_mut().unwrap().remove("resources");
    runtime.configure(&config);
    let run = |arguments: &[&str]| runtime.succeed(&[&["--systemd-cgroup"], arguments].concat());
    run(&["create", "e"]);
    run(&["start", "e"]);
    wait_for(|| runtime.inside("ready").exists());
    let place = format!("/{}/walled.slice/unit-e.scope", systemd.group);
    assert_eq!(systemd.property("unit-e.scope", "ControlGroup"), place);
    let groups = runtime.read("groups");
    assert!(
        groups.lines().any(|line| line == format!("0::{place}")),
        "{groups}"
    );
    run(&["exec", "e", "true"]);
    run(&["pause", "e"]);
    assert_eq!(runtime.status("e"), "paused");
    run(&["resume", "e"]);
    run(&["delete", "--force", "e"]);
    assert_eq!(systemd.scopes(), [""; 0]);
    assert_eq!(systemd.find("walled.slice/unit-e.scope"), None);
}
