//! The operations of the runtime specification (runtime.md#operations), one rule after the other.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;

use common::{Runtime, config, has_ended, wait_for};
use serde_json::json;

#[test]
fn operation_when_without_an_id_or_of_nobody_then_an_error() {
    let runtime = Runtime::new();
    runtime.configure(&config("true"));
    for operation in ["create", "state", "start", "kill", "delete"] {
        assert!(
            runtime.fail(&[operation]).contains("needs the ID"),
            "{operation}"
        );
    }
    for operation in ["state", "start", "kill", "delete"] {
        assert!(
            runtime
                .fail(&[operation, "nobody"])
                .contains("container nobody does not exist"),
            "{operation}"
        );
    }
}

#[test]
fn create_when_the_id_is_taken_or_none_then_an_error_and_no_container() {
    let runtime = Runtime::new();
    runtime.configure(&config("true"));
    runtime.succeed(&["create", "a"]);
    let before = runtime.state("a");
    assert!(runtime.fail(&["create", "a"]).contains("already"));
    assert_eq!(runtime.state("a"), before);
    for id in ["", "..", "a/b", "\u{e9}"] {
        assert!(
            runtime
                .fail(&["create", id])
                .contains("invalid container ID"),
            "{id:?}"
        );
    }
}

#[test]
fn create_when_the_configuration_is_wrong_then_an_error_and_no_container() {
    let runtime = Runtime::new();
    let wrong = [
        ("/ociVersion", json!("invalid"), "ociVersion"),
        (
            "/process/capabilities",
            json!({"bounding": ["CAP_TEST"]}),
            "CAP_TEST",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_TEST", "soft": 1, "hard": 1}]),
            "RLIMIT_TEST",
        ),
        ("/linux/maskedPaths", json!(["relative"]), "relative"),
        ("/linux/readonlyPaths", json!(["relative"]), "relative"),
        (
            "/hooks",
            json!({"prestart": [{"path": "bin/true"}]}),
            "hooks.prestart[0].path",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/bin/true", "timeout": 0}]}),
            "hooks.poststop[0].timeout",
        ),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "/bin/true", "env": ["A=b", "C"]}]}),
            "hooks.createRuntime[0].env[1]",
        ),
        (
            "/linux/namespaces/1",
            json!({"type": "pid", "path": "/proc/self/ns/uts"}),
            "cannot",
        ),
    ];
    for (member, value, message) in wrong {
        let mut config = config("true");
        let (parent, name) = member.rsplit_once('/').unwrap();
        match config.pointer_mut(parent).unwrap() {
            serde_json::Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
            parent => parent[name] = value,
        }
        runtime.configure(&config);
        let error = runtime.fail(&["create", "a"]);
        assert!(error.contains(message), "{member}: {error}");
        runtime.fail(&["state", "a"]);
    }
}

#[test]
fn configuration_when_with_unknown_members_then_they_are_passed_over() {
    let runtime = Runtime::new();
    let mut config = config("true");
    config["unknown"] = json!({"a": 1});
    config["annotations"]["org.example.unknown"] = json!("");
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    runtime.succeed(&["start", "a"]);
}

#[test]
fn container_when_it_lives_then_the_state_tells() {
    let runtime = Runtime::new();
    runtime.configure(&config("read line < /wait; exit 3"));
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        runtime.inside("wait"),
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    let pid_file = runtime.bundle().join("pid");
    runtime.succeed(&["create", "--pid-file", pid_file.to_str().unwrap(), "a"]);
    let created = runtime.state("a");
    let pid = fs::read_to_string(pid_file)
        .unwrap()
        .parse::<u32>()
        .unwrap();
    let expected = json!({
        "ociVersion": "1.2.0", "id": "a", "status": "created", "pid": pid,
        "bundle": runtime.bundle().canonicalize().unwrap(),
        "annotations": {"org.example.key": "value"},
    });
    assert_eq!(created, expected);
    runtime.succeed(&["start", "a"]);
    assert_eq!(runtime.status("a"), "running");
    assert_eq!(runtime.state("a")["pid"], pid);
    fs::write(runtime.inside("wait"), "\n").unwrap();
    runtime.await_end("a");
    assert_eq!(runtime.state("a").get("pid"), None);
    runtime.succeed(&["delete", "a"]);
    runtime.fail(&["state", "a"]);
}

#[test]
fn program_when_only_created_then_not_run() {
    let runtime = Runtime::new();
    runtime.configure(&config("echo called >> /output"));
    runtime.succeed(&["create", "a"]);
    assert!(!runtime.inside("output").exists());
    // What becomes of the file now is of no account.
    runtime.configure(&json!({"ociVersion": "1.2.0"}));
    runtime.succeed(&["start", "a"]);
    runtime.await_end("a");
    assert_eq!(runtime.read("output"), "called\n");
    assert!(runtime.fail(&["start", "a"]).contains("it is not created"));
    assert_eq!(runtime.read("output"), "called\n");
}

#[test]
fn start_when_there_is_no_program_then_an_error_and_still_created() {
    let runtime = Runtime::new();
    let mut config = config("true");
    config.as_object_mut().unwrap().remove("process");
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    assert!(runtime.fail(&["start", "a"]).contains("no program to run"));
    assert_eq!(runtime.status("a"), "created");
}

#[test]
fn kill_when_it_lives_then_the_program_gets_the_signal() {
    let runtime = Runtime::new();
    for (signal, name) in [("TERM", "TERM"), ("SIGUSR1", "USR1"), ("12", "USR2")] {
        runtime.configure(&config(&format!(
            "trap 'echo {name} >> /got; exit' {name}; echo >> /ready; while :; do sleep 0.01; done"
        )));
        runtime.succeed(&["create", name]);
        runtime.succeed(&["start", name]);
        wait_for(|| runtime.inside("ready").exists());
        runtime.succeed(&["kill", name, signal]);
        runtime.await_end(name);
        fs::remove_file(runtime.inside("ready")).unwrap();
    }
    assert_eq!(runtime.read("got"), "TERM\nUSR1\nUSR2\n");
    assert!(
        runtime
            .fail(&["kill", "TERM", "NONE"])
            .contains("no signal")
    );
}

#[test]
fn kill_when_only_created_then_it_ends_and_when_stopped_then_an_error() {
    let runtime = Runtime::new();
    runtime.configure(&config("true"));
    runtime.succeed(&["create", "a"]);
    runtime.succeed(&["kill", "a", "KILL"]);
    runtime.await_end("a");
    let before = runtime.state("a");
    assert!(runtime.fail(&["kill", "a", "KILL"]).contains("stopped"));
    assert_eq!(runtime.state("a"), before);
}

#[test]
fn delete_when_not_stopped_then_an_error_and_no_effect() {
    let runtime = Runtime::new();
    runtime.configure(&config("sleep 1000"));
    runtime.succeed(&["create", "a"]);
    let created = runtime.state("a");
    runtime.succeed(&["start", "a"]);
    assert!(runtime.fail(&["delete", "a"]).contains("running"));
    assert_eq!(runtime.status("a"), "running");
    runtime.succeed(&["delete", "--force", "a"]);
    runtime.fail(&["state", "a"]);
    assert!(has_ended(&created["pid"].to_string()));
}

#[test]
fn delete_when_only_created_then_it_ends() {
    let runtime = Runtime::new();
    runtime.configure(&config("sleep 1000"));
    runtime.succeed(&["create", "a"]);
    let pid = runtime.state("a")["pid"].to_string();
    runtime.succeed(&["delete", "a"]);
    runtime.fail(&["state", "a"]);
    assert!(has_ended(&pid));
}

#[test]
fn id_when_deleted_then_free_again() {
    let runtime = Runtime::new();
    runtime.configure(&config("true"));
    for _ in 0..2 {
        runtime.succeed(&["create", "a"]);
        runtime.succeed(&["start", "a"]);
        runtime.await_end("a");
        runtime.succeed(&["delete", "a"]);
    }
}

#[test]
fn program_when_missing_or_no_program_then_create_says_it() {
    let runtime = Runtime::new();
    fs::write(runtime.inside("text"), "text").unwrap();
    for (program, message) in [
        ("/nothing", "there is no program /nothing"),
        ("nothing", "executable file not found in $PATH"),
        ("/text", "cannot execute /text: Permission denied"),
        ("/bin", "cannot execute /bin"),
    ] {
        let mut config = config("");
        config["process"]["args"] = json!([program]);
        runtime.configure(&config);
        let error = runtime.fail(&["create", "a"]);
        assert!(error.contains(message), "{error}");
        runtime.fail(&["state", "a"]);
    }
}

#[test]
fn program_when_it_goes_before_the_start_then_start_says_it() {
    let runtime = Runtime::new();
    let mut config = config("");
    config["process"]["args"] = json!(["/bin/true"]);
    runtime.configure(&config);
    runtime.succeed(&["create", "a"]);
    fs::remove_file(runtime.inside("bin/true")).unwrap();
    let error = runtime.fail(&["start", "a"]);
    assert!(error.contains("there is no program /bin/true"), "{error}");
    assert_eq!(runtime.status("a"), "stopped");
    runtime.succeed(&["delete", "a"]);
}
