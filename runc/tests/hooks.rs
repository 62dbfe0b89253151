//! Hooks (runtime-spec config.md#posix-platform-hooks): when, where and in what order they are run, and what comes of failures.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Runtime, config};
use serde_json::{Value, json};

const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Runs a shell command. Those of `startContainer` find the shell in the container, all others outside.
fn hook(runtime: &Runtime, point: &str, command: &str) -> Value {
    let outside = runtime.inside("bin/busybox");
    let path = match point {
        "startContainer" => "/bin/busybox",
        _ => outside.to_str().unwrap(),
    };
    json!({"path": path, "args": ["sh", "-c", command], "env": ["PATH=/bin:/usr/bin"]})
}

/// The root filesystem as the hooks of a point see it.
fn root_of<'a>(runtime: &'a Runtime, point: &str) -> std::borrow::Cow<'a, str> {
    match point {
        "startContainer" => "".into(),
        _ => runtime
            .bundle()
            .join("rootfs")
            .to_str()
            .unwrap()
            .to_owned()
            .into(),
    }
}

fn run_to_the_end(runtime: &Runtime) {
    runtime.succeed(&["create", "a"]);
    runtime.succeed(&["start", "a"]);
    runtime.await_end("a");
    runtime.succeed(&["delete", "a"]);
}

#[test]
fn hooks_when_listed_then_run_at_their_time_and_in_order() {
    let runtime = Runtime::new();
    let mut config = config("echo program >> /output; read line < /wait");
    for point in POINTS {
        let output = format!("{}/output", root_of(&runtime, point));
        let say = |n: u32| hook(&runtime, point, &format!("echo {point} {n} >> {output}"));
        config["hooks"][point] = json!([say(1), say(2)]);
    }
    runtime.configure(&config);
    let wait = runtime.inside("wait");
    rustix::fs::mkfifoat(rustix::fs::CWD, &wait, rustix::fs::Mode::RWXU).unwrap();
    let twice = |points: &[&str]| -> Vec<String> {
        let lines = |point: &&str| [1, 2].map(|n| format!("{point} {n}"));
        points.iter().flat_map(lines).collect()
    };
    let lines = || -> Vec<String> {
        let text = runtime.read("output");
        text.lines().map(str::to_owned).collect()
    };

    runtime.succeed(&["create", "a"]);
    assert_eq!(lines(), twice(&POINTS[..3]));
    runtime.succeed(&["start", "a"]);
    // The program's line comes when it comes.
    let started = lines();
    let hooks: Vec<String> = started
        .into_iter()
        .filter(|line| line != "program")
        .collect();
    assert_eq!(hooks, twice(&POINTS[..5]));
    fs::write(wait, "\n").unwrap();
    runtime.await_end("a");
    let all = lines();
    assert_eq!(all.len(), 11, "{all:?}");
    let at = |wanted: &str| all.iter().position(|line| line == wanted).unwrap();
    assert!(at("program") > at("startContainer 2"), "{all:?}");
    runtime.succeed(&["delete", "a"]);
    assert_eq!(lines().split_off(11), twice(&POINTS[5..]));
}

#[test]
fn hooks_when_run_then_they_read_the_state() {
    let runtime = Runtime::new();
    let mut config = config("true");
    for point in POINTS {
        let file = format!("{}/{point}", root_of(&runtime, point));
        config["hooks"][point] = json!([hook(&runtime, point, &format!("cat > {file}"))]);
    }
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    let mut expected = runtime.state("a");
    runtime.succeed(&["start", "a"]);
    runtime.await_end("a");
    runtime.succeed(&["delete", "a"]);
    for point in POINTS {
        expected["status"] = match point {
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "created",
        }
        .into();
        if point == "poststop" {
            expected.as_object_mut().unwrap().remove("pid");
        }
        let told: Value = serde_json::from_str(&runtime.read(point)).unwrap();
        assert_eq!(told, expected, "{point}");
    }
}

#[test]
fn hooks_when_run_then_in_the_namespaces_of_their_point() {
    let runtime = Runtime::new();
    let mut config = config("true");
    const KINDS: [&str; 3] = ["mnt", "uts", "net"];
    for point in POINTS {
        let root = root_of(&runtime, point);
        let links = KINDS.map(|kind| format!("/proc/self/ns/{kind}")).join(" ");
        // Before the container's root is all there is, its mounts are seen below the bundle.
        let command = format!(
            "for link in {links}; do {root}/bin/busybox readlink $link; done > {root}/{point}; \
             {root}/bin/busybox ls {root}/sys > {root}/{point}-sys"
        );
        config["hooks"][point] = json!([hook(&runtime, point, &command)]);
    }
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    let namespaces = |pid: &str| -> String {
        KINDS
            .map(|kind| {
                let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
                format!("{}\n", link.display())
            })
            .concat()
    };
    let (ours, theirs) = (
        namespaces("self"),
        namespaces(&runtime.state("a")["pid"].to_string()),
    );
    runtime.succeed(&["start", "a"]);
    runtime.await_end("a");
    runtime.succeed(&["delete", "a"]);
    for point in POINTS {
        let inside = ["createContainer", "startContainer"].contains(&point);
        let expected = if inside { &theirs } else { &ours };
        assert_eq!(&runtime.read(point), expected, "{point}");
        let mounts = runtime.read(&format!("{point}-sys"));
        assert_eq!(mounts.contains("kernel"), inside, "{point}: {mounts}");
    }
}

#[test]
fn hook_when_run_then_its_own_arguments_and_environment_alone() {
    let runtime = Runtime::new();
    let script = runtime.inside("show");
    let show = "#!/bin/sh\ncat /proc/self/environ | tr '\\0' '\\n' > \"$1\"\n";
    fs::write(&script, show).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = config("true");
    let seen = |point: &str| format!("{}/{point}", root_of(&runtime, point));
    config["hooks"] = json!({
        "createRuntime": [{"path": script, "args": ["any", seen("createRuntime")], "env": ["A=b=c", "D="]}],
        "createContainer": [{"path": script, "args": ["any", seen("createContainer")], "env": ["A=b=c", "D="]}],
    });
    runtime.configure(&config);
    run_to_the_end(&runtime);
    for point in ["createRuntime", "createContainer"] {
        let seen = runtime.read(point);
        // A shell adds what it likes to; nothing else is there.
        let added = ["PWD=", "OLDPWD=", "SHLVL=", "_="];
        let given: Vec<&str> = seen
            .lines()
            .filter(|line| !added.iter().any(|name| line.starts_with(name)))
            .collect();
        assert_eq!(given, ["A=b=c", "D="], "{point}");
    }
}

#[test]
fn hook_when_it_fails_before_the_program_then_an_error_and_no_container() {
    for point in &POINTS[..4] {
        let runtime = Runtime::new();
        let mut config = config("echo program >> /output");
        let last = format!("echo stopped >> {}/output", root_of(&runtime, "poststop"));
        config["hooks"] = json!({
            *point: [hook(&runtime, point, "exit 3"), hook(&runtime, point, "echo second >&2")],
            "poststop": [hook(&runtime, "poststop", &last)],
        });
        runtime.configure(&config);
        let error = match *point {
            "startContainer" => {
                runtime.succeed(&["create", "a"]);
                runtime.fail(&["start", "a"])
            }
            _ => runtime.fail(&["create", "a"]),
        };
        let expected = format!("hooks.{point}[0]: ");
        assert!(error.contains(&expected), "{error}");
        assert!(error.contains("it exited with 3"), "{error}");
        assert!(!error.contains("second"), "{error}");
        runtime.fail(&["state", "a"]);
        assert_eq!(runtime.read("output"), "stopped\n", "{point}");
    }
}

#[test]
fn hook_when_it_fails_after_the_start_then_an_error_and_no_container() {
    let runtime = Runtime::new();
    let mut config = config("sleep 1000");
    let say = |point: &str, text: &str| {
        let output = format!("{}/output", root_of(&runtime, point));
        hook(&runtime, point, &format!("echo {text} >> {output}"))
    };
    config["hooks"] = json!({
        "poststart": [say("poststart", "first"), {"path": "/nothing/there"}, say("poststart", "third")],
        "poststop": [say("poststop", "stopped")],
    });
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    let error = runtime.fail(&["start", "a"]);
    assert!(error.contains("hooks.poststart[1]: "), "{error}");
    runtime.fail(&["state", "a"]);
    assert_eq!(runtime.read("output"), "first\nstopped\n");
}

#[test]
fn hook_when_it_fails_after_the_end_then_a_warning_and_the_rest_goes_on() {
    let runtime = Runtime::new();
    let mut config = config("true");
    let say = format!("echo poststop >> {}/output", root_of(&runtime, "poststop"));
    config["hooks"]["poststop"] = json!([
        {"path": "/nothing/there"},
        hook(&runtime, "poststop", &say),
    ]);
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    runtime.succeed(&["start", "a"]);
    runtime.await_end("a");
    let warning = runtime.succeed(&["delete", "a"]);
    assert!(warning.contains("hooks.poststop[0]: "), "{warning}");
    assert_eq!(runtime.read("output"), "poststop\n");
}

#[test]
fn hook_when_it_takes_too_long_then_ended() {
    for point in ["createRuntime", "createContainer"] {
        let runtime = Runtime::new();
        let mut config = config("true");
        let mut slow = hook(&runtime, point, "exec sleep 1000");
        slow["timeout"] = json!(1);
        config["hooks"][point] = json!([slow]);
        runtime.configure(&config);
        let error = runtime.fail(&["create", "a"]);
        assert!(error.contains("it was ended after 1 seconds"), "{error}");
    }
}

#[test]
fn hooks_when_in_a_user_namespace_then_run_there_too() {
    let runtime = Runtime::new();
    let mut config = config("echo program >> /output");
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    for path in ["", "output"] {
        let path = runtime.inside(path);
        if !path.exists() {
            fs::write(&path, "").unwrap();
        }
        std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    fs::set_permissions(runtime.bundle(), fs::Permissions::from_mode(0o755)).unwrap();
    for point in ["createRuntime", "createContainer", "startContainer"] {
        let output = format!("{}/output", root_of(&runtime, point));
        let say = format!("echo {point} $(cat /proc/self/uid_map) >> {output}");
        config["hooks"][point] = json!([hook(&runtime, point, &say)]);
    }
    runtime.configure(&config);
    run_to_the_end(&runtime);
    let output = runtime.read("output");
    let expected = "createRuntime 0 0 4294967295\ncreateContainer 0 100000 1000\nstartContainer 0 100000 1000\nprogram\n";
    assert_eq!(output, expected);
}
